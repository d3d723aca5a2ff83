"""Sums of rows by an index, in an order that is always the same, on a GPU too.

    out[i] = sum_{n: index[n] = i} rows[n]

``index_add`` on a GPU adds in an order that varies from run to run. Here rows are sorted by their
index and cut into chunks, a chunk is summed by one thread per column, and so are the chunks of an
index: repeated runs give the same bits. On a CPU it is ``index_add``, whose order is fixed there.
Both operators are the derivative of one another, so there are derivatives of any order.
"""

import math
from typing import Any, Protocol

import torch
from torch import Tensor

from mace_train.ops.codegen.kernel_spec import sum_kernel
from mace_train.ops.dispatch import CompiledKernel, runs_on_cuda
from mace_train.ops.symmetric_contraction import Chunks
from mace_train.ops.torch_library import operator

ROWS_PER_CHUNK = 64
_SUM = CompiledKernel("sum 1", lambda: sum_kernel(1))


class Sums(Protocol):
    """``sum_rows`` or ``add_rows``."""

    def __call__(self, rows: Tensor, index: Tensor, n: int, *, ascending: bool = False) -> Tensor:
        """[n, ...] sums of rows [n_rows, ...] by index [n_rows] int64."""
        ...


def sum_rows(rows: Tensor, index: Tensor, n: int, *, ascending: bool = False) -> Tensor:
    """[n, ...] sums of rows [n_rows, ...], float32 or float64, by index [n_rows] int64.

    An index that is ``ascending`` need not be sorted.
    """
    if runs_on_cuda(rows.device) and n > 0:
        flat: Tensor = _sum_rows(_flat(rows), index, n, ascending)
        return flat.view(n, *rows.shape[1:])
    return add_rows(rows, index, n)


def add_rows(rows: Tensor, index: Tensor, n: int, *, ascending: bool = False) -> Tensor:
    """``sum_rows`` by ``index_add`` on every device, for programs without our operators."""
    return rows.new_zeros(n, *rows.shape[1:]).index_add(0, index, rows)


def take_rows(values: Tensor, index: Tensor) -> Tensor:
    """[n_rows, ...] rows of values [n, ...], picked by index [n_rows] int64.

    The gradient of values is a ``sum_rows``.
    """
    if runs_on_cuda(values.device):
        flat: Tensor = _take_rows(_flat(values), index, False)
        return flat.view(index.shape[0], *values.shape[1:])
    return values.index_select(0, index)


def _flat(rows: Tensor) -> Tensor:
    return rows.reshape(rows.shape[0], math.prod(rows.shape[1:]))


@operator("sum_rows", lambda rows, index, n, ascending: rows.new_empty(n, rows.shape[1]))
def _sum_rows(rows: Tensor, index: Tensor, n: int, ascending: bool) -> Tensor:
    n_columns = rows.shape[1]
    chunks = Chunks.of_size(index, n, ROWS_PER_CHUNK, ascending=ascending)
    n_chunks = chunks.index.shape[0]
    partial, total = rows.new_empty(n_chunks, n_columns), rows.new_empty(n, n_columns)
    of_chunk = [chunks.order, chunks.first, chunks.index]
    _SUM.run(n_chunks, of_chunk, [rows.contiguous()], [partial], n_columns)
    every = torch.arange(n_chunks, device=index.device)
    first = torch.searchsorted(chunks.index, torch.arange(n + 1, device=index.device))
    _SUM.run(n, [every, first, first], [partial], [total], n_columns)
    return total


@operator(
    "take_rows",
    lambda values, index, ascending: values.new_empty(index.shape[0], values.shape[1]),
)
def _take_rows(values: Tensor, index: Tensor, ascending: bool) -> Tensor:
    return values.index_select(0, index)


def _save_sum(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.ascending = inputs[3]


def _save_take(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.n, ctx.ascending = inputs[0].shape[0], inputs[2]


def _gradient_of_sum(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
    return _take_rows(gradient, *ctx.saved_tensors, ctx.ascending), None, None, None


def _gradient_of_take(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
    return _sum_rows(gradient, *ctx.saved_tensors, ctx.n, ctx.ascending), None, None


torch.library.register_autograd(_sum_rows, _gradient_of_sum, setup_context=_save_sum)
torch.library.register_autograd(_take_rows, _gradient_of_take, setup_context=_save_take)
