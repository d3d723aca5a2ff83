"""Index arrays of a batch: ends and graph of every edge, and the pair it forms with its reverse.

Edges of a structure are sorted by receiver, sender and shift, so those from s to r, and their
reverses from r to s with the opposite shifts in the opposite order, are reached in one walk over
the edges with one position per atom: the edges that receiver s has from senders below r are those
that the walk has met before. Every reverse is compared. O(n_edges), without a sort.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mace_train.data.batch import Batch
from mace_train.jit import compiled

Integers = NDArray[np.int64]


class StructureError(ValueError):
    """A structure of a batch cannot be used."""

    def __init__(self, structure: int, message: str) -> None:
        super().__init__(message)
        self.structure = structure  # number in the batch


def index_edges(
    batch: Batch,
    senders: Integers,
    receivers: Integers,
    graph_of_edge: Integers,
    pairs: Integers,
    first_of_pair: Integers,
) -> None:
    """Fill in the index arrays of a Graph, [n_edges] and ``first_of_pair`` [n_edges // 2].

    Raises:
        StructureError: an edge without its reverse, or edges in another order.
    """
    filled = (senders, receivers, graph_of_edge, pairs, first_of_pair)
    edges = (batch.senders, batch.receivers, batch.shifts)
    positions = np.empty(int(batch.n_atoms.max(initial=0)), dtype=np.int64)
    wrong = _fill(batch.n_atoms, batch.n_edges, *edges, *filled, positions)
    if wrong >= 0:
        raise StructureError(
            wrong,
            "its neighbour list lacks the reverse of some edge, or is not sorted; the shards are "
            "damaged or of another program: preprocess again",
        )


@compiled
def _fill(
    n_atoms: Any,
    n_edges: Any,
    from_: Any,
    to: Any,
    shifts: Any,
    senders: Any,
    receivers: Any,
    graph_of_edge: Any,
    pairs: Any,
    first_of_pair: Any,
    positions: Any,
) -> int:
    """The structure whose neighbour list is not one; -1 if all are."""
    begin = first_atom = n_pairs = 0
    for graph in range(len(n_edges)):
        end = begin + n_edges[graph]
        positions[: n_atoms[graph]] = end
        for edge in range(begin, end):
            sender, receiver = np.int64(from_[edge]), np.int64(to[edge])
            if sender >= n_atoms[graph] or receiver >= n_atoms[graph]:
                return graph
            if edge == begin or receiver > to[edge - 1]:
                positions[receiver] = edge
            elif receiver < to[edge - 1]:
                return graph
            senders[edge] = first_atom + sender
            receivers[edge] = first_atom + receiver
            graph_of_edge[edge] = graph
        n_pairs = _pair(begin, end, from_, to, shifts, positions, pairs, first_of_pair, n_pairs)
        if n_pairs < 0:
            return graph
        begin, first_atom = end, first_atom + n_atoms[graph]
    return -1


@compiled
def _pair(
    begin: int,
    end: int,
    from_: Any,
    to: Any,
    shifts: Any,
    positions: Any,
    pairs: Any,
    first_of_pair: Any,
    n_pairs: int,
) -> int:
    """Pair the edges of one structure; the pairs so far, or -1 if an edge has no reverse.

    ``positions`` holds the first edge of every receiver at first, and then the first that has not
    been met as a reverse.
    """
    edge = begin
    while edge < end:
        sender, receiver, last = from_[edge], to[edge], edge + 1
        while last < end and from_[last] == sender and to[last] == receiver:
            last += 1
        if last < end and to[last] == receiver and from_[last] < sender:
            return -1
        reverse = positions[sender] + last - edge - 1
        positions[sender] = reverse + 1
        if reverse >= end:
            return -1
        while edge < last:
            if from_[reverse] != receiver or to[reverse] != sender or reverse == edge:
                return -1
            for axis in range(3):
                if shifts[reverse, axis] + shifts[edge, axis] != 0:
                    return -1
            if edge < reverse:
                if n_pairs == len(first_of_pair):
                    return -1
                pairs[edge] = n_pairs
                first_of_pair[n_pairs] = edge
                n_pairs += 1
            else:
                pairs[edge] = pairs[reverse]
            edge += 1
            reverse -= 1
    return n_pairs
