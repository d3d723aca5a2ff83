"""Products with the matrix of a group: the operator against a gather and finite differences."""

import pytest
import torch

from mace_train.ops import grouped_matmul as module


def case(sizes, n_in=3, n_out=4):
    torch.manual_seed(0)
    first = torch.tensor([0, *sizes]).cumsum(0)
    x = torch.randn(sum(sizes), 2, n_in, dtype=torch.float64, requires_grad=True)
    w = torch.randn(len(sizes), n_in, n_out, dtype=torch.float64, requires_grad=True)
    return x, w, first


@pytest.mark.parametrize("sizes", [(2, 0, 3, 1), (0, 5), (1,), (0, 0)])
def test_equal_to_a_gather(sizes):
    x, w, first = case(sizes)
    groups = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    slow = torch.einsum("nai,nio->nao", x, w[groups])
    for found in (module.grouped_matmul(x, w, first), module._matmul(x, w, first)):
        torch.testing.assert_close(found, slow, rtol=0.0, atol=1e-13)
        expected = torch.autograd.grad(slow.sin().sum(), (x, w), retain_graph=True)
        for mine, right in zip(
            torch.autograd.grad(found.sin().sum(), (x, w)), expected, strict=True
        ):
            torch.testing.assert_close(mine, right, rtol=0.0, atol=1e-13)


def test_derivatives_of_the_operator():
    x, w, first = case((2, 0, 1))
    turned = x.detach().transpose(0, 2).contiguous().transpose(0, 2).requires_grad_()
    assert not turned.is_contiguous()
    for rows in (x, turned):
        assert torch.autograd.gradcheck(lambda x, w: module._matmul(x, w, first), (rows, w))
        assert torch.autograd.gradgradcheck(lambda x, w: module._matmul(x, w, first), (rows, w))
    # of the operator that is its derivative
    assert torch.autograd.gradgradcheck(
        lambda x, w: module._weights(x, module._matmul(x, w, first), first), (x, w)
    )


@pytest.mark.filterwarnings("ignore")
def test_operator_registrations():
    x, w, first = case((2, 0, 1))
    torch.library.opcheck(module._matmul, (x, w, first))
    g = torch.randn(3, 2, 5, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(module._weights, (x, g, first))
