"""Integers of a batch that steer the layers: which rows of features meet which.

The backend decides how they are arranged,

                fused kernels (cpp, cuda)              reference
    edges       ``EdgeIndex``: sorted by receiver      ``EdgeBlocks``: blocks of one receiver each
                and, beside, by sender
    atoms       ``Chunks``: sorted by element, if      their elements
                the contraction depends on it
    groups      ``ElementGroups``: atoms by element, for weights of each element;
                with static shapes ``ElementSlots``
    ends        ``EdgeEnds``: atoms at both ends of edges, where the model uses them

and layers take from a ``BatchIndex`` what is there. Every batch gets a new one. With static
shapes (CUDA graphs) all sizes follow from the numbers of atoms and edges alone. An edge and its
reverse share a row of what is made per pair, unless the model tells the two apart: then each is a
pair of its own.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar

import torch
from torch import Tensor

from mace_train.model.matmul_precision import matmul
from mace_train.ops.backends import Backend
from mace_train.ops.convolution import EdgeIndex
from mace_train.ops.grouped_matmul import grouped_matmul
from mace_train.ops.symmetric_contraction import Chunks

EDGES_PER_BLOCK = 8
ATOMS_PER_CHUNK = 16  # of ElementSlots


class SharedWeights(IntEnum):
    """Which edges have the weights of their reverse; of several layers, the largest counts."""

    OF_PAIRS = 0  # all: weights depend on the distance
    OF_ELEMENTS = 1  # those between two atoms of one element
    OF_NONE = 2


Pairs = tuple[Tensor, Tensor]  # of every edge, and the first edge of every one: see EdgeIndex


def _pairs_of_one_element(
    elements: Tensor, senders: Tensor, receivers: Tensor, pairs: Pairs
) -> Pairs:
    """The pairs in which an edge between two elements is alone; waits for the device once.

    Pairs of two edges come first.
    """
    of_edge, first = pairs
    edges = torch.arange(of_edge.shape[0], device=of_edge.device)
    of_senders, of_receivers = (elements.index_select(0, ends) for ends in (senders, receivers))
    is_shared = of_senders == of_receivers
    of_two, alone = first[is_shared.index_select(0, first)], edges[~is_shared]
    new_first = torch.cat((of_two, alone))
    rows = torch.zeros_like(edges).scatter(0, new_first, edges[: new_first.shape[0]])
    leader = torch.where(is_shared, first.index_select(0, of_edge), edges)
    return rows.index_select(0, leader), new_first


@dataclass(frozen=True)
class EdgeBlocks:
    """Edges cut into blocks of one receiver each; some slots of a block hold no edge."""

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
class EdgeEnds:
    """Atoms at both ends of a pair of edges, and the pair and receiver of every edge."""

    senders: Tensor  # [n_pairs] int64, of every pair's first edge
    receivers: Tensor  # [n_pairs] int64
    pair_of_edge: Tensor  # [n_edges] int64
    receiver_of_edge: Tensor  # [n_edges] int64

    @classmethod
    def of(
        cls,
        senders: Tensor,
        receivers: Tensor,
        pairs: Tensor | None = None,
        first_of_pair: Tensor | None = None,
    ) -> "EdgeEnds":
        """From the senders and receivers of edges; without pairs every edge is alone."""
        if pairs is None or first_of_pair is None:  # not len(), as above
            pairs = first_of_pair = torch.arange(senders.shape[0], device=senders.device)
        first_senders, first_receivers = (
            atoms.index_select(0, first_of_pair) for atoms in (senders, receivers)
        )
        return cls(first_senders, first_receivers, pairs, receivers)

    def species(self, elements: Tensor, n_elements: int) -> Tensor:
        """[n_pairs] int64: sender's element * n_elements + receiver's."""
        of_sender = elements.index_select(0, self.senders)
        return of_sender * n_elements + elements.index_select(0, self.receivers)


@dataclass(frozen=True)
class ElementGroups:
    """Atoms sorted by element, so that one matrix product serves all atoms of an element."""

    order: Tensor  # [n_atoms] int64: atoms, sorted by element
    rank: Tensor  # [n_atoms] int64: position of each atom in order
    first: Tensor  # [n_elements + 1] int64, into order; on the CPU

    @classmethod
    def of(cls, elements: Tensor, n_elements: int) -> "ElementGroups":
        """Groups of elements [n_atoms]; waits for the device once."""
        counts = torch.bincount(elements, minlength=n_elements).cpu()
        order = torch.argsort(elements, stable=True)
        first = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
        return cls(order, torch.argsort(order), first)

    def sort(self, features: Tensor) -> Tensor:
        """Rows of features [n_atoms, ...], sorted by element."""
        return features.index_select(0, self.order)

    def unsort(self, rows: Tensor) -> Tensor:
        """Features [n_atoms, ...] from sorted rows."""
        return rows.index_select(0, self.rank)

    def matmul(self, x: Tensor, w: Tensor, dtype: torch.dtype | None) -> Tensor:
        """Products of sorted rows x [n_rows, n, n_in] with their elements' w [n_elements, ...].

        They are taken in ``dtype`` (None: that of x); the result has the type of x.
        """
        if dtype is None:
            return grouped_matmul(x, w, self.first)
        return grouped_matmul(x.to(dtype), w.to(dtype), self.first).to(x.dtype)


@dataclass(frozen=True)
class ElementSlots:
    """The same in shapes that follow from the number of atoms alone: groups cut into chunks.

    A chunk is a number of slots for atoms of one element; slots that are left over are empty.
    """

    atom_of_slot: Tensor  # [n_slots] int64, n_atoms where the slot is empty
    slot_of_atom: Tensor  # [n_atoms] int64
    element_of_chunk: Tensor  # [n_chunks] int64

    @classmethod
    def of(cls, elements: Tensor, n_elements: int) -> "ElementSlots":
        """Slots of elements [n_atoms]; waits for no device."""
        n_atoms, size = elements.shape[0], ATOMS_PER_CHUNK
        chunks = Chunks.of_size(elements, n_elements, size)
        position = chunks.first[:-1, None] + torch.arange(size, device=elements.device)
        filled = position < chunks.first[1:, None]
        # one atom more, whose features are zero, is the atom of all empty slots
        order = torch.cat((chunks.order, chunks.order.new_full((1,), n_atoms)))
        atom_of_slot = order[torch.where(filled, position, n_atoms)].flatten()
        slots = torch.arange(atom_of_slot.shape[0], device=elements.device)
        slot_of_atom = torch.zeros_like(order).scatter(0, atom_of_slot, slots)[:n_atoms]
        return cls(atom_of_slot, slot_of_atom, chunks.index)

    def sort(self, features: Tensor) -> Tensor:
        """Rows of the slots from features [n_atoms, n, n_channels]."""
        one_more = torch.nn.functional.pad(features, (0, 0, 0, 0, 0, 1))
        return one_more.index_select(0, self.atom_of_slot)

    def unsort(self, rows: Tensor) -> Tensor:
        """Features [n_atoms, ...] from the rows of slots."""
        return rows.index_select(0, self.slot_of_atom)

    def matmul(self, x: Tensor, w: Tensor, dtype: torch.dtype | None) -> Tensor:
        """As ``ElementGroups.matmul``, for as many channels out as in."""
        of_chunk = w.index_select(0, self.element_of_chunk)
        return matmul(x.reshape(of_chunk.shape[0], -1, x.shape[2]), of_chunk, dtype).view(x.shape)


@dataclass(frozen=True)
class BatchIndex:
    """The module's docstring says what is there for which backend; the rest is None."""

    backend: Backend
    elements: Tensor  # [n_atoms] int64
    groups: ElementGroups | ElementSlots
    edges: EdgeIndex | None  # fused
    chunks: Chunks | None  # fused
    blocks: EdgeBlocks | None  # reference
    heads: Tensor | None = None  # [n_atoms] int64; None where the model has one head
    ends: EdgeEnds | None = None  # None where the model does not need it

    @classmethod
    def of(
        cls,
        backend: Backend,
        elements: Tensor,
        senders: Tensor,
        receivers: Tensor,
        pairs: Tensor | None = None,
        first_of_pair: Tensor | None = None,
        *,
        n_elements: int,
        heads: Tensor | None = None,
        edge_ends: bool = False,
        shared_weights: SharedWeights = SharedWeights.OF_PAIRS,
        agnostic_product: bool = False,
        static_shapes: bool = False,
    ) -> "BatchIndex":
        """The index of edges that are sorted by receiver; ``edge_ends`` are made if needed.

        Edges whose weights are not shared are pairs of their own (with static shapes all, unless
        all are shared); with ``agnostic_product`` a chunk has atoms of any element.
        """
        if shared_weights == SharedWeights.OF_ELEMENTS and not static_shapes:
            if pairs is not None and first_of_pair is not None:
                pairs, first_of_pair = _pairs_of_one_element(
                    elements, senders, receivers, (pairs, first_of_pair)
                )
        elif shared_weights != SharedWeights.OF_PAIRS:
            pairs = first_of_pair = None
        ends = (senders, receivers, elements.shape[0], pairs, first_of_pair)
        edges = chunks = blocks = edge_atoms = None
        if backend.fused:
            edges = EdgeIndex.of(*ends)
            of_elements = Chunks.of_size if static_shapes else Chunks.of
            if agnostic_product:
                chunks = of_elements(torch.zeros_like(elements), 1)
            else:
                chunks = of_elements(elements, n_elements)
        else:
            blocks = (SingleEdges if static_shapes else EdgeBlocks).of(*ends)
        if edge_ends:
            edge_atoms = EdgeEnds.of(senders, receivers, pairs, first_of_pair)
        groups = (ElementSlots if static_shapes else ElementGroups).of(elements, n_elements)
        return cls(backend, elements, groups, edges, chunks, blocks, heads, edge_atoms)

    def sum_to_receivers(self, of_pairs: Tensor) -> Tensor:
        """[n_atoms, ...] sums over the edges of a receiver of what their pairs have, with ends."""
        assert self.ends is not None
        of_edges = self.backend.take_rows(of_pairs, self.ends.pair_of_edge)
        receivers, n_atoms = self.ends.receiver_of_edge, self.elements.shape[0]
        return self.backend.sum_rows(of_edges, receivers, n_atoms, ascending=True)

    @property
    def edge_rows(self) -> EdgeIndex | EdgeBlocks:
        """Which pair each row per edge (or slot of blocks) belongs to."""
        rows = self.blocks if self.edges is None else self.edges
        assert rows is not None
        return rows
