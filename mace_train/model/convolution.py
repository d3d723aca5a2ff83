"""Convolution over edges: messages from senders, summed at receivers.

    out[n, (l3 m3), p, k] = sum_{edges e to n} R[e, p, k] sum_{m1} M_p[e, m1, m3] x[s(e), l1 m1, k]
    M_p[e, m1, m3]        = sum_{m2} CG(l3; l1, l2)[m3, m1, m2] Y[e, l2 m2]

for the paths p = (l1, l2, l3) of ``convolution_paths`` (arXiv 2206.07697, eq. 8). M_p does not
depend on the channel, so the sum over the edges of a receiver is a matrix product over (e, m1).
Receivers have different numbers of edges; we cut each one's edges into blocks of EDGES_PER_BLOCK
and fill the last block with edges of zero weight. One batched product per path then does both
the coupling and most of the sum, and only block results are scattered: less than half of
the memory traffic of one message per edge.
Cost per edge and channel: sum_p (2 l1 + 1)(1 + (2 l3 + 1)) multiplications. All this is the
reference; with an ``EdgeIndex`` in place of blocks a compiled kernel does the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mace_train.model.activation_checkpointing import recomputed
from mace_train.model.constant import ConstantTensor
from mace_train.model.coupling import clebsch_gordan, convolution_paths
from mace_train.model.fused_ops import FusedConvolution
from mace_train.model.linear import split_degrees
from mace_train.model.radial import RadialNetwork
from mace_train.ops.convolution import EdgeIndex

EDGES_PER_BLOCK = 8
CHANNELS_AT_A_TIME = 32


@dataclass(frozen=True)
class EdgeBlocks:
    """Edges cut into blocks of one receiver each; a slot is a place of a block, filled or not."""

    size: ClassVar[int] = EDGES_PER_BLOCK  # slots of a block
    slot_of_edge: Tensor  # [n_edges] int64
    senders: Tensor  # [n_blocks * EDGES_PER_BLOCK] int64; the receiver itself in empty slots
    receiver_of_block: Tensor  # [n_blocks] int64, ascending
    pairs: Tensor  # [n_slots] int64: row of what an edge and its reverse share; the last if empty
    first_of_pair: Tensor  # [n_pairs] int64: the first edge of every pair

    @classmethod
    def of(
        cls,
        senders: Tensor,
        receivers: Tensor,
        n_atoms: int,
        pairs: Tensor | None = None,
        first_of_pair: Tensor | None = None,
    ) -> "EdgeBlocks":
        """Blocks of edges that are sorted by receiver; without pairs every edge is alone."""
        assert bool((receivers[1:] >= receivers[:-1]).all()), "edges must be sorted by receiver"
        n_edges = torch.bincount(receivers, minlength=n_atoms)
        n_blocks = (n_edges + cls.size - 1) // cls.size
        atoms = torch.arange(n_atoms, device=receivers.device)
        receiver_of_block = torch.repeat_interleave(atoms, n_blocks)
        # edge e is number e - first_edge of its receiver, whose slots begin at first_slot
        first_edge = n_edges.cumsum(0) - n_edges
        first_slot = (n_blocks.cumsum(0) - n_blocks) * cls.size
        edges = torch.arange(len(receivers), device=receivers.device)
        slot_of_edge = edges + (first_slot - first_edge).index_select(0, receivers)
        in_slots = receiver_of_block.repeat_interleave(cls.size)
        in_slots = in_slots.index_copy(0, slot_of_edge, senders)
        if pairs is None or first_of_pair is None:
            pairs = first_of_pair = edges
        rows = torch.full_like(in_slots, len(first_of_pair)).index_copy(0, slot_of_edge, pairs)
        return cls(slot_of_edge, in_slots, receiver_of_block, rows, first_of_pair)

    def is_reverse(self) -> Tensor:
        """[n_slots] bool: edges that are not the first of their pair, and empty slots."""
        is_first = torch.zeros_like(self.senders, dtype=torch.bool)
        return ~is_first.index_fill(0, self.slot_of_edge.index_select(0, self.first_of_pair), True)

    def sum_to_receivers(self, values: Tensor, n_atoms: int) -> Tensor:
        """Sums [n_atoms, ...] of block values [n_blocks, ...]."""
        total = values.new_zeros(n_atoms, *values.shape[1:])
        return total.index_add(0, self.receiver_of_block, values)


class SingleEdges(EdgeBlocks):
    """A block for every edge, in any order: all shapes follow from the number of edges."""

    size = 1

    @classmethod
    def of(
        cls,
        senders: Tensor,
        receivers: Tensor,
        n_atoms: int,
        pairs: Tensor | None = None,
        first_of_pair: Tensor | None = None,
    ) -> "SingleEdges":
        """One block per edge; without pairs every edge is alone."""
        # not len(), which is a constant where PyTorch traces
        edges = torch.arange(receivers.shape[0], device=receivers.device)
        if pairs is None or first_of_pair is None:
            pairs = first_of_pair = edges
        return cls(edges, senders, receivers, pairs, first_of_pair)


@dataclass(frozen=True)
class EdgeFeatures:
    """What all layers need of the edges; a place is an edge, or a slot of blocks."""

    places: EdgeBlocks | EdgeIndex
    harmonics: Tensor  # [n_places, (l_edges + 1)^2]
    radial: Tensor  # [n_pairs, n_basis], with blocks one row of zeros more, for empty slots


class Convolution:
    """The sum above for senders with degrees up to l_nodes and harmonics up to l_edges."""

    def __init__(self, l_nodes: int, l_edges: int) -> None:
        self.l_edges = l_edges
        self.paths = convolution_paths(l_nodes, l_edges)
        self._tables = [
            ConstantTensor(clebsch_gordan(l3, l1, l2).transpose(2, 1, 0).reshape(2 * l2 + 1, -1))
            for l1, l2, l3 in self.paths
        ]
        self._fused = FusedConvolution(self.paths, l_nodes, l_edges)

    def paths_to(self, degree: int) -> int:
        """Number of paths to a degree."""
        return sum(l3 == degree for _, _, l3 in self.paths)

    def __call__(
        self, x: Tensor, edges: EdgeFeatures, network: RadialNetwork, *, checkpointing: bool = False
    ) -> list[Tensor]:
        """Degrees [n_atoms, 2 l3 + 1, n_paths_to_l3 * n_channels] of the summed messages.

        Takes x [n_atoms, (l_nodes + 1)^2, n_channels]; the network maps the edges' radial basis
        to weights of the paths. With ``checkpointing`` only CHANNELS_AT_A_TIME channels of what is
        made per edge exist at any time: channels do not mix here, so nothing is computed for more
        than one of these parts but the network's narrow layers.
        """
        places = edges.places

        def part(x: Tensor, harmonics: Tensor, hidden: Tensor, last: Tensor) -> tuple[Tensor, ...]:
            if isinstance(places, EdgeIndex):
                weights = network.stacked(hidden, last)
                return tuple(self._fused(x, harmonics, weights, places))
            return tuple(self._in_blocks(x, harmonics, network.by_path(hidden, last), places))

        hidden, last = network.hidden(edges.radial)
        if not checkpointing:
            return list(part(x, edges.harmonics, hidden, last))
        # copies, since a view would keep all channels
        parts = [
            recomputed(part, some.contiguous(), edges.harmonics, hidden, columns.contiguous())
            for some, columns in zip(
                *(torch.split(tensor, CHANNELS_AT_A_TIME, 2) for tensor in (x, last)), strict=True
            )
        ]
        return [
            torch.cat([t.unflatten(2, (self.paths_to(degree), -1)) for t in of_parts], 3).flatten(2)
            for degree, of_parts in enumerate(zip(*parts, strict=True))
        ]

    def _in_blocks(
        self, x: Tensor, harmonics: Tensor, weights: Sequence[Tensor], blocks: EdgeBlocks
    ) -> list[Tensor]:
        """The reference. Harmonics are per slot, weights per pair."""
        of_degree = torch.split(
            harmonics, [2 * degree + 1 for degree in range(self.l_edges + 1)], 1
        )
        sent = split_degrees(x.index_select(0, blocks.senders))
        n_channels = x.shape[2]
        messages: list[list[Tensor]] = [[] for _ in range(self.l_edges + 1)]
        for (l1, l2, l3), table, weight in zip(self.paths, self._tables, weights, strict=True):
            rows = blocks.size * (2 * l1 + 1)
            coupling = (of_degree[l2] @ table.like(x)).view(-1, rows, 2 * l3 + 1)
            of_slots = weight.index_select(0, blocks.pairs).unsqueeze(1)
            weighted = (sent[l1] * of_slots).view(-1, rows, n_channels)
            messages[l3].append(torch.bmm(coupling.transpose(1, 2), weighted))
        joined = (torch.cat(to_degree, dim=2) for to_degree in messages)
        return [blocks.sum_to_receivers(to_degree, x.shape[0]) for to_degree in joined]
