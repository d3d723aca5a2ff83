"""Operators outside of MACE: a tensor product of e3nn, and coefficients that a user brings."""

import os
import pathlib
import re

import numpy as np
import pytest
import torch

from mace_train.model.coupling import wigner_3j
from mace_train.ops.codegen.contraction_program import Coupling, Output
from mace_train.ops.codegen.convolution_program import ChannelwiseProduct, Path
from mace_train.ops.convolution import EdgeIndex, convolution, register
from mace_train.ops.cpp.compiler import find_compiler
from mace_train.ops.symmetric_contraction import (
    Chunks,
    kernels_of,
    symmetric_contraction,
)
from mace_train.ops.symmetric_contraction import register as register_coupling
from tests.ops.tables import einsum_convolution

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="needs a C++ compiler")

# (l, parity) of in1 and in2, and paths between them, of which some have odd l1 + l2 + l3
IN1, IN2 = ((0, 1), (1, -1), (2, 1)), ((0, 1), (1, -1), (2, -1))
PATHS = ((0, 1, 1), (1, 1, 1), (1, 2, 3), (2, 2, 1), (2, 1, 2))


def each_row_its_own(n_rows: int) -> EdgeIndex:
    """An edge from every row to itself: the convolution is the product of every row."""
    rows = torch.arange(n_rows)
    return EdgeIndex.of(rows, rows, n_rows)


@pytest.mark.filterwarnings("ignore")
def test_e3nn_tensor_product_replaced(monkeypatch):
    monkeypatch.setitem(os.environ, "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    from e3nn import o3

    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # or e3nn rounds its coefficients to float32
    try:
        _compare_with_e3nn(o3)
    finally:
        torch.set_default_dtype(default)


def _compare_with_e3nn(o3):
    torch.manual_seed(0)
    n_rows, n_channels = 7, 6
    product = ChannelwiseProduct(
        9,
        9,
        len(PATHS),
        tuple(2 * l3 + 1 for _, _, l3 in PATHS),
        tuple(
            Path(l1**2, l2**2, i, i, tuple(range(2 * l3 + 1)), _table(l1, l2, l3))
            for i, (l1, l2, l3) in enumerate(PATHS)
        ),
    )
    parities = [IN1[l1][1] * IN2[l2][1] for l1, l2, _ in PATHS]
    theirs = o3.TensorProduct(
        o3.Irreps([(n_channels, irrep) for irrep in IN1]),
        o3.Irreps([(1, irrep) for irrep in IN2]),
        o3.Irreps([(n_channels, (l3, p)) for (_, _, l3), p in zip(PATHS, parities, strict=True)]),
        [(l1, l2, i, "uvu", True) for i, (l1, l2, _) in enumerate(PATHS)],
        shared_weights=False,
        internal_weights=False,
    ).double()
    x = torch.randn(n_rows, 9, n_channels, dtype=torch.float64)
    y = torch.randn(n_rows, 9, dtype=torch.float64)
    weights = torch.randn(n_rows, len(PATHS), n_channels, dtype=torch.float64)
    ours = convolution(x, y, weights, each_row_its_own(n_rows), register(product))
    parts = torch.split(x, [1, 3, 5], 1)
    flat = torch.cat([part.transpose(1, 2).flatten(1) for part in parts], 1)
    expected = theirs(flat, y, weights.flatten(1))
    found = torch.cat([part.transpose(1, 2).flatten(1) for part in ours], 1)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def _table(l1, l2, l3):
    return np.sqrt(2 * l3 + 1) * wigner_3j(l3, l1, l2)


def test_product_with_coefficients_of_the_user():
    """No group at all: random coefficients of random sizes."""
    random = np.random.RandomState(0)
    tables = [random.standard_normal(shape) for shape in ((2, 3, 4), (1, 4, 2), (3, 1, 6))]
    product = ChannelwiseProduct(
        7,
        6,
        3,
        (3, 3),
        (
            Path(0, 1, 2, 0, (2, 0), tables[0]),
            Path(3, 0, 0, 0, (1,), tables[1]),
            Path(6, 0, 1, 1, (0, 1, 2), tables[2]),
        ),
    )
    torch.manual_seed(0)
    x = torch.randn(5, 7, 3, dtype=torch.float64, requires_grad=True)
    y = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    r = torch.randn(5, 3, 3, dtype=torch.float64, requires_grad=True)
    rows = torch.arange(5)
    found = torch.cat(convolution(x, y, r, each_row_its_own(5), register(product)), 1)
    expected = einsum_convolution(product, x, y, r, rows, rows)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for mine, slow in zip(
        torch.autograd.grad(found.square().sum(), (x, y, r)),
        torch.autograd.grad(expected.square().sum(), (x, y, r)),
        strict=True,
    ):
        torch.testing.assert_close(mine, slow, rtol=1e-12, atol=1e-11)


def test_contraction_with_coefficients_of_the_user():
    """out_m = sum_ij C[m, i, j] w_j x_i x_j + w_last x_m with random C."""
    torch.manual_seed(0)
    n_components, n_out, n_channels = 4, 2, 5
    table = np.random.RandomState(1).standard_normal((n_out, n_components, n_components))
    rows = list(range(n_components))
    output = Output(rows, rows, table.reshape(-1, n_components), [0, 1], n_components)
    key = register_coupling(Coupling(n_components, n_components + 1, [], [output]))
    scale = torch.as_tensor(kernels_of(key).weight_scale)
    x = torch.randn(9, n_components, n_channels, dtype=torch.float64)
    w = torch.randn(2, n_components + 1, n_channels, dtype=torch.float64)
    index = torch.arange(9) % 2
    found = symmetric_contraction(x, w * scale[:, None], Chunks.of(index, 2), key)
    of_row = w[index]
    expected = torch.einsum("mij,njk,nik,njk->nmk", torch.as_tensor(table), of_row[:, :4], x, x)
    expected = expected + of_row[:, 4:] * x[:, :2]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_the_example_of_the_readme(capsys):
    text = (pathlib.Path(__file__).parents[2] / "kernels" / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(code, "kernels/README.md", "exec"), names)
    assert "out[0] = +0.707107 w[0] x1[1] x2[2]" in capsys.readouterr().out
    x1, x2, w = (names[name].detach() for name in ("x1", "x2", "w"))
    # sqrt(2 l + 1) / sqrt(6) times the cross product
    expected = 0.5**0.5 * torch.linalg.cross(x1, x2.unsqueeze(2).expand_as(x1), dim=1) * w
    torch.testing.assert_close(names["y"].detach(), expected, rtol=1e-5, atol=1e-5)
    assert names["w"].grad is not None
