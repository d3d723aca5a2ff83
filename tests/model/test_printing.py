"""What a model prints of itself: irreps as e3nn reads them, paths and numbers of weights."""

import re

import pytest

from mace_train.irreps import import_o3
from mace_train.model.coupling import convolution_paths
from mace_train.model.product_basis import paths, reduced_basis
from tests.model.systems import model_of


@pytest.fixture(scope="module")
def model():
    return model_of((1, 8, 17), max_ell=3, max_L=1, correlation=3)


def test_every_weight_is_counted_once(model):
    lines = str(model).splitlines()
    counts = [int(n) for line in lines[2:] for n in re.findall(r"\| (\d+) weights", line)]
    assert sum(counts) == sum(parameter.numel() for parameter in model.parameters())
    assert f"| {sum(counts)} weights" in lines[1]


def test_irreps_are_those_that_e3nn_reads(model):
    texts = re.findall(r"\d+x\d+[eo](?:\+\d+x\d+[eo])*", str(model))
    assert len(texts) > 20
    for text in texts:
        assert str(import_o3().Irreps(text)) == text


def test_layers(model):
    second = model.interactions[1]
    assert repr(second.linear_up) == "DegreeLinear(4x0e+4x1o -> 4x0e+4x1o | 32 weights)"
    assert repr(second.skip_tp) == "ElementLinear(4x0e x 3x0e -> 4x0e | 48 weights)"
    n_paths = len(convolution_paths(1, 3))
    assert second.extra_repr() == (
        f"Convolution(1x0e+1x1o x 1x0e+1x1o+1x2e+1x3o -> 2x0e+3x1o+3x2e+2x3o | {n_paths} paths)"
    )
    assert "elements=[H, O, Cl], heads=['Default']" in model.extra_repr()


def test_contraction(model):
    stated = sum(len(paths(3, order, 0)) for order in (1, 2, 3))
    independent = 1 + sum(len(reduced_basis(3, order, 0)[0]) for order in (2, 3))
    assert model.products[1].symmetric_contractions.extra_repr() == (
        "(4x0e+4x1o+4x2e+4x3o)^1..3 x 3x0e -> 4x0e | "
        f"{stated} paths, {independent} of them independent | {3 * stated * 4} weights"
    )
