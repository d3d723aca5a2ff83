"""The convolution over edges as an operator with first and second derivatives.

    out_b[n, row, k] = sum_{edges e to n} F_row(x[sender_e, :, k], y[e], r[pair_e, :, k])

for the channel-wise product F of ``convolution_program``: gathering, coupling and summing are one
kernel. An edge may share its row of r with its reverse. Edges are sorted by receiver, so that a
receiver's sums belong to one thread; gradients of x are written per edge and summed in the order of
senders; in those of r the second edge of a pair adds to what the first one wrote, or writes to
another row where another thread may be working on the first. Nothing is atomic, so results are
repeatable. "Pair" is defined in ``mace_train.data.graph``.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import compress
from typing import Any

import torch
from torch import Tensor

from mace_train.ops.codegen.convolution_program import ChannelwiseProduct
from mace_train.ops.convolution_kernels import (
    EDGE_OPERANDS,
    ConvolutionKernels,
    PairOrdering,
    loops_over_pairs,
)
from mace_train.ops.cpp.kernel import pad, unpad
from mace_train.ops.dispatch import padded_channels, runs_on_cuda
from mace_train.ops.torch_library import (
    OperatorChain,
    in_common_precision,
    refuse_forward_mode,
)


@dataclass(frozen=True)
class EdgeIndex:
    """Edges sorted by receiver, their order by sender, and the rows that they share."""

    first: Tensor  # [n_atoms + 1] int64: edges first[n]..first[n + 1] go to atom n
    senders: Tensor  # [n_edges] int64
    by_sender: Tensor  # [n_edges] int64: edges in the order of their senders
    first_by_sender: Tensor  # [n_atoms + 1] int64, into by_sender
    pairs: Tensor  # [n_edges] int64: row of r; the same for an edge and its reverse
    first_of_pair: Tensor  # [n_pairs] int64: the first edge of every pair

    @classmethod
    def of(
        cls,
        senders: Tensor,
        receivers: Tensor,
        n_atoms: int,
        pairs: Tensor | None = None,
        first_of_pair: Tensor | None = None,
    ) -> "EdgeIndex":
        """The index of edges with senders and receivers [n_edges], receivers ascending.

        ``pairs`` [n_edges] and ``first_of_pair`` [n_pairs] are as the attributes; without them
        every edge has a row of its own. All are int64. No synchronization with a device: only on
        the CPU are the values checked (AssertionError).
        """
        if pairs is None or first_of_pair is None:
            pairs = first_of_pair = torch.arange(len(senders), device=senders.device)
        if senders.device.type == "cpu":
            _check(senders, receivers, n_atoms)
            _check_pairs(senders, receivers, pairs, first_of_pair)
        by_sender = torch.argsort(senders, stable=True)
        atoms = torch.arange(n_atoms + 1, device=senders.device)
        return cls(
            torch.searchsorted(receivers.contiguous(), atoms),
            senders.contiguous(),
            by_sender,
            torch.searchsorted(senders.index_select(0, by_sender), atoms),
            pairs.contiguous(),
            first_of_pair.contiguous(),
        )

    def is_reverse(self) -> Tensor:
        """[n_edges] bool: edges that are not the first of their pair."""
        edges = torch.arange(self.pairs.shape[0], device=self.pairs.device)
        return self.first_of_pair.index_select(0, self.pairs) != edges

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of it, in order."""
        return tuple(vars(self).values())

    @property
    def by_receiver(self) -> list[Tensor]:
        """What a loop over the edges of receivers takes."""
        return [self.first, self.senders, self.pairs, self.first_of_pair]


def _check(senders: Tensor, receivers: Tensor, n_atoms: int) -> None:
    assert bool((receivers[1:] >= receivers[:-1]).all()), "edges must be sorted by receiver"
    assert len(senders) == 0 or 0 <= int(senders.min()) <= int(senders.max()) < n_atoms
    assert len(receivers) == 0 or 0 <= int(receivers[0]) <= int(receivers[-1]) < n_atoms


def _check_pairs(senders: Tensor, receivers: Tensor, pairs: Tensor, first: Tensor) -> None:
    """AssertionError unless rows belong to an edge, or to an edge and one in its reverse."""
    edges = torch.arange(len(senders), device=senders.device)
    of_edge = first.index_select(0, pairs)
    is_first = of_edge == edges
    opposite = (senders.index_select(0, of_edge) == receivers) & (
        receivers.index_select(0, of_edge) == senders
    )
    assert bool((is_first | (opposite & (of_edge < edges))).all()), "edges paired with no reverse"
    assert int(is_first.sum()) == len(first), "pairs without edges"
    assert len(pairs) == 0 or int(torch.bincount(pairs).max()) <= 2, "more than two edges of a pair"


_KERNELS: dict[str, ConvolutionKernels] = {}


def register(product: ChannelwiseProduct) -> str:
    """The key of a product for ``convolution``; the same one in every process."""
    digest = hashlib.sha256(repr((product.n_x, product.n_y, product.n_weights)).encode())
    digest.update(repr(product.n_rows).encode())
    for path in product.paths:
        numbers = (path.x_first, path.y_first, path.weight, path.block, path.rows, path.table.shape)
        digest.update(repr(numbers).encode())
        digest.update(path.table.tobytes())
    key = digest.hexdigest()[:32]
    if key not in _KERNELS:
        _KERNELS[key] = ConvolutionKernels(product, key)
    return key


def kernels_of(key: str) -> ConvolutionKernels:
    """The kernels behind a key."""
    return _KERNELS[key]


def convolution(x: Tensor, y: Tensor, r: Tensor, edges: EdgeIndex, key: str) -> list[Tensor]:
    """One tensor [n_atoms, n_rows, n_channels] per output of the product.

    Takes x [n_atoms, n_x, n_channels], y [n_edges, n_y], r [n_pairs, n_weights, n_channels]; the
    results have their widest dtype, at least float32.
    """
    out = stacked(x, y, r, edges, key)
    n_rows = _KERNELS[key].product.n_rows
    blocks = torch.split(out, [n * x.shape[0] for n in n_rows])
    return [block.view(x.shape[0], n, x.shape[2]) for block, n in zip(blocks, n_rows, strict=True)]


def stacked(x: Tensor, y: Tensor, r: Tensor, edges: EdgeIndex, key: str) -> Tensor:
    """All tensors of ``convolution``, one after the other [all n_rows * n_atoms, n_channels]."""
    refuse_forward_mode("convolution", x, y, r)
    x, y, r = in_common_precision(x, y, r)
    return _CHAIN(x, y, r, *edges.tensors, key)


def _value(x: Tensor, y: Tensor, r: Tensor, *rest: Any) -> Tensor:
    """All outputs [n_out * n_atoms, n_channels], one after the other."""
    first, senders, _, _, pairs, first_of_pair, key = rest
    kernels, padded = _KERNELS[key], padded_channels(x)
    out = x.new_empty(kernels.n_out * len(x), padded)
    inputs = [_ready(t, padded) for t in (x, y, r)]
    index = [first, senders, pairs, first_of_pair]
    kernels.forward.run(len(x), index, inputs, _blocks(kernels, out), padded)
    return unpad(out, x.shape[2])


def _gradient(x: Tensor, y: Tensor, r: Tensor, g: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """Gradients of x, y and r; ``rest`` is the edges, key, wanted."""
    *edges, key, wanted = rest
    return _edge_gradients(_KERNELS[key], (x, y, r, g), {}, EdgeIndex(*edges), wanted)


def _second_gradient(x: Tensor, y: Tensor, r: Tensor, g: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """Gradients of x, y, r and g; ``rest`` is vx, vy, vr, the edges, key, given, wanted."""
    vx, vy, vr, *index, key, given, wanted = rest
    kernels, edges = _KERNELS[key], EdgeIndex(*index)
    v = dict(compress(zip(EDGE_OPERANDS, (vx, vy, vr), strict=True), given))
    of_edges = _edge_gradients(kernels, (x, y, r, g), v, edges, wanted[:3])
    if not wanted[3]:
        return *of_edges, g.new_empty(0)
    padded = padded_channels(x)
    inputs = [_ready(t, padded) for t in (x, y, r, *v.values())]
    hg = g.new_empty(len(g), padded)
    kernel = kernels.double_g("".join(v))
    kernel.run(len(x), edges.by_receiver, inputs, _blocks(kernels, hg), padded)
    return *of_edges, unpad(hg, x.shape[2])


def _fake(x: Tensor, y: Tensor, r: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(_KERNELS[rest[-1]].n_out * x.shape[0], x.shape[2])


def _edge_gradients(
    kernels: ConvolutionKernels,
    primal: tuple[Tensor, Tensor, Tensor, Tensor],
    v: dict[str, Tensor],
    edges: EdgeIndex,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, y and r: of first order or, with cotangents v, of second.

    Those that are not wanted are not computed, and empty.
    """
    x, y, r, g = primal
    names = "".join(compress(EDGE_OPERANDS, wanted))
    if not names:
        return x.new_empty(0), y.new_empty(0), r.new_empty(0)
    padded = padded_channels(x)
    inputs = [_ready(t, padded) for t in (x, y, r)]
    inputs += [*_blocks(kernels, pad(g, padded)), *[_ready(t, padded) for t in v.values()]]
    n_pairs = len(r)
    on_cuda = "r" in names and runs_on_cuda(x.device)
    by_pair = on_cuda and loops_over_pairs(x.device, padded)
    shapes = {"x": (len(y), x.shape[1], padded), "y": y.shape}
    two_parts = n_pairs < len(y) and not by_pair  # some pairs have two edges
    shapes["r"] = (2 * n_pairs if two_parts else n_pairs, r.shape[1], padded)
    found = {name: x.new_empty(shapes[name]) for name in names}
    kernel = kernels.double("".join(v), names, by_pair) if v else kernels.backward(names, by_pair)
    rows = [*edges.by_receiver, torch.tensor([n_pairs])]
    n_items = len(x)
    if on_cuda:
        ordering = PairOrdering.of(edges.pairs, edges.first_of_pair, edges.is_reverse())
    if by_pair:
        n_items, rows = n_pairs, ordering.index(edges.first, edges.senders)
    ranges = kernel.run(n_items, rows, inputs, list(found.values()), padded)
    if "r" in found and two_parts:
        if on_cuda:
            found["r"] = ordering.sums(kernels.sum_pairs, found["r"])
        else:
            found["r"] = _sum_pairs(found["r"], edges, ranges)
    if "x" in found:
        total = x.new_empty(len(x), x.shape[1], padded)
        rows = [edges.by_sender, edges.first_by_sender, edges.first_by_sender]
        kernels.sum_senders.run(len(x), rows, [found["x"]], [total], padded)
        found["x"] = total
    gx, gy, gr = (found.get(name, x.new_empty(0)) for name in EDGE_OPERANDS)
    return _unpad(gx, x), gy, _unpad(gr, x)


def _sum_pairs(halves: Tensor, edges: EdgeIndex, ranges: list[int]) -> Tensor:
    """[n_pairs, ...] gradients of r from both halves [2 * n_pairs, ...].

    The second half holds the second edges of pairs whose first edge was in another range.
    """
    n_pairs = len(halves) // 2
    total = halves[:n_pairs]
    if len(ranges) > 2:
        atoms = torch.arange(ranges[-1])
        range_of = torch.bucketize(atoms, torch.tensor(ranges[1:-1]), right=True)
        of_receiver = torch.repeat_interleave(range_of, edges.first.diff())
        is_far = of_receiver != range_of.index_select(0, edges.senders)
        rows = edges.pairs[is_far & edges.is_reverse()]
        total.index_add_(0, rows, halves[n_pairs:].index_select(0, rows))
    return total


def _ready(tensor: Tensor, n_channels: int) -> Tensor:
    """Contiguous, with padded channels if there are any."""
    return tensor.contiguous() if tensor.dim() == 2 else pad(tensor, n_channels)


def _unpad(gradient: Tensor, x: Tensor) -> Tensor:
    return gradient if gradient.dim() == 1 else unpad(gradient, x.shape[2])


def _blocks(kernels: ConvolutionKernels, flat: Tensor) -> list[Tensor]:
    """The output tensors inside the one that holds them all."""
    n_atoms = len(flat) // kernels.n_out
    return list(torch.split(flat, [n * n_atoms for n in kernels.product.n_rows]))


_CHAIN = OperatorChain(
    "convolution",
    EDGE_OPERANDS,
    [field.name for field in fields(EdgeIndex)],
    value=_value,
    fake=_fake,
    gradient=_gradient,
    second_gradient=_second_gradient,
)
