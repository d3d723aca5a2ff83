"""Index arrays of a batch: ends and graph of every edge, and the pair it forms with its reverse.

Edges of a structure are sorted by receiver, sender and shift, so those from s to r, and their
reverses from r to s with the opposite shifts in the opposite order, are reached in one walk over
the edges with one position per atom: the edges that receiver s has from senders below r are those
that the walk has met before. Every reverse is compared. O(n_edges), without a sort.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mace_train.data.shards.batch import Batch
from mace_train.jit import compiled

Integers = NDArray[np.int64]


class StructureError(ValueError):
    """A structure of a batch cannot be used."""

    def __init__(self, structure: int, message: str) -> None:
        super().__init__(message)
        self.structure = structure  # number in the batch


def index_edges(
    batch: Batch,
    *,
    senders: Integers,
    receivers: Integers,
    shifts: NDArray[Any],
    graph_of_edge: Integers,
    pairs: Integers,
    first_of_pair: Integers,
) -> None:
    """Write the arrays of a Graph's edges, [n_edges] and ``first_of_pair`` [n_edges // 2].

    Raises:
        StructureError: an edge without its reverse, or edges in another order.
    """
    edges = (batch.senders, batch.receivers, batch.shifts)
    filled = (senders, receivers, shifts, graph_of_edge, pairs, first_of_pair)
    positions = np.empty(int(batch.n_atoms.max(initial=0)), dtype=np.int64)
    wrong = _index(batch.n_atoms, batch.n_edges, edges, filled, positions)
    if wrong >= 0:
        raise StructureError(
            wrong,
            "its neighbour list lacks the reverse of some edge, or is not sorted; the shards are "
            "damaged or of another program: preprocess again",
        )


@compiled
def _index(n_atoms: Any, n_edges: Any, edges: Any, filled: Any, positions: Any) -> int:
    """The first structure with an invalid neighbour list; -1 if all are valid."""
    all_senders, all_receivers, all_shifts = edges
    begin = first_atom = n_pairs = 0
    for graph in range(len(n_edges)):
        own = slice(begin, begin + n_edges[graph])
        senders, receivers, shifts = all_senders[own], all_receivers[own], all_shifts[own]
        largest = np.int64(-1)
        for edge in range(len(senders)):
            largest = max(largest, np.int64(senders[edge]), np.int64(receivers[edge]))
        if largest >= n_atoms[graph]:
            return graph
        _shift(senders, first_atom, filled[0][own])
        _shift(receivers, first_atom, filled[1][own])
        _copy(shifts.reshape(-1), filled[2][own].reshape(-1))
        filled[3][own] = graph
        free = positions[: n_atoms[graph]]
        room = filled[5][n_pairs:]
        found = _pair(senders, receivers, shifts, free, filled[4][own], n_pairs, room, begin)
        if found < 0:
            return graph
        begin, first_atom, n_pairs = own.stop, first_atom + n_atoms[graph], n_pairs + found
    return -1


@compiled
def _shift(values: Any, added: int, wide: Any) -> None:
    for i in range(len(values)):
        wide[i] = values[i] + added


@compiled
def _copy(values: Any, wide: Any) -> None:
    for i in range(len(values)):
        wide[i] = values[i]


@compiled
def _pair(
    senders: Any,
    receivers: Any,
    shifts: Any,
    free: Any,
    pairs: Any,
    first_pair: int,
    first_of_pair: Any,
    first_edge: int,
) -> int:
    """Pair the edges of one structure; the number of pairs, or -1 if an edge has no reverse.

    ``free`` [n_atoms] is the first edge of each receiver that has no pair yet: when the walk comes
    to a receiver, those from senders below it have one.
    """
    n_edges, n_pairs = len(senders), 0
    free[:] = n_edges
    last: Any = np.int64(-1)
    for edge in range(n_edges):
        atom = np.int64(receivers[edge])
        if atom != last:
            if atom < last:
                return -1
            free[atom] = edge
            last = atom
    for receiver in range(len(free)):
        edge = free[receiver]
        while edge < n_edges and receivers[edge] == receiver:
            sender, end = np.int64(senders[edge]), edge + 1
            while end < n_edges and receivers[end] == receiver and senders[end] == sender:
                end += 1
            reverse = free[sender] + end - edge - 1
            free[sender] = reverse + 1
            is_sorted = end == n_edges or receivers[end] > receiver or senders[end] > sender
            is_even = sender > receiver or (end - edge) % 2 == 0
            if sender < receiver or reverse >= n_edges or not is_sorted or not is_even:
                return -1
            while edge < end and edge < reverse:
                if receivers[reverse] != sender or senders[reverse] != receiver:
                    return -1
                for axis in range(3):
                    if shifts[reverse, axis] != -shifts[edge, axis]:
                        return -1
                pairs[edge] = pairs[reverse] = first_pair + n_pairs
                first_of_pair[n_pairs] = first_edge + edge
                n_pairs += 1
                edge += 1
                reverse -= 1
            edge = end
    return n_pairs
