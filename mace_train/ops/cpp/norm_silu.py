"""A layer norm with its silu on CPU tensors, by ``kernels/norm_silu.cpp``."""

import ctypes
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from mace_train._paths import KERNELS
from mace_train.ops.codegen import kernel_cache
from mace_train.ops.cpp import compiler as cpp_compiler
from mace_train.ops.cpp.kernel import in_threads

EPSILON = 1e-5  # added to variances, as nn.LayerNorm does
_ROWS = 64  # of a chunk
_BYTES = 32  # of a vector: with 64, sums over lanes and comparisons take longer than they save
_TYPES = {torch.float32: ("float", "int"), torch.float64: ("double", "long long")}


class CompiledLayer:
    """``Layer`` of ``ops.hidden_layers``."""

    def __init__(self, z: Tensor, gain: Tensor, shift: Tensor) -> None:
        self._z = z
        self._all = [t.contiguous() for t in (z, gain, shift)]
        self._change: list[Tensor | None] = []
        (self.h,) = self._run("value", [], [torch.empty_like(self._all[0])])

    def tangent(self, dz: Tensor, d_gain: Tensor | None, d_shift: Tensor | None) -> Tensor:
        """The change of h for changes of z, gain and shift."""
        self._change = [None if t is None else t.contiguous() for t in (dz, d_gain, d_shift)]
        (change,) = self._run("tangent", self._change, [torch.empty_like(self._all[0])])
        return change

    def gradient(
        self, g: Tensor, *, of_parameters: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Gradients of z and, if asked for, of gain and shift, for that of h."""
        sums = self._chunks() if of_parameters else None
        (gz,) = self._run("gradient", [g], [torch.empty_like(self._all[0])], sums)
        of_gain, of_shift = (None, None) if sums is None else sums.sum(0).unbind()
        return gz, of_gain, of_shift

    def gradient_of_tangent(
        self, a: Tensor, g: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gradients of the change of z, and of z, gain and shift.

        For those of the change of h and, unless None, of h.
        """
        sums, found = self._chunks(), [torch.empty_like(self._all[0]) for _ in range(2)]
        g_dz, gz = self._run("gradient_of_tangent", [*self._change, a, g], found, sums)
        of_gain, of_shift = sums.sum(0).unbind()
        return g_dz, gz, of_gain, of_shift

    def _chunks(self) -> Tensor:
        n_rows, width = self._z.shape
        return self._z.new_zeros(-(-n_rows // _ROWS), 2, width)

    def _run(
        self,
        name: str,
        inputs: Sequence[Tensor | None],
        outputs: list[Tensor],
        sums: Tensor | None = None,
    ) -> list[Tensor]:
        n_rows, width = self._z.shape
        function = getattr(_library(self._z.dtype, width), name)
        ready = [None if t is None else t.contiguous() for t in inputs]
        pointers = [_pointers(tensors) for tensors in ([*self._all, *ready], [*outputs, sums])]
        in_threads(-(-n_rows // _ROWS), lambda lo, hi: function(lo, hi, n_rows, *pointers))
        return outputs


def _pointers(tensors: Sequence[Tensor | None]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*[t if t is None else t.data_ptr() for t in tensors])


@cache
def _library(dtype: torch.dtype, width: int) -> ctypes.CDLL:
    scalar, integer = _TYPES[dtype]
    values = {
        "SCALAR": scalar,
        "INTEGER": integer,
        "WIDTH": width,
        "BYTES": min(_BYTES, cpp_compiler.register_width()),
        "ROWS": _ROWS,
        "EPSILON": EPSILON,
    }
    lines = [f"#define {name} {value}" for name, value in values.items()]
    source = "\n".join([*lines, (KERNELS / "norm_silu.cpp").read_text()])
    found = cpp_compiler.library(source, kernel_cache.cache_folder())
    for name in ("value", "gradient", "tangent", "gradient_of_tangent"):
        function = getattr(found, name)
        function.argtypes = [*[ctypes.c_long] * 3, *[ctypes.c_void_p] * 2]
        function.restype = None
    return found
