"""Hidden layers as an operator: against modules of PyTorch, with all derivatives."""

import itertools

import pytest
import torch
from torch import nn

from mace_train.ops import hidden_layers as operator
from mace_train.ops.cpp.compiler import find_compiler
from mace_train.ops.hidden_layers import hidden_layers
from tests.ops.kernels import needs_compiler

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


@pytest.mark.usefixtures("way")
def test_single_precision():
    """With rows that are not contiguous, and a cotangent that is expanded."""
    z, network = network_of([6, 3, 5])
    parameters = list(network.parameters())
    expected = step(network, z, parameters)
    single = z.detach().float().T.contiguous().T.requires_grad_()
    weights = [t.detach().float().requires_grad_() for t in parameters]
    found = step(lambda z: hidden_layers(z, weights), single, weights)
    for mine, right in zip(found, expected, strict=True):
        scale = 1 + float(right.detach().abs().max())
        torch.testing.assert_close(mine.double(), right, rtol=0, atol=1e-5 * scale)
    (mine,) = torch.autograd.grad(hidden_layers(single, weights).sum(), single)
    (right,) = torch.autograd.grad(network(z).sum(), z)
    torch.testing.assert_close(mine.double(), right, rtol=0, atol=1e-4)


@pytest.mark.usefixtures("way")
def test_products_in_a_narrow_type_are_those_of_the_modules():
    z, network = network_of([6, 5], torch.float32)
    first, _, linear, second, _ = network
    inner = torch.nn.functional.silu(first(z)).bfloat16() @ linear.weight.T.bfloat16()
    expected = torch.nn.functional.silu(second(inner.float() + linear.bias))
    found = hidden_layers(z, list(network.parameters()), torch.bfloat16)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    parameters = [z, *network.parameters()]
    mine, theirs = (torch.autograd.grad(h.sin().sum(), parameters) for h in (found, expected))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=3e-2 * (1 + float(b.abs().max())))


@pytest.mark.usefixtures("way")
def test_large_values_and_not_a_number():
    z, network = network_of([5])
    with torch.no_grad():
        network[0].weight *= 1e4
        z[1, 2] = torch.nan
    parameters = list(network.parameters())
    found = step(lambda z: hidden_layers(z, parameters), z, parameters)
    for mine, theirs in zip(found, step(network, z, parameters), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9, equal_nan=True)


@needs_compiler
def test_bitwise_equal_for_any_number_of_threads():
    z, network = network_of([5], torch.float32, n_rows=500)
    parameters = list(network.parameters())
    before, results = torch.get_num_threads(), []
    try:
        for n_threads in (1, 2, 7):
            torch.set_num_threads(n_threads)
            results.append(step(lambda z: hidden_layers(z, parameters), z, parameters))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@needs_compiler
def test_third_derivative_is_refused():
    z, network = network_of([5])
    h = hidden_layers(z, list(network.parameters()))
    (first,) = torch.autograd.grad(h.sin().sum(), z, create_graph=True)
    (second,) = torch.autograd.grad(first.sin().sum(), z, create_graph=True)
    with pytest.raises(NotImplementedError, match="third"):
        torch.autograd.grad(second.sum(), z)
