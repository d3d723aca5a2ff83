"""Linear maps as one node of the graph: equal to products by degree, with all derivatives."""

import pytest
import torch

from mace_train.irreps import FeatureIrreps
from mace_train.model import linear_forms
from mace_train.model.batch_index import ElementGroups
from mace_train.model.linear import (
    DegreeLinear,
    ElementLinear,
    StackedDegrees,
    split_degrees,
)
from mace_train.ops.backends import Backend
from mace_train.ops.cpp.compiler import find_compiler

BACKENDS = [
    Backend("reference"),
    pytest.param(
        Backend("cpp"),
        marks=pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler"),
    ),
]
# channels in and out: below, at and above vectors of 4 and 8, with and without a rest
CHANNELS = [(1, 1), (3, 5), (8, 16), (17, 33), (40, 100)]


@pytest.fixture(params=BACKENDS, ids=lambda backend: backend.name)
def backend(request):
    torch.manual_seed(0)
    return request.param


def derivatives(function, x, weight):
    """The value, its gradients, and the gradients of one number of all three."""
    value = function(x)
    gx, gw = torch.autograd.grad(value.sin().sum(), [x, weight], create_graph=True)
    number = gx.cos().sum() + gw.square().sum() + value.square().sum()
    return [value, gx, gw, *torch.autograd.grad(number, [x, weight])]


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("n_atoms", [0, 1, 2, 13])
@pytest.mark.parametrize(("n_in", "n_out"), CHANNELS)
@pytest.mark.parametrize(("n_degrees", "n_components"), [(1, 1), (1, 4), (2, 4), (2, 9)])
def test_interleaved(backend, n_atoms, n_in, n_out, n_degrees, n_components):
    layer = DegreeLinear([n_in] * n_degrees, n_out).double()
    x = torch.randn(n_atoms, n_components, n_in, dtype=torch.float64, requires_grad=True)

    def plain(x):
        return torch.cat(layer.by_degree(split_degrees(x)[:n_degrees]), dim=1)

    found = derivatives(lambda x: layer(x, backend), x, layer.weight)
    assert found[0].shape == (n_atoms, n_degrees**2, n_out)
    assert_same(found, derivatives(plain, x, layer.weight))


@pytest.mark.parametrize("n_atoms", [0, 1, 5])
def test_stacked(backend, n_atoms):
    fan_in = [4, 12, 7]
    layer = DegreeLinear(fan_in, 9).double()
    n_numbers = sum(n_atoms * (2 * degree + 1) * n for degree, n in enumerate(fan_in))
    flat = torch.randn(n_numbers, 1, dtype=torch.float64, requires_grad=True)

    def plain(flat):
        return torch.cat(layer.by_degree(list(StackedDegrees(flat, n_atoms, fan_in))), dim=1)

    def one_node(flat):
        return layer(StackedDegrees(flat, n_atoms, fan_in), backend)

    assert one_node(flat).shape == (n_atoms, 9, 9)
    assert_same(derivatives(one_node, flat, layer.weight), derivatives(plain, flat, layer.weight))


@pytest.mark.parametrize("elements", [[], [2], [0, 2, 2, 0, 3, 2, 2, 2, 2, 2, 2, 0]])
@pytest.mark.parametrize("n_components", [4, 9])
@pytest.mark.parametrize("n_channels", [3, 16])
def test_by_element(backend, elements, n_components, n_channels):
    layer = ElementLinear(FeatureIrreps(n_channels, 1), 4).double()
    elements = torch.tensor(elements, dtype=torch.int64)
    groups = ElementGroups.of(elements, 4)
    shape = (len(elements), n_components, n_channels)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)

    def plain(x):
        scale = (n_channels * 4) ** -0.5
        of_atoms = scale * layer.weight.view(2, n_channels, 4, n_channels)[:, :, elements]
        degrees = split_degrees(x)[:2]
        parts = [torch.einsum("nmu,unv->nmv", t, w) for t, w in zip(degrees, of_atoms, strict=True)]
        return torch.cat(parts, dim=1)

    found = derivatives(lambda x: layer(x, groups, backend), x, layer.weight)
    assert_same(found, derivatives(plain, x, layer.weight))


@pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler")
def test_kernels_of_both_types_agree_with_pytorch_and_repeat(monkeypatch):
    layer = DegreeLinear([24, 40], 48)
    flat = torch.randn(11 * (24 + 3 * 40), 1)
    features = StackedDegrees(flat, 11, [24, 40])
    compiled = layer(features, Backend("cpp"))
    assert torch.equal(compiled, layer(features, Backend("cpp")))
    assert not torch.equal(compiled, torch.zeros_like(compiled))
    torch.testing.assert_close(compiled, layer(features), rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(linear_forms.small_products, "LARGEST", 0)  # wide models: PyTorch's
    assert torch.equal(layer(features, Backend("cpp")), layer(features))
