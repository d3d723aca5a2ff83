"""Runs compiled kernels on CPU tensors, with threads over ranges.

The items of a kernel's loop (chunks or receivers) are split into contiguous ranges. Every item
writes memory of its own, in an order of its own, so results are bitwise the same for any number of
threads and any split.
"""

import ctypes
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mace_train.ops.codegen import kernel_cache
from mace_train.ops.codegen.kernel_spec import Kernel
from mace_train.ops.cpp import compiler as cpp_compiler
from mace_train.ops.cpp.emit import Target, emit_cpp

_SCALARS = {torch.float32: "float", torch.float64: "double"}
_RANGES_PER_THREAD = 4


@dataclass
class CppKernel:
    """A kernel that is generated and compiled when it first runs, for each dtype and width.

    ``recipe`` identifies it among all kernels that this package can generate.
    """

    recipe: str
    build: Callable[[], Kernel]
    _functions: dict[tuple[torch.dtype, int], Any] = field(default_factory=dict)

    def prepare(self, dtype: torch.dtype, n_channels: int, folder: Path | None = None) -> Any:
        """The compiled function for tensors of a dtype and a padded number of channels."""
        key = (dtype, n_channels)
        if key not in self._functions:
            folder = folder or kernel_cache.cache_folder()
            function = cpp_compiler.library(self.source(dtype, n_channels, folder), folder).run
            function.argtypes = [ctypes.c_int64, ctypes.c_int64, *[ctypes.c_void_p] * 3]
            function.restype = None
            self._functions[key] = function
        return self._functions[key]

    def source(self, dtype: torch.dtype, n_channels: int, folder: Path) -> str:
        """The C++ for tensors of a dtype and a padded number of channels."""
        target = Target(_SCALARS[dtype], cpp_compiler.register_width(), n_channels)
        recipe = f"{self.recipe} {target}"
        return kernel_cache.source_of(
            recipe, ".cpp", lambda: emit_cpp(self.build(), target), folder
        )

    def run(
        self,
        n_items: int,
        index: Sequence[Tensor],
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        n_channels: int,
    ) -> list[int]:
        """Compute the outputs, in place; floating tensors are contiguous, padded to ``n_channels``.

        Returns the bounds of the ranges of items that the work was split into.
        """
        if n_items == 0:
            return [0]
        assert all(t.is_contiguous() for t in (*index, *inputs, *outputs))
        assert all(t.dtype == torch.int64 for t in index)
        function = self.prepare(outputs[0].dtype, n_channels)
        arguments = [_pointers(tensors) for tensors in (index, inputs, outputs)]
        return in_threads(n_items, lambda lo, hi: function(lo, hi, *arguments))


def padded_channels(n_channels: int, dtype: torch.dtype) -> int:
    """The least multiple of the register's lanes."""
    lanes = cpp_compiler.register_width() // dtype.itemsize
    return -(-n_channels // lanes) * lanes


def pad(tensor: Tensor, n_channels: int) -> Tensor:
    """The tensor [..., k], contiguous, with zero channels up to ``n_channels``."""
    missing = n_channels - tensor.shape[-1]
    return torch.nn.functional.pad(tensor, (0, missing)) if missing else tensor.contiguous()


def unpad(tensor: Tensor, n_channels: int) -> Tensor:
    """The first ``n_channels`` of a tensor [..., k], contiguous."""
    return tensor if tensor.shape[-1] == n_channels else tensor[..., :n_channels].contiguous()


def _pointers(tensors: Sequence[Tensor]) -> Any:
    return (ctypes.c_void_p * len(tensors))(*[tensor.data_ptr() for tensor in tensors])


def in_threads(n_items: int, work: Callable[[int, int], None]) -> list[int]:
    """Call ``work`` for ranges that divide the items; returns their bounds."""
    n_threads = min(torch.get_num_threads(), n_items)
    if n_threads == 1:
        work(0, n_items)
        return [0, n_items]
    n_ranges = min(n_items, n_threads * _RANGES_PER_THREAD)
    bounds = [n_items * i // n_ranges for i in range(n_ranges + 1)]
    list(_pool(n_threads, os.getpid()).map(work, bounds[:-1], bounds[1:]))
    return bounds


@cache
def _pool(n_threads: int, process: int) -> ThreadPoolExecutor:
    """Threads of this process; a forked child makes its own."""
    return ThreadPoolExecutor(n_threads, thread_name_prefix=f"kernels-{process}")
