"""Matrix products of rows with the matrix of their group, which PyTorch can trace.

    out[n] = x[n] @ w[group of n]            for rows sorted by group

The group sizes are data, so a trace that sees one product per group would be wrong for the next
batch. Where sizes are not known, while tracing, they stay behind an operator; its gradients are
operators of the same two kinds, so it is differentiable any number of times, on every device.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from mace_train.ops.torch_library import in_common_precision, is_wanted, operator


def grouped_matmul(x: Tensor, w: Tensor, first: Tensor) -> Tensor:
    """Products [n_rows, n, n_out].

    Takes x [n_rows, n, n_in], w [n_groups, n_in, n_out] and first [n_groups + 1], int64 on the
    CPU: rows first[g]..first[g + 1] belong to group g.
    """
    if type(first) is Tensor:
        return _products(x, w, first)
    result: Tensor = _matmul(*in_common_precision(x, w), first)
    return result


def _products(x: Tensor, w: Tensor, first: Tensor) -> Tensor:
    # no rows keep one empty product, which ties the weights to the result
    groups = _groups(first) or [(0, slice(0, 0))]
    return torch.cat([x[rows] @ w[group] for group, rows in groups])


@operator("grouped_matmul", lambda x, w, first: x.new_empty(*x.shape[:2], w.shape[2]))
def _matmul(x: Tensor, w: Tensor, first: Tensor) -> Tensor:
    return _products(x, w, first)


@operator(
    "grouped_matmul_weights",
    lambda x, g, first: x.new_empty(first.shape[0] - 1, x.shape[2], g.shape[2]),
)
def _weights(x: Tensor, g: Tensor, first: Tensor) -> Tensor:
    """Sums [n_groups, n_in, n_out] of x[n]^T @ g[n] over the rows of each group."""
    out = x.new_zeros(len(first) - 1, x.shape[2], g.shape[2])
    for group, rows in _groups(first):
        torch.mm(x[rows].flatten(0, 1).T, g[rows].flatten(0, 1), out=out[group])
    return out


def _groups(first: Tensor) -> list[tuple[int, slice]]:
    """Groups that have rows, and which."""
    bounds = first.tolist()
    return [(g, slice(lo, hi)) for g, (lo, hi) in enumerate(pairwise(bounds)) if lo < hi]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _matmul_gradient(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    x, w, first = ctx.saved_tensors
    gx = _matmul(g, w.transpose(1, 2), first) if is_wanted(ctx, 0) else None
    return gx, _weights(x, g, first) if is_wanted(ctx, 1) else None, None


def _weights_gradient(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
    x, g, first = ctx.saved_tensors
    gx = _matmul(g, v.transpose(1, 2), first) if is_wanted(ctx, 0) else None
    return gx, _matmul(x, v, first) if is_wanted(ctx, 1) else None, None


torch.library.register_autograd(_matmul, _matmul_gradient, setup_context=_save)
torch.library.register_autograd(_weights, _weights_gradient, setup_context=_save)
