"""Networks of directed edges and gates: against plain PyTorch and e3nn, and derivatives."""

import pytest
import torch

from mace_train.irreps import importing_e3nn
from mace_train.model.batch_index import BatchIndex, SharedWeights
from mace_train.model.gate import gated
from mace_train.model.radial_mlp import EdgeInputs, PathMLP, RadialMLP, radial_mlp_size
from mace_train.ops.backends import Backend

SENDERS, RECEIVERS = torch.tensor([[1, 2, 0, 0, 1], [0, 0, 1, 2, 2]])
ELEMENTS = torch.tensor([0, 1, 1])
ENDS = {"n_elements": 2, "edge_ends": True, "shared_weights": SharedWeights.OF_ELEMENTS}


def columns(seed=0):
    """The values of 5 edges, and of both elements as senders and receivers."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(n, width, dtype=torch.float64, generator=generator).requires_grad_()
        for n, width in ((5, 4), (3, 3), (3, 2))
    ]


def inputs_of(backend, *parts):
    index = BatchIndex.of(Backend(backend), ELEMENTS, SENDERS, RECEIVERS, **ENDS)
    return EdgeInputs(*parts, index)


def joined(of_edges, of_senders, of_receivers):
    """The columns as mace-torch has them."""
    return torch.cat((of_edges, of_senders[SENDERS], of_receivers[RECEIVERS]), 1)


@pytest.mark.parametrize("backend", ["reference", "cpp"])
def test_as_a_network_of_all_columns(backend):
    torch.manual_seed(0)
    network, parts = RadialMLP([9, 6, 7, 2]).double(), columns()
    assert sum(p.numel() for p in network.parameters()) == radial_mlp_size([9, 6, 7, 2])
    torch.testing.assert_close(network(inputs_of(backend, *parts)), network.net(joined(*parts)))


@pytest.mark.parametrize("widths", [[6], [7, 8], [5]])
@pytest.mark.parametrize("with_cutoff", [True, False])
def test_factors_of_the_weights_of_paths(widths, with_cutoff):
    torch.manual_seed(0)
    network, parts = PathMLP(9, widths, 3, 2).double(), columns()
    cutoff = torch.rand(5, 1).double() if with_cutoff else None
    hidden, last = network.hidden(inputs_of("reference", *parts), cutoff)
    assert hidden.shape[1] % 8 == 0
    expected = network.net(joined(*parts)) * (1.0 if cutoff is None else cutoff)
    torch.testing.assert_close(network.stacked(hidden, last).flatten(1), expected)
    by_path = torch.stack(network.by_path(hidden, last), 1)
    torch.testing.assert_close(by_path.flatten(1), expected)


def test_second_derivatives():
    torch.manual_seed(0)
    network, parts = PathMLP(9, [4, 3], 2, 2).double(), columns()
    cutoff = torch.rand(5, 1, dtype=torch.float64, requires_grad=True)

    def weights(cutoff, *parts):
        return network.stacked(*network.hidden(inputs_of("reference", *parts), cutoff))

    assert torch.autograd.gradcheck(weights, (cutoff, *parts))
    assert torch.autograd.gradgradcheck(weights, (cutoff, *parts))


def degrees_with_gates():
    torch.manual_seed(0)
    shapes = ((4, 1, 3 * 2), (4, 3, 2), (4, 5, 2))
    return [torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in shapes]


def test_second_derivatives_of_gates():
    def joined_degrees(*degrees):
        return torch.cat([degree.flatten(1) for degree in gated(degrees)], 1)

    assert torch.autograd.gradcheck(joined_degrees, tuple(degrees_with_gates()))
    assert torch.autograd.gradgradcheck(joined_degrees, tuple(degrees_with_gates()))


@pytest.mark.filterwarnings("ignore")
def test_gates_are_those_of_e3nn():
    with importing_e3nn():
        from e3nn.nn import Gate
    silu, sigmoid = torch.nn.functional.silu, torch.sigmoid
    gate = Gate("2x0e", [silu], "2x0e+2x0e", [sigmoid, sigmoid], "2x1o+2x2e").double()
    degrees = degrees_with_gates()
    # e3nn has the components of a channel together
    rows = torch.cat([degree.transpose(1, 2).flatten(1) for degree in degrees], 1)
    found = torch.cat([degree.transpose(1, 2).flatten(1) for degree in gated(degrees)], 1)
    torch.testing.assert_close(found, gate(rows), rtol=1e-6, atol=0)
