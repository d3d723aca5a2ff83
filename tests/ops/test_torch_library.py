"""A chain of operators against PyTorch's own derivatives: results, masks, what is refused."""

import pytest
import torch

from mace_train.ops.torch_library import OperatorChain, keep_wanted

CALLS = []


def value(a, b, index, key):
    return (a * b).index_select(0, index)


def gradient(a, b, g, index, key, wanted):
    CALLS.append(("gradient", wanted))
    sums = torch.zeros_like(a).index_add(0, index, g)
    return keep_wanted((sums * b, sums * a), wanted)


def second_gradient(a, b, g, va, vb, index, key, given, wanted):
    CALLS.append(("second_gradient", given, wanted))
    sums = torch.zeros_like(a).index_add(0, index, g)
    va, vb = (
        v if is_given else torch.zeros_like(a) for v, is_given in zip((va, vb), given, strict=True)
    )
    of_g = (va * b + vb * a).index_select(0, index)
    return keep_wanted((sums * vb, sums * va, of_g), wanted)


CHAIN = OperatorChain(
    "test_product_of_rows",
    ("a", "b"),
    ("index",),
    value=value,
    fake=lambda a, b, index, key: a.new_empty(len(index), a.shape[1]),
    gradient=gradient,
    second_gradient=second_gradient,
)


@pytest.fixture
def inputs():
    CALLS.clear()
    torch.manual_seed(0)
    a, b = (torch.randn(3, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    return a, b, torch.tensor([2, 0, 0, 1])


def test_schemas():
    assert str(CHAIN.value._schema) == (
        "mace_train::test_product_of_rows(Tensor a, Tensor b, Tensor index, str key) -> Tensor"
    )
    assert str(CHAIN.second_gradient._schema) == (
        "mace_train::test_product_of_rows_double_backward(Tensor a, Tensor b, Tensor g, Tensor va, "
        "Tensor vb, Tensor index, str key, bool[] given, bool[] wanted) -> (Tensor, Tensor, Tensor)"
    )


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own use
def test_derivatives(inputs):
    a, b, index = inputs

    def function(a, b):
        return CHAIN.value(a, b, index, "key")

    assert torch.equal(function(a, b), (a * b)[index])
    assert torch.autograd.gradcheck(function, (a, b))
    assert torch.autograd.gradgradcheck(function, (a, b))


def test_masks_have_what_the_backward_pass_uses(inputs):
    a, b, index = inputs
    out = CHAIN.value(a.sin(), b.sin(), index, "key")
    (first,) = torch.autograd.grad(out.square().sum(), b, create_graph=True)
    assert CALLS == [("gradient", [False, True])]
    torch.autograd.grad(first.square().sum(), a)
    assert CALLS[1] == ("second_gradient", [False, True], [True, False, True])


def test_third_derivative_is_refused(inputs):
    a, b, index = inputs
    out = CHAIN.value(a, b, index, "key")
    (first,) = torch.autograd.grad(out.square().sum(), a, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), b, create_graph=True)
    with pytest.raises(NotImplementedError, match="first and second derivatives only"):
        torch.autograd.grad(second.sum(), a)


@pytest.mark.filterwarnings("ignore")
def test_shapes_for_tracing(inputs):
    a, b, index = inputs
    checks = {"test_utils": ("test_schema", "test_faketensor")}
    g, v = torch.randn(4, 2, dtype=torch.float64), (torch.randn_like(a), torch.randn_like(b))
    torch.library.opcheck(CHAIN.value, (a, b, index, "key"))
    for wanted in ([True, True], [False, True], [False, False]):
        torch.library.opcheck(CHAIN.gradient, (a, b, g, index, "key", wanted), **checks)
        arguments = (a, b, g, *v, index, "key", [True, False], [*wanted, True])
        torch.library.opcheck(CHAIN.second_gradient, arguments, **checks)
