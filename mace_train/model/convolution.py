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

import torch
from torch import Tensor

from mace_train.model.coupling import Constant, clebsch_gordan, convolution_paths
from mace_train.model.fused import FusedConvolution
from mace_train.model.linear import split_degrees
from mace_train.model.radial import RadialNetwork
from mace_train.ops.convolution import EdgeIndex

EDGES_PER_BLOCK = 8


@dataclass(frozen=True)
class EdgeBlocks:
    """Edges cut into blocks of one receiver each; a slot is a place of a block, filled or not."""

    slot_of_edge: Tensor  # [n_edges] int64
    senders: Tensor  # [n_blocks * EDGES_PER_BLOCK] int64; the receiver itself in empty slots
    receiver_of_block: Tensor  # [n_blocks] int64, ascending

    @classmethod
    def of(cls, senders: Tensor, receivers: Tensor, n_atoms: int) -> "EdgeBlocks":
        """Blocks of edges that are sorted by receiver; waits for the device once."""
        assert bool((receivers[1:] >= receivers[:-1]).all()), "edges must be sorted by receiver"
        n_edges = torch.bincount(receivers, minlength=n_atoms)
        n_blocks = (n_edges + EDGES_PER_BLOCK - 1) // EDGES_PER_BLOCK
        atoms = torch.arange(n_atoms, device=receivers.device)
        receiver_of_block = torch.repeat_interleave(atoms, n_blocks)
        # edge e is number e - first_edge of its receiver, whose slots begin at first_slot
        first_edge = n_edges.cumsum(0) - n_edges
        first_slot = (n_blocks.cumsum(0) - n_blocks) * EDGES_PER_BLOCK
        edges = torch.arange(len(receivers), device=receivers.device)
        slot_of_edge = edges + (first_slot - first_edge).index_select(0, receivers)
        filled = receiver_of_block.repeat_interleave(EDGES_PER_BLOCK)
        filled = filled.index_copy(0, slot_of_edge, senders)
        return cls(slot_of_edge, filled, receiver_of_block)

    def spread(self, values: Tensor, empty: Tensor) -> Tensor:
        """Values [n_edges, d] in their slots [n_slots, d], and ``empty`` [d] in the others."""
        slots = empty.expand(self.senders.shape[0], -1)
        return slots.index_copy(0, self.slot_of_edge, values)

    def sum_to_receivers(self, values: Tensor, n_atoms: int) -> Tensor:
        """Sums [n_atoms, ...] of block values [n_blocks, ...]."""
        total = values.new_zeros(n_atoms, *values.shape[1:])
        return total.index_add(0, self.receiver_of_block, values)


@dataclass(frozen=True)
class Edges:
    """What all layers need of the edges: per slot of the blocks, or per edge if there are none."""

    places: EdgeBlocks | EdgeIndex
    harmonics: list[Tensor]  # [n_places, 2l + 1] for each degree
    radial: Tensor  # [n_places, n_basis], zero in empty slots


class Convolution:
    """The sum above for senders with degrees up to l_nodes and harmonics up to l_edges."""

    def __init__(self, l_nodes: int, l_edges: int) -> None:
        self.l_edges = l_edges
        self.paths = convolution_paths(l_nodes, l_edges)
        self._tables = [
            Constant(clebsch_gordan(l3, l1, l2).transpose(2, 1, 0).reshape(2 * l2 + 1, -1))
            for l1, l2, l3 in self.paths
        ]
        self._fused = FusedConvolution(self.paths, l_nodes, l_edges)

    def paths_to(self, degree: int) -> int:
        """Number of paths to a degree."""
        return sum(l3 == degree for _, _, l3 in self.paths)

    def __call__(self, x: Tensor, edges: Edges, network: RadialNetwork) -> list[Tensor]:
        """Degrees [n_atoms, 2 l3 + 1, n_paths_to_l3 * n_channels] of the summed messages.

        Takes x [n_atoms, (l_nodes + 1)^2, n_channels]; the network maps the edges' radial basis
        to weights of the paths.
        """
        if isinstance(edges.places, EdgeIndex):
            harmonics = torch.cat(edges.harmonics, dim=1)
            return self._fused(x, harmonics, network.stacked(edges.radial), edges.places)
        return self._in_blocks(x, edges.harmonics, network(edges.radial), edges.places)

    def _in_blocks(
        self, x: Tensor, harmonics: Sequence[Tensor], weights: Sequence[Tensor], blocks: EdgeBlocks
    ) -> list[Tensor]:
        """The reference. Harmonics and weights are per slot; weights are zero in empty slots."""
        sent = split_degrees(x.index_select(0, blocks.senders))
        n_channels = x.shape[2]
        messages: list[list[Tensor]] = [[] for _ in range(self.l_edges + 1)]
        for (l1, l2, l3), table, weight in zip(self.paths, self._tables, weights, strict=True):
            rows = EDGES_PER_BLOCK * (2 * l1 + 1)
            coupling = (harmonics[l2] @ table.like(x)).view(-1, rows, 2 * l3 + 1)
            weighted = (sent[l1] * weight.unsqueeze(1)).view(-1, rows, n_channels)
            messages[l3].append(torch.bmm(coupling.transpose(1, 2), weighted))
        joined = (torch.cat(of_degree, dim=2) for of_degree in messages)
        return [blocks.sum_to_receivers(of_degree, x.shape[0]) for of_degree in joined]
