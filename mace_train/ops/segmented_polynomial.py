"""Any polynomial over rows as one operator of PyTorch, with first and second derivatives.

Public, for couplings of one's own; MACE does not use it: its operators are
``symmetric_contraction`` and ``convolution``.

    out_s[n, k] = sum_t c_t x_(a_t)[n, k] x_(b_t)[n, k] ...        (``polynomial``)

Tensors by the kind of their operand:

    ROW       [n_rows, n_segments, n_channels]
    INDEXED   [n_indices, n_segments, n_channels], row index[n] of it for row n
    CONSTANT  [1, n_segments, n_channels]
    UNIFORM   [n_rows, n_segments], the same for all channels; outputs of this kind are sums over
              channels

Backends: ``reference`` evaluates the program by PyTorch, differentiable any number of times, on
every device; ``cpp`` and ``cuda`` run generated kernels, up to second derivatives. They are equal
to rounding.
"""

import hashlib
from collections.abc import Mapping, Sequence
from itertools import compress

import torch
from torch import Tensor

from mace_train.ops.backends import backend_of
from mace_train.ops.codegen.polynomial import Kind
from mace_train.ops.codegen.program import Segment
from mace_train.ops.cpp.kernel import pad, unpad
from mace_train.ops.dispatch import CompiledKernel, padded_channels, runs_on_cuda
from mace_train.ops.segmented_kernels import Operation, SegmentedKernels
from mace_train.ops.torch_library import (
    OperatorChain,
    in_common_precision,
    refuse_forward_mode,
)

_KERNELS: dict[str, SegmentedKernels] = {}


def register(operation: Operation) -> str:
    """The key of an operation for ``segmented_polynomial``; the same one in every process."""
    polynomial = operation.polynomial
    terms = sorted((output, sorted(of.items())) for output, of in polynomial.terms.items())
    kinds = [(name, kind.name) for name, kind in polynomial.operands.items()]
    shapes = (sorted(operation.n_segments.items()), sorted(operation.summed), operation.outputs)
    key = hashlib.sha256(repr((kinds, terms, shapes)).encode()).hexdigest()[:32]
    if key not in _KERNELS:
        _KERNELS[key] = SegmentedKernels(operation, key)
    return key


def kernels_of(key: str) -> SegmentedKernels:
    """The kernels behind a key."""
    return _KERNELS[key]


def segmented_polynomial(
    key: str, inputs: Mapping[str, Tensor], index: Tensor | None = None, backend: str = "auto"
) -> dict[str, Tensor]:
    """Outputs by name, from operands by name (shapes above).

    ``index`` [n_rows], int64, belongs to the INDEXED operands. Takes the widest dtype of the
    inputs, at least float32. Raises ValueError for shapes that do not fit, InputError for a
    backend that cannot run here.

    A scalar product of two vectors, for every row and channel:

    >>> from mace_train.ops.codegen.polynomial import Polynomial
    >>> product = Polynomial({"a": Kind.ROW, "b": Kind.ROW})
    >>> for i in range(3):
    ...     product.add(Segment("out", 0), 1.0, Segment("a", i), Segment("b", i))
    >>> key = register(Operation(product, {"a": 3, "b": 3, "out": 1}))
    >>> a, b = torch.randn(5, 3, 8, dtype=torch.float64), torch.randn(5, 3, 8, dtype=torch.float64)
    >>> out = segmented_polynomial(key, {"a": a, "b": b}, backend="reference")["out"]
    >>> torch.allclose(out[:, 0], (a * b).sum(1))
    True
    """
    operation = _KERNELS[key].operation
    tensors = list(in_common_precision(*[inputs[name] for name in operation.inputs]))
    n_rows = _n_rows(operation, tensors, index)
    for i, name in enumerate(operation.inputs):
        if operation.kind(name) is Kind.CONSTANT:
            tensors[i] = tensors[i].expand(n_rows, -1, -1)
    if index is None:
        index = torch.zeros(n_rows, dtype=torch.int64, device=tensors[0].device)
    if backend_of(backend, tensors[0].device).fused:
        refuse_forward_mode("segmented_polynomial", *tensors)
        results = _CHAIN.value(tensors, index, key)
    else:
        results = _reference(_KERNELS[key], tensors, index)
    return dict(zip(operation.outputs, results, strict=True))


def _n_rows(operation: Operation, tensors: Sequence[Tensor], index: Tensor | None) -> int:
    """The number of rows, after checking all shapes."""
    sizes: dict[Kind, set[int]] = {kind: set() for kind in Kind}
    n_channels = set()
    for name, tensor in zip(operation.inputs, tensors, strict=True):
        kind = operation.kind(name)
        sizes[kind].add(tensor.shape[0])
        n_dims = 2 if kind is Kind.UNIFORM else 3
        if tensor.dim() != n_dims or tensor.shape[1] != operation.n_segments[name]:
            raise ValueError(
                f"{name} ({kind.value}) is {tuple(tensor.shape)}, not {n_dims}-dimensional with "
                f"{operation.n_segments[name]} segments"
            )
        if n_dims == 3:
            n_channels.add(tensor.shape[2])
    rows = sizes[Kind.ROW] | sizes[Kind.UNIFORM] | ({len(index)} if index is not None else set())
    if len(rows) != 1 or len(n_channels) != 1 or sizes[Kind.CONSTANT] - {1}:
        raise ValueError(f"operands disagree: {[tuple(t.shape) for t in tensors]}")
    if sizes[Kind.INDEXED]:
        if index is None or index.dtype != torch.int64:
            raise ValueError("an operand is indexed: an int64 index is needed")
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < min(sizes[Kind.INDEXED]):
            raise ValueError("index names rows that do not exist")
    return rows.pop()


def _reference(kernels: SegmentedKernels, tensors: Sequence[Tensor], index: Tensor) -> list[Tensor]:
    """The program node by node; values are [n_rows, n_channels], or [n_rows, 1] if uniform."""
    operation, program = kernels.operation, kernels.program
    rows = {}
    for name, tensor in zip(operation.inputs, tensors, strict=True):
        kind = operation.kind(name)
        rows[name] = tensor.unsqueeze(2) if kind is Kind.UNIFORM else tensor
        if kind is Kind.INDEXED:
            rows[name] = tensor.index_select(0, index)
    values: dict[int, Tensor] = {}
    for number in program.live():
        node = program.graph.nodes[number]
        if isinstance(node, Segment):
            values[number] = rows[node.operand][:, node.number]
        else:
            terms = (c * (values[a] * values[b] if b >= 0 else values[a]) for c, a, b in node)
            values[number] = sum(terms, start=torch.zeros_like(values[node[0].a]))
    n_channels = max(r.shape[2] for r in rows.values())
    zero = tensors[0].new_zeros(len(index), n_channels)
    results = []
    for name in operation.outputs:
        segments = [Segment(name, i) for i in range(operation.n_segments[name])]
        parts = [values[program.outputs[s]] if s in program.outputs else zero for s in segments]
        stacked = torch.stack(parts, dim=1)
        results.append(stacked.sum(2) if name in operation.summed else stacked)
    return results


def _value(tensors: Sequence[Tensor], index: Tensor, key: str) -> list[Tensor]:
    kernels = _KERNELS[key]
    return _run(kernels, kernels.forward, tensors, index, kernels.operation.outputs)


def _gradient(
    tensors: Sequence[Tensor], index: Tensor, key: str, wanted: Sequence[bool]
) -> list[Tensor]:
    """Gradients of the operands; ``tensors`` are operands and cotangents of the outputs."""
    kernels = _KERNELS[key]
    names = tuple(compress(kernels.operation.inputs, wanted))
    found = _run(kernels, kernels.backward(names), tensors, index, names) if names else []
    return _in_order(kernels, found, wanted, tensors, index)


def _second_gradient(
    tensors: Sequence[Tensor],
    index: Tensor,
    key: str,
    given: Sequence[bool],
    wanted: Sequence[bool],
) -> list[Tensor]:
    """Gradients of the operands and cotangents; ``tensors`` ends with a v for each operand."""
    kernels = _KERNELS[key]
    operation, n_primal = kernels.operation, len(wanted)
    names = tuple(compress([*operation.inputs, *operation.outputs], wanted))
    found = []
    if names:
        kernel = kernels.double(tuple(compress(operation.inputs, given)), names)
        inputs = [*tensors[:n_primal], *compress(tensors[n_primal:], given)]
        found = _run(kernels, kernel, inputs, index, names)
    return _in_order(kernels, found, wanted, tensors, index)


def _fake(tensors: Sequence[Tensor], index: Tensor, key: str) -> list[Tensor]:
    operation = _KERNELS[key].operation
    n_channels = next(t.shape[2] for t in tensors if t.dim() == 3)
    results = []
    for name in operation.outputs:
        shape = [index.shape[0], operation.n_segments[name]]
        shape += [] if name in operation.summed else [n_channels]
        results.append(tensors[0].new_empty(shape))
    return results


def _run(
    kernels: SegmentedKernels,
    kernel: CompiledKernel,
    tensors: Sequence[Tensor],
    index: Tensor,
    names: Sequence[str],
) -> list[Tensor]:
    """Results per row for the names of operands or outputs."""
    operation, n_rows, like = kernels.operation, len(index), tensors[0]
    of_channels = next(t for t in tensors if t.dim() == 3)
    n_channels, padded = of_channels.shape[2], padded_channels(of_channels)
    inputs = [t.contiguous() if t.dim() == 2 else pad(t, padded) for t in tensors]
    outputs = []
    for name in names:
        shape = [n_rows, operation.n_segments[name]]
        uniform = operation.kind(name) is Kind.UNIFORM
        outputs.append(like.new_empty(shape if uniform else [*shape, padded]))
    # every row is an edge of its own receiver and its own pair
    rows = torch.arange(n_rows + 1, device=like.device)
    kernel.run(n_rows, [rows, index.contiguous(), rows, rows], inputs, outputs, padded)
    return [out if out.dim() == 2 else unpad(out, n_channels) for out in outputs]


def _in_order(
    kernels: SegmentedKernels,
    found: Sequence[Tensor],
    wanted: Sequence[bool],
    tensors: Sequence[Tensor],
    index: Tensor,
) -> list[Tensor]:
    """One gradient for each tensor, empty where it is not wanted, from those per row.

    Those of indexed operands are summed over the rows of each index, in order.
    """
    operation, remaining = kernels.operation, iter(found)
    names = [*operation.inputs, *operation.outputs]
    gradients = []
    for name, is_wanted, tensor in zip(names, wanted, tensors, strict=False):
        gradient = next(remaining) if is_wanted else tensor.new_empty(0)
        if is_wanted and operation.kind(name) is Kind.INDEXED:
            gradient = _sum_rows(kernels, gradient, index, tensor)
        gradients.append(gradient)
    return gradients


def _sum_rows(kernels: SegmentedKernels, rows: Tensor, index: Tensor, like: Tensor) -> Tensor:
    """Sums of rows [n_rows, ...] of each index, in order, of the shape of ``like``."""
    if not runs_on_cuda(rows.device):
        total = torch.zeros_like(like, memory_format=torch.contiguous_format)
        return total.index_add_(0, index, rows)
    total = rows.new_empty(len(like), *rows.shape[1:])
    order = torch.argsort(index, stable=True)
    indices = torch.arange(len(like) + 1, device=index.device)
    first = torch.searchsorted(index.index_select(0, order), indices)
    kernel = kernels.sum_rows(rows.shape[1])
    kernel.run(len(like), [order, first, first], [rows], [total], rows.shape[2])
    return total


_CHAIN = OperatorChain(
    "segmented_polynomial",
    None,
    ("index",),
    value=_value,
    fake=_fake,
    gradient=_gradient,
    second_gradient=_second_gradient,
)
