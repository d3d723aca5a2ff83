"""Perceptrons against PyTorch's own derivatives of the same formulas."""

from itertools import pairwise

import pytest
import torch

from mace_train.model.radial import SILU_GAIN, RadialNetwork
from mace_train.ops.perceptron import perceptron

WIDTHS = [[3, 2], [3, 4, 2], [3, 5, 4, 6]]


def network(widths):
    """x [7, n_in], the weights, and their numbers c."""
    torch.manual_seed(0)
    x = torch.randn(7, widths[0], dtype=torch.float64, requires_grad=True)
    weights = [
        torch.randn(pair, dtype=torch.float64, requires_grad=True) for pair in pairwise(widths)
    ]
    return x, weights, tuple(0.3 + 0.2 * i for i in range(len(weights)))


def plain(x, weights, scales):
    for i, (weight, scale) in enumerate(zip(weights, scales, strict=True)):
        x = scale * (torch.nn.functional.silu(x) if i else x) @ weight
    return x


def loss(function, x, weights, scales):
    """One on the value and on its derivative in an inner tensor, as a loss of forces is."""
    inner = x.sin()
    value = function(inner, weights, scales)
    (gradient,) = torch.autograd.grad(value.square().sum(), inner, create_graph=True)
    return (gradient.square() * torch.arange(1.0, 4.0)).sum() + value.cos().sum()


@pytest.mark.parametrize("widths", WIDTHS)
def test_value_and_first_derivatives(widths):
    x, weights, scales = network(widths)
    found, expected = perceptron(x, weights, scales), plain(x, weights, scales)
    torch.testing.assert_close(found, expected)
    with torch.no_grad():
        assert torch.equal(perceptron(x, weights, scales), found)
    pairs = zip(
        torch.autograd.grad(found.cos().sum(), [x, *weights]),
        torch.autograd.grad(expected.cos().sum(), [x, *weights]),
        strict=True,
    )
    for one, other in pairs:
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("only_weights", [True, False])
def test_gradient_of_a_loss_on_the_derivative(widths, only_weights):
    x, weights, scales = network(widths)
    wanted = weights if only_weights else [x, *weights]
    found, expected = (
        torch.autograd.grad(loss(function, x, weights, scales), wanted)
        for function in (perceptron, plain)
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("widths", WIDTHS)
def test_third_derivatives(widths):
    x, weights, scales = network(widths)

    def third(function):
        second = torch.autograd.grad(
            loss(function, x, weights, scales), [x, weights[0]], create_graph=True
        )
        return torch.autograd.grad(sum(t.square().sum() for t in second), [x, *weights])

    for one, other in zip(third(perceptron), third(plain), strict=True):
        torch.testing.assert_close(one, other)


def test_gradients_by_differences():
    x, weights, scales = network(WIDTHS[-1])

    def function(x, *weights):
        return perceptron(x, weights, scales)

    assert torch.autograd.gradcheck(function, (x, *weights))
    assert torch.autograd.gradgradcheck(function, (x, *weights))


def test_frozen_weights_get_no_gradient():
    x, weights, scales = network(WIDTHS[-1])
    weights[1].requires_grad_(False)
    loss(perceptron, x, weights, scales).backward()
    assert weights[1].grad is None
    assert weights[0].grad is not None


def test_no_rows():
    x, weights, scales = network(WIDTHS[-1])
    empty = x[:0]
    assert perceptron(empty, weights, scales).shape == (0, 6)
    gradients = torch.autograd.grad(loss(perceptron, empty, weights, scales), weights)
    assert all(bool((g == 0).all()) for g in gradients)


def test_radial_network_gives_the_product_of_its_factors():
    torch.manual_seed(0)
    radial = RadialNetwork(3, [5, 4], n_paths=2, n_channels=3).double()
    basis = torch.randn(6, 3, dtype=torch.float64)
    torch.testing.assert_close(radial.product(basis), radial.stacked(*radial.hidden(basis)))
    assert radial.product(basis).shape == (6, 2, 3)
    cutoff = torch.rand(6, 1, dtype=torch.float64)
    torch.testing.assert_close(
        radial.product(basis, cutoff), radial.product(basis) * cutoff[..., None]
    )
    assert SILU_GAIN > 1.6
