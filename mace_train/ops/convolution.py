"""The convolution over edges as an operator with first and second derivatives.

    out_b[n, row, k] = sum_{edges e to n} F_row(x[sender_e, :, k], y[e], r[pair_e, :, k])

for the channel-wise product F of ``convolution_program``: gathering, coupling and summing are one
kernel. An edge may share its row of r with its reverse. Edges are sorted by receiver, so that a
receiver's sums belong to one thread; gradients of x are written per edge and summed in the order of
senders; in those of r the second of two edges adds to what the first one wrote, or writes elsewhere
where another thread may be at work on the first. Nothing is atomic, everything repeatable.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
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
    in_common_precision,
    no_context,
    operator,
    refuse_forward_mode,
    refuse_third_derivative,
    wanted,
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
        """The index of edges whose receivers ascend; without pairs every edge has its own row.

        Waits for no device: only on the CPU are values looked at, to check them.
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
        place = (path.x_first, path.y_first, path.weight, path.block, path.rows, path.table.shape)
        digest.update(repr(place).encode())
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

    Takes x [n_atoms, n_x, n_channels], y [n_edges, n_y], r [n_pairs, n_weights, n_channels].
    """
    refuse_forward_mode("convolution", x, y, r)
    x, y, r = in_common_precision(x, y, r)
    out = _forward(x, y, r, *edges.tensors, key)
    n_rows = _KERNELS[key].product.n_rows
    blocks = torch.split(out, [n * x.shape[0] for n in n_rows])
    return [block.view(x.shape[0], n, x.shape[2]) for block, n in zip(blocks, n_rows, strict=True)]


@operator("convolution")
def _forward(
    x: Tensor,
    y: Tensor,
    r: Tensor,
    first: Tensor,
    senders: Tensor,
    by_sender: Tensor,
    first_by_sender: Tensor,
    pairs: Tensor,
    first_of_pair: Tensor,
    key: str,
) -> Tensor:
    kernels = _KERNELS[key]
    padded = padded_channels(x)
    out = x.new_empty(kernels.n_out * len(x), padded)
    inputs = [_ready(t, padded) for t in (x, y, r)]
    index = [first, senders, pairs, first_of_pair]
    kernels.forward.run(len(x), index, inputs, _blocks(kernels, out), padded)
    return unpad(out, x.shape[2])


@operator("convolution_backward")
def _backward(
    x: Tensor,
    y: Tensor,
    r: Tensor,
    g: Tensor,
    first: Tensor,
    senders: Tensor,
    by_sender: Tensor,
    first_by_sender: Tensor,
    pairs: Tensor,
    first_of_pair: Tensor,
    key: str,
    names: str,
) -> tuple[Tensor, Tensor, Tensor]:
    kernels = _KERNELS[key]
    index = EdgeIndex(first, senders, by_sender, first_by_sender, pairs, first_of_pair)
    return _edge_gradients(kernels, (x, y, r, g), {}, index, names)


@operator("convolution_double_backward")
def _double(
    x: Tensor,
    y: Tensor,
    r: Tensor,
    g: Tensor,
    vx: Tensor,
    vy: Tensor,
    vr: Tensor,
    first: Tensor,
    senders: Tensor,
    by_sender: Tensor,
    first_by_sender: Tensor,
    pairs: Tensor,
    first_of_pair: Tensor,
    key: str,
    cotangents: str,
    names: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    kernels = _KERNELS[key]
    index = EdgeIndex(first, senders, by_sender, first_by_sender, pairs, first_of_pair)
    given = {"x": vx, "y": vy, "r": vr}
    v = {name: given[name] for name in cotangents}
    hx, hy, hr = _edge_gradients(kernels, (x, y, r, g), v, index, names.replace("g", ""))
    if "g" not in names:
        return hx, hy, hr, g.new_empty(0)
    padded = padded_channels(x)
    inputs = [_ready(t, padded) for t in (x, y, r, *v.values())]
    hg = g.new_empty(len(g), padded)
    blocks = _blocks(kernels, hg)
    rows = [first, senders, pairs, first_of_pair]
    kernels.double_g(cotangents).run(len(x), rows, inputs, blocks, padded)
    return hx, hy, hr, unpad(hg, x.shape[2])


def _edge_gradients(
    kernels: ConvolutionKernels,
    primal: tuple[Tensor, Tensor, Tensor, Tensor],
    v: dict[str, Tensor],
    index: EdgeIndex,
    names: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, y and r: of first order or, with cotangents v, of second; empty if unnamed.

    Unnamed ones are not computed.
    """
    x, y, r, g = primal
    if not names:
        return x.new_empty(0), y.new_empty(0), r.new_empty(0)
    padded = padded_channels(x)
    inputs = [_ready(t, padded) for t in (x, y, r)]
    inputs += [*_blocks(kernels, pad(g, padded)), *[_ready(t, padded) for t in v.values()]]
    n_pairs = len(r)
    on_cuda = "r" in names and runs_on_cuda(x.device)
    by_pair = on_cuda and loops_over_pairs(x.device, padded)
    shapes = {"x": (len(y), x.shape[1], padded), "y": y.shape}
    shapes["r"] = (n_pairs if by_pair else 2 * n_pairs, r.shape[1], padded)
    found = {name: x.new_empty(shapes[name]) for name in names}
    kernel = kernels.double("".join(v), names, by_pair) if v else kernels.backward(names, by_pair)
    rows = [index.first, index.senders, index.pairs, index.first_of_pair, torch.tensor([n_pairs])]
    n_items = len(x)
    if on_cuda:
        order = PairOrdering.of(index.pairs, index.first_of_pair, index.is_reverse())
    if by_pair:
        n_items, rows = n_pairs, order.index(index.first, index.senders)
    ranges = kernel.run(n_items, rows, inputs, list(found.values()), padded)
    if "r" in found and not by_pair:
        if on_cuda:
            found["r"] = order.sums(kernels.sum_pairs, found["r"])
        else:
            found["r"] = _sum_pairs(found["r"], index, ranges)
    if "x" in found:
        total = x.new_empty(len(x), x.shape[1], padded)
        rows = [index.by_sender, index.first_by_sender, index.first_by_sender]
        kernels.sum_senders.run(len(x), rows, [found["x"]], [total], padded)
        found["x"] = total
    gx, gy, gr = (found.get(name, x.new_empty(0)) for name in EDGE_OPERANDS)
    return _unpad(gx, x), gy, _unpad(gr, x)


def _sum_pairs(halves: Tensor, index: EdgeIndex, ranges: list[int]) -> Tensor:
    """Gradients of r from both halves: the second holds what crosses from one range to another."""
    n_pairs = len(halves) // 2
    total = halves[:n_pairs]
    if len(ranges) > 2:
        atoms = torch.arange(ranges[-1])
        range_of = torch.bucketize(atoms, torch.tensor(ranges[1:-1]), right=True)
        of_receiver = torch.repeat_interleave(range_of, index.first.diff())
        is_far = of_receiver != range_of.index_select(0, index.senders)
        rows = index.pairs[is_far & index.is_reverse()]
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


@_forward.register_fake
def _(
    x: Tensor,
    y: Tensor,
    r: Tensor,
    first: Tensor,
    senders: Tensor,
    by_sender: Tensor,
    first_by_sender: Tensor,
    pairs: Tensor,
    first_of_pair: Tensor,
    key: str,
) -> Tensor:
    return x.new_empty(_KERNELS[key].n_out * x.shape[0], x.shape[2])


@_backward.register_fake
def _(
    x: Tensor,
    y: Tensor,
    r: Tensor,
    g: Tensor,
    first: Tensor,
    senders: Tensor,
    by_sender: Tensor,
    first_by_sender: Tensor,
    pairs: Tensor,
    first_of_pair: Tensor,
    key: str,
    names: str,
) -> tuple[Tensor, Tensor, Tensor]:
    gx, gy, gr = (_fake(t, n in names) for n, t in zip("xyr", (x, y, r), strict=True))
    return gx, gy, gr


@_double.register_fake
def _(
    x: Tensor,
    y: Tensor,
    r: Tensor,
    g: Tensor,
    vx: Tensor,
    vy: Tensor,
    vr: Tensor,
    first: Tensor,
    senders: Tensor,
    by_sender: Tensor,
    first_by_sender: Tensor,
    pairs: Tensor,
    first_of_pair: Tensor,
    key: str,
    cotangents: str,
    names: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    hx, hy, hr, hg = (_fake(t, n in names) for n, t in zip("xyrg", (x, y, r, g), strict=True))
    return hx, hy, hr, hg


def _fake(like: Tensor, is_computed: bool) -> Tensor:
    return like.new_empty(like.shape if is_computed else (0,))


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.key = inputs
    ctx.save_for_backward(*tensors)


def _forward_gradient(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    x, y, r, *index = ctx.saved_tensors
    names = _wanted_names(ctx, "xyr")
    found = _backward(x, y, r, g, *index, ctx.key, names)
    return *_named(found, "xyr", names), *[None] * 7


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.key, ctx.names = inputs
    ctx.save_for_backward(*tensors)


def _backward_gradient(ctx: Any, *v: Tensor) -> tuple[Tensor | None, ...]:
    x, y, r, g, *index = ctx.saved_tensors
    names = _wanted_names(ctx, "xyrg")
    found = _double(x, y, r, g, *v, *index, ctx.key, ctx.names, names)
    return *_named(found, "xyrg", names), *[None] * 8


def _wanted_names(ctx: Any, operands: str) -> str:
    return "".join(name for i, name in enumerate(operands) if wanted(ctx, i))


def _named(found: Sequence[Tensor], operands: str, names: str) -> list[Tensor | None]:
    return [t if name in names else None for name, t in zip(operands, found, strict=True)]


_forward.register_autograd(_forward_gradient, setup_context=_save_forward)
_backward.register_autograd(_backward_gradient, setup_context=_save_backward)
_double.register_autograd(refuse_third_derivative, setup_context=no_context)
