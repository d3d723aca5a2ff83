"""Functions that keep their inputs alone, and compute the rest again in every pass.

Training on forces differentiates twice. A function y = f(x) then takes part in four passes,

    energy    y = f(x)                 forces    gx = gy df/dx
    loss      second derivatives, of gx, and first ones, of y

and each of the last three computes f again from x, so that nothing but x, y, gx and gy is kept
between the passes. (``torch.utils.checkpoint`` saves no memory here: what it computes again for
the forces is held by the graph of their derivative.) Cost: three values and one derivative more
per step. The arithmetic is the same, so are the results.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import compress
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from mace_train.ops.torch_library import wanted_gradients

Tensors = tuple[Tensor, ...]
Gradients = tuple[Tensor | None, ...]


def checkpointed(function: Callable[..., Tensors], *inputs: Tensor) -> Tensors:
    """``function(*inputs)`` without keeping intermediate results; twice differentiable.

    The function has no random numbers and no side effects, and whatever is differentiated is among
    its inputs.
    """
    if not torch.is_grad_enabled():
        return function(*inputs)
    result: Tensors = _Value.apply(function, *inputs)  # type: ignore[no-untyped-call]
    return result


class _Value(Function):
    """y = f(x)."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensors], *inputs: Tensor) -> Tensors:
        ctx.function = function
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs)
        return function(*inputs)

    @staticmethod
    def backward(ctx: Any, *g: Tensor | None) -> Gradients:
        wanted, given = wanted_gradients(ctx), [one is not None for one in g]
        gradients = _Gradient.apply(  # type: ignore[no-untyped-call]
            ctx.function, wanted, given, *ctx.saved_tensors, *compress(g, given)
        )
        return None, *gradients


class _Gradient(Function):
    """The gradients of <g, f(x)> that are wanted, None for the others."""

    @staticmethod
    def forward(
        ctx: Any,
        function: Callable[..., Tensors],
        wanted: list[bool],
        given: list[bool],
        *tensors: Tensor,
    ) -> Gradients:
        ctx.function, ctx.wanted, ctx.given = function, wanted, given
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        n = len(wanted)
        inputs = _fresh(tensors[:n], wanted)
        with torch.enable_grad():
            outputs = compress(function(*inputs), given)
        return _gradients(outputs, inputs, tensors[n:], wanted)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor | None) -> Gradients:
        n, wanted = len(ctx.wanted), wanted_gradients(ctx)
        either = [a or b for a, b in zip(ctx.wanted, wanted[:n], strict=True)]
        inputs = _fresh(ctx.saved_tensors[:n], either)
        g = _fresh(ctx.saved_tensors[n:], wanted[n:])
        with torch.enable_grad():
            outputs = compress(ctx.function(*inputs), ctx.given)
            first = _gradients(outputs, inputs, g, ctx.wanted, create_graph=True)
        both = [
            (value, v)
            for value, v in zip(first, cotangents, strict=True)
            if value is not None and v is not None
        ]
        values, v = [value for value, _ in both], [v for _, v in both]
        return None, None, None, *_gradients(values, [*inputs, *g], v, wanted)


def _fresh(tensors: Sequence[Tensor], differentiable: Sequence[bool]) -> list[Tensor]:
    """The same values, at the beginning of a graph."""
    pairs = zip(tensors, differentiable, strict=True)
    return [tensor.detach().requires_grad_(wanted) for tensor, wanted in pairs]


def _gradients(
    values: Iterable[Tensor],
    sources: Sequence[Tensor],
    g: Sequence[Tensor],
    wanted: Sequence[bool],
    *,
    create_graph: bool = False,
) -> Gradients:
    """Of the wanted sources, None for the others and for those that no value depends on."""
    pairs = [(value, one) for value, one in zip(values, g, strict=True) if value.requires_grad]
    if not pairs or not any(wanted):
        return (None,) * len(wanted)
    found = iter(
        torch.autograd.grad(
            [value for value, _ in pairs],
            list(compress(sources, wanted)),
            [one for _, one in pairs],
            allow_unused=True,
            create_graph=create_graph,
        )
    )
    return tuple(next(found) if is_wanted else None for is_wanted in wanted)
