"""Functions of two tensors, linear in each, with derivatives of any order at the price of one node.

A function f(x, w) that is linear in x and in w makes <g, f(x, w)> a number that is linear in x, w
and g. Its three partial gradients

    value(x, w) = d/dg,      of_x(w, g) = d/dx,      of_w(x, g) = d/dw

are functions of two tensors again, linear in each, and the gradients of each are the other two. So
these three, written without autograd, are all derivatives there are. Layers that PyTorch would see
as dozens of small operations are one node of its graph: in small models that is most of their time.
"""

from abc import ABC, abstractmethod
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from mace_train.ops.torch_library import wanted_gradients

X, W, G = range(3)
_OTHERS = {X: (W, G), W: (X, G), G: (X, W)}


class Trilinear(ABC):
    """The number <g, f(x, w)>; its partial gradients take and give tensors without autograd."""

    @abstractmethod
    def value(self, x: Tensor, w: Tensor) -> Tensor:
        """f(x, w)."""

    @abstractmethod
    def of_x(self, w: Tensor, g: Tensor) -> Tensor:
        """The gradient in x."""

    @abstractmethod
    def of_w(self, x: Tensor, g: Tensor) -> Tensor:
        """The gradient in w."""

    def __call__(self, x: Tensor, w: Tensor) -> Tensor:
        """f(x, w), under autograd."""
        return _partial(self, G, x, w)


def _partial(form: Trilinear, argument: int, a: Tensor, b: Tensor) -> Tensor:
    """The gradient in one argument, from the two others in their order."""
    if not torch.is_grad_enabled():
        return _evaluate(form, argument, a, b)
    result: Tensor = _Partial.apply(form, argument, a, b)  # type: ignore[no-untyped-call]
    return result


def _evaluate(form: Trilinear, argument: int, a: Tensor, b: Tensor) -> Tensor:
    return (form.of_x, form.of_w, form.value)[argument](a, b)


class _Partial(Function):
    @staticmethod
    def forward(ctx: Any, form: Trilinear, argument: int, a: Tensor, b: Tensor) -> Tensor:
        ctx.form, ctx.argument = form, argument
        ctx.save_for_backward(a, b)
        return _evaluate(form, argument, a, b)

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        others = _OTHERS[ctx.argument]
        given = dict(zip(others, ctx.saved_tensors, strict=True)) | {ctx.argument: cotangent}
        gradients = (
            _partial(ctx.form, one, *(given[other] for other in _OTHERS[one])) if wanted else None
            for one, wanted in zip(others, wanted_gradients(ctx), strict=True)
        )
        return None, None, *gradients


def scaled_product(a: Tensor, b: Tensor, scale: float, out: Tensor | None = None) -> Tensor:
    """The product scale * a @ b of two matrices, written to ``out`` if that is given."""
    nothing = _nothing(a.dtype, a.device)
    if out is None:
        return torch.addmm(nothing, a, b, beta=0, alpha=scale)
    return torch.addmm(nothing, a, b, beta=0, alpha=scale, out=out)


@cache
def _nothing(dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.zeros((), dtype=dtype, device=device)
