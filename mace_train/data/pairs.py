"""Pairs of edges: an edge of a neighbour list and its reverse, which has the same length."""

import numpy as np
from numpy.typing import NDArray

from mace_train.data.neighbors import Edges, edge_order
from mace_train.errors import InputError

Integers = NDArray[np.int64]


def pair_edges(edges: Edges, source: str) -> tuple[Integers, Integers]:
    """The pair [n_edges] of every edge, and the first edge [n_pairs] of every pair, ascending.

    Edges are sorted by receiver, sender and shift. Sorted by sender, receiver and negative shift,
    place k is taken by the reverse of edge k.

    Raises:
        InputError: an edge without its reverse, or edges in another order.
    """
    senders, receivers, shifts = edges.senders, edges.receivers, edges.shifts
    n_edges = len(senders)
    if n_edges == 0:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    reverse = edge_order(receivers, senders, -shifts, int(receivers[-1]) + 1)
    found = (
        np.array_equal(senders[reverse], receivers)
        and np.array_equal(receivers[reverse], senders)
        and np.array_equal(shifts[reverse], -shifts)
    )
    numbers = np.arange(n_edges)
    if not found or (reverse == numbers).any():
        raise InputError(
            f"{source}: its neighbour list lacks the reverse of some edge, or is not sorted; the "
            "shards are damaged or of another program: preprocess again"
        )
    is_first = numbers < reverse
    first = np.flatnonzero(is_first)
    pair_of_first = np.cumsum(is_first) - 1
    return pair_of_first[np.minimum(numbers, reverse)], first
