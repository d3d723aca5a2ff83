"""The compiled operators are equivariant, reflections included."""

import pytest
import torch

from mace_train.model.contraction import SymmetricContraction
from mace_train.ops.convolution import EdgeIndex, convolution, register
from mace_train.ops.cpp.compiler import find_compiler
from mace_train.ops.symmetric_contraction import Chunks
from tests.equivariance import assert_equivariant
from tests.ops.tables import mace_product

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="needs a C++ compiler")


@pytest.mark.parametrize("l_nodes", [0, 1, 2])
def test_convolution(l_nodes):
    """Outputs are rotated path by path: the rows of a path are the components of one degree."""
    torch.manual_seed(0)
    n_atoms, n_edges, n_channels, l_edges = 7, 40, 5, 3
    product = mace_product(l_nodes, l_edges)
    key = register(product)
    receivers = torch.randint(0, n_atoms, (n_edges,)).sort().values
    index = EdgeIndex.of(torch.randint(0, n_atoms, (n_edges,)), receivers, n_atoms)
    x = torch.randn(n_atoms, product.n_x, n_channels, dtype=torch.float64)
    y = torch.randn(n_edges, product.n_y, dtype=torch.float64)
    r = torch.randn(n_edges, product.n_weights, n_channels, dtype=torch.float64)

    def by_path(x, y, r):
        blocks = convolution(x, y, r, index, key)
        return {
            f"{i} of degree {len(path.rows) // 2}": blocks[path.block][:, list(path.rows)]
            for i, path in enumerate(product.paths)
        }

    def moved(motion, outputs):
        return {name: motion.features(v, [v.shape[1] // 2]) for name, v in outputs.items()}

    assert_equivariant(
        by_path,
        [x, y, r],
        lambda motion, x, y, r: [
            motion.features(x, range(l_nodes + 1)),
            motion.features(y, range(l_edges + 1)),
            r,
        ],
        moved,
    )


@pytest.mark.parametrize("degrees", [(3, 1, 3), (2, 2, 2), (3, 0, 3)])
def test_symmetric_contraction(degrees):
    torch.manual_seed(0)
    l_max, l_out, correlation = degrees
    module = SymmetricContraction(l_max, l_out, correlation, 3, 4).double()
    elements = torch.tensor([0, 2, 2, 1, 0])
    chunks = Chunks.of(elements, 3)
    x = torch.randn(5, (l_max + 1) ** 2, 4, dtype=torch.float64)

    def features(x):
        out = module(x, elements, chunks)
        return {"invariants": out[:, 0], "features": out, "input": x}

    assert_equivariant(
        features,
        [x],
        lambda motion, x: [motion.features(x, range(l_max + 1))],
        lambda motion, out: {
            "invariants": out["invariants"],
            "features": motion.features(out["features"], range(l_out + 1)),
            "input": motion.features(out["input"], range(l_max + 1)),
        },
    )
