"""The symmetric contraction as an operator with first and second derivatives.

    out[n, o, k] = f_o(x[n, :, k], w[z_n, :, k])                 see ``contraction_program``
    backward:     (gx, gw) from g;      double backward: (hx, hw, hg) from the cotangent vx of gx

Atoms are visited sorted by element, in chunks of one element, whose weights stay in cache; weight
gradients are summed per chunk, then over the chunks of an element in order. Since f is linear in w,
a cotangent vw of gw needs no code of its own: <vw, gw> = <g, f(x, vw)>.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mace_train.ops.codegen.contraction_program import Coupling, contraction_program
from mace_train.ops.codegen.derivative import gradient
from mace_train.ops.codegen.kernel_spec import Kernel, Loop, Operand, Role, sum_kernel
from mace_train.ops.codegen.program import Float, Program
from mace_train.ops.cpp.kernel import pad, unpad
from mace_train.ops.cuda import driver as cuda_driver
from mace_train.ops.cuda.tuning import choices_of
from mace_train.ops.dispatch import CompiledKernel, padded_channels
from mace_train.ops.torch_library import (
    OperatorChain,
    in_common_precision,
    keep_wanted,
    refuse_forward_mode,
)

ATOMS_PER_CHUNK = {"cpu": 32, "cuda": 16}  # more chunks than threads, few partial sums


def rows_per_chunk(device: torch.device) -> int:
    """ATOMS_PER_CHUNK, or what was measured to be better on a GPU of this architecture."""
    if device.type == "cuda":
        measured = choices_of(cuda_driver.architecture(device)).rows_per_chunk
        if measured is not None:
            return measured
    return ATOMS_PER_CHUNK.get(device.type, 32)


@dataclass(frozen=True)
class Chunks:
    """Rows sorted by an index (the element), cut into chunks of one index."""

    order: Tensor  # [n_rows] int64
    first: Tensor  # [n_chunks + 1] int64, into order
    index: Tensor  # [n_chunks] int64, ascending

    @classmethod
    def of(cls, index_of_row: Tensor, n_indices: int) -> "Chunks":
        """Chunks of at most ``rows_per_chunk`` rows of index_of_row [n_rows] int64.

        No synchronization with a device: there the number of chunks is the largest that so many
        rows can need, and the last ones are empty. On a CPU it is exact.
        """
        size = rows_per_chunk(index_of_row.device)
        return cls._of(index_of_row, n_indices, size, exact=index_of_row.device.type == "cpu")

    @classmethod
    def of_size(
        cls,
        index_of_row: Tensor,
        n_indices: int,
        size: int | None = None,
        *,
        ascending: bool = False,
    ) -> "Chunks":
        """As many chunks as so many rows can need, the last ones empty, on every device.

        Takes index_of_row [n_rows] int64; one that is ``ascending`` is not sorted.
        """
        size = size or rows_per_chunk(index_of_row.device)
        return cls._of(index_of_row, n_indices, size, exact=False, ascending=ascending)

    @classmethod
    def _of(
        cls,
        index_of_row: Tensor,
        n_indices: int,
        size: int,
        *,
        exact: bool,
        ascending: bool = False,
    ) -> "Chunks":
        n_rows, device = index_of_row.shape[0], index_of_row.device
        if ascending:
            order = torch.arange(n_rows, device=device)
        else:
            order = torch.argsort(index_of_row, stable=True)
        indices = torch.arange(n_indices + 1, device=device)
        first_row = torch.searchsorted(index_of_row.index_select(0, order), indices)
        first_chunk = ((first_row.diff() + size - 1) // size).cumsum(0)
        first_chunk = torch.nn.functional.pad(first_chunk, (1, 0))
        most = (n_rows + n_indices * (size - 1)) // size
        number = torch.arange(int(first_chunk[-1]) if exact else most, device=device)
        index = torch.searchsorted(first_chunk[1:], number, right=True).clamp(max=n_indices - 1)
        start = first_row[index] + (number - first_chunk[index]) * size
        first = torch.cat((start.clamp(max=n_rows), start.new_full((1,), n_rows)))
        return cls(order, first, index)


class ContractionKernels:
    """The kernels of one coupling."""

    def __init__(self, coupling: Coupling, key: str) -> None:
        self.coupling = coupling
        self.n_out = sum(len(output.first_order) for output in coupling.outputs)
        components, weights = coupling.n_components, coupling.n_weights
        x, v, w = (
            Operand("x", Role.ROW, components),
            Operand("v", Role.ROW, components),
            Operand("w", Role.INDEXED, weights),
        )
        g, out = Operand("g", Role.ROW, self.n_out), Operand("out", Role.ROW, self.n_out)
        gx, hx = Operand("gx", Role.ROW, components), Operand("hx", Role.ROW, components)
        gw, hw = Operand("gw", Role.CHUNK, weights), Operand("hw", Role.CHUNK, weights)
        hg = Operand("hg", Role.ROW, self.n_out)

        def compiled(name: str, inputs: list[Operand], outputs: list[Operand]) -> CompiledKernel:
            def build() -> Kernel:
                return Kernel(Loop.ROWS, self.programs[name], tuple(inputs), tuple(outputs))

            return CompiledKernel(f"contraction {key} {name}", build)

        self.forward = compiled("forward", [x, w], [out])
        self.backward_x = compiled("backward_x", [x, w, g], [gx])
        self.backward_xw = compiled("backward_xw", [x, w, g], [gx, gw])
        self.double = compiled("double", [x, w, g, v], [hx, hw, hg])
        self.sum_chunks = CompiledKernel(f"sum {weights}", lambda: sum_kernel(weights))

    def __repr__(self) -> str:
        """Such as ContractionKernels(x[16] w[29] -> out[4] | 29 paths)."""
        sizes = f"x[{self.coupling.n_components}] w[{self.coupling.n_weights}] -> out[{self.n_out}]"
        return f"ContractionKernels({sizes} | {self.coupling.n_weights} paths)"

    @property
    def of_rows(self) -> list[CompiledKernel]:
        """The kernels over chunks of rows, the slowest to compile first."""
        return [self.double, self.backward_xw, self.backward_x, self.forward]

    @cached_property
    def weight_scale(self) -> Float:
        """[n_weights]: the operator's weights are the coupling's times this."""
        return contraction_program(self.coupling).weight_scale

    @cached_property
    def programs(self) -> dict[str, Program]:
        """The programs by name."""
        forward = contraction_program(self.coupling).program
        backward_x = gradient(forward, {"out": "g"}, {"x": "gx"}).simplified()
        backward_xw = gradient(forward, {"out": "g"}, {"x": "gx", "w": "gw"}).simplified()
        double = gradient(backward_x, {"gx": "v"}, {"x": "hx", "w": "hw", "g": "hg"}).simplified()
        return {
            "forward": forward,
            "backward_x": backward_x,
            "backward_xw": backward_xw,
            "double": double,
        }


_KERNELS: dict[str, ContractionKernels] = {}


def register(coupling: Coupling) -> str:
    """The key of a coupling for ``symmetric_contraction``; the same one in every process."""
    digest = hashlib.sha256(repr((coupling.n_components, coupling.n_weights)).encode())
    for level in coupling.levels:
        digest.update(repr((level.left, level.right, level.sizes)).encode())
        digest.update(level.matrix.tobytes())
    for output in coupling.outputs:
        lists = (output.rows, output.weight_of_row, output.first_order, output.first_weight)
        digest.update(repr(lists).encode())
        digest.update(output.matrix.tobytes())
    key = digest.hexdigest()[:32]
    if key not in _KERNELS:
        _KERNELS[key] = ContractionKernels(coupling, key)
    return key


def kernels_of(key: str) -> ContractionKernels:
    """The kernels behind a key."""
    return _KERNELS[key]


def symmetric_contraction(x: Tensor, w: Tensor, chunks: Chunks, key: str) -> Tensor:
    """Values [n_rows, n_out, n_channels].

    Takes x [n_rows, n_components, n_channels] and w [n_indices, n_weights, n_channels], the
    coupling's weights times ``weight_scale``; the result has their widest dtype, at least float32.
    """
    refuse_forward_mode("symmetric_contraction", x, w)
    x, w = in_common_precision(x, w)
    return _CHAIN(x, w, chunks.order, chunks.first, chunks.index, key)


def _value(x: Tensor, w: Tensor, *rest: Any) -> Tensor:
    """``rest`` is order, first, index, key, here and below."""
    *chunks, key = rest
    kernels = _KERNELS[key]
    n_channels, padded = x.shape[2], padded_channels(x)
    out = x.new_empty(len(x), kernels.n_out, padded)
    inputs = [pad(t, padded) for t in (x, w)]
    kernels.forward.run(len(chunks[2]), chunks, inputs, [out], padded)
    return unpad(out, n_channels)


def _gradient(x: Tensor, w: Tensor, g: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """Gradients of x and w; ``rest`` ends with ``wanted``."""
    *chunks, key, wanted = rest
    kernels, index = _KERNELS[key], chunks[2]
    n_channels, padded = x.shape[2], padded_channels(x)
    inputs = [pad(t, padded) for t in (x, w, g)]
    gx = torch.empty_like(inputs[0])
    if not wanted[1]:
        kernels.backward_x.run(len(index), chunks, inputs, [gx], padded)
        return keep_wanted((unpad(gx, n_channels), w), wanted)
    partial = w.new_empty(len(index), w.shape[1], padded)
    kernels.backward_xw.run(len(index), chunks, inputs, [gx, partial], padded)
    gw = _sum_chunks(kernels, partial, index, len(w))
    return keep_wanted((unpad(gx, n_channels), unpad(gw, n_channels)), wanted)


def _second_gradient(
    x: Tensor, w: Tensor, g: Tensor, vx: Tensor, vw: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    """Gradients of x, w and g; ``rest`` ends with ``given`` and ``wanted``."""
    *chunks, key, given, wanted = rest
    kernels, index = _KERNELS[key], chunks[2]
    n_channels, padded = x.shape[2], padded_channels(x)
    inputs = [pad(t, padded) for t in (x, w, g, vx if given[0] else torch.zeros_like(x))]
    hx, hg = torch.empty_like(inputs[0]), torch.empty_like(inputs[2])
    partial = w.new_empty(len(index), w.shape[1], padded)
    kernels.double.run(len(index), chunks, inputs, [hx, partial, hg], padded)
    hw = _sum_chunks(kernels, partial, index, len(w))
    hx, hw, hg = (unpad(t, n_channels) for t in (hx, hw, hg))
    if given[1]:
        hx = hx + _gradient(x, vw, g, *chunks, key, (True, False))[0]
        hg = hg + _value(x, vw, *chunks, key)
    return keep_wanted((hx, hw, hg), wanted)


def _fake(x: Tensor, w: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(x.shape[0], _KERNELS[rest[-1]].n_out, x.shape[2])


def _sum_chunks(
    kernels: ContractionKernels, partial: Tensor, index: Tensor, n_indices: int
) -> Tensor:
    """Sums [n_indices, ...] over the chunks of each index, in order."""
    total = partial.new_empty(n_indices, *partial.shape[1:])
    chunks = torch.arange(len(index), device=index.device)
    first = torch.searchsorted(index, torch.arange(n_indices + 1, device=index.device))
    kernels.sum_chunks.run(n_indices, [chunks, first, first], [partial], [total], partial.shape[-1])
    return total


_CHAIN = OperatorChain(
    "symmetric_contraction",
    ("x", "w"),
    ("order", "first", "index"),
    value=_value,
    fake=_fake,
    gradient=_gradient,
    second_gradient=_second_gradient,
)
