"""Hidden layers as an operator: against modules of PyTorch, with all derivatives."""

import itertools

import pytest
import torch
from torch import nn

from mace_train.ops import hidden_layers as operator
from mace_train.ops.cpp.compiler import find_compiler
from mace_train.ops.hidden_layers import hidden_layers

WIDTHS = ([5], [4, 6], [6, 3, 5])


def network_of(widths, dtype=torch.float64, n_rows=7):
    """Rows z, and parameters away from what they are before training."""
    torch.manual_seed(0)
    modules = [nn.LayerNorm(widths[0]), nn.SiLU()]
    for a, b in itertools.pairwise(widths):
        modules += [nn.Linear(a, b), nn.LayerNorm(b), nn.SiLU()]
    network = nn.Sequential(*modules).to(dtype)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += torch.randn_like(parameter)
    return torch.randn(n_rows, widths[0], dtype=dtype, requires_grad=True), network


@pytest.fixture(params=["C++", "C++, some rows at a time", "PyTorch"])
def way(request, monkeypatch):
    """How rows are computed; that of a GPU on CPU tensors."""
    if request.param == "PyTorch":
        monkeypatch.setattr(operator, "runs_on_cuda", lambda device: True)
    elif find_compiler() is None:
        pytest.skip("needs a C++ compiler")
    if request.param == "C++, some rows at a time":
        monkeypatch.setattr(operator, "VALUES_ON_A_CPU", 12)


def step(function, z, parameters, of=None):
    """Value, first derivatives, and second ones of rows and parameters as training takes them."""
    h = function(z)
    (gz,) = torch.autograd.grad(h.sin().sum(), z, create_graph=True)
    loss = gz.square().sum() + h.cos().sum()
    return [h, gz, *torch.autograd.grad(loss, [z, *parameters] if of is None else of)]


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("n_rows", [0, 1, 7])
def test_equal_to_the_modules(widths, n_rows):
    z, network = network_of(widths, n_rows=n_rows)
    parameters = list(network.parameters())
    found = step(lambda z: hidden_layers(z, parameters), z, parameters)
    for mine, theirs in zip(found, step(network, z, parameters), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("widths", WIDTHS)
def test_all_derivatives(widths):
    z, network = network_of(widths)
    tensors = (z, *network.parameters())

    def run(z, *parameters):
        return hidden_layers(z, parameters)

    assert torch.autograd.gradcheck(run, tensors)
    assert torch.autograd.gradgradcheck(run, tensors)
