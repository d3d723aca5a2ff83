"""Pairs of an edge and its reverse against a search through all edges."""

import numpy as np
import pytest

from mace_train.data.neighbors import Edges, neighbor_list
from mace_train.data.pairs import pair_edges
from mace_train.errors import InputError
from tests.model.systems import lonely, mixed, salt, tiny_cell


def edges_of(atoms, r_max=5.0):
    return neighbor_list(atoms.positions, np.asarray(atoms.cell[:]), np.asarray(atoms.pbc), r_max)


@pytest.mark.parametrize("make", [salt, tiny_cell, lonely, lambda: mixed((1, 8))])
def test_pairs_are_found(make):
    edges = edges_of(make())
    pairs, first = pair_edges(edges, "test")
    keys = [
        (r, s, *shift)
        for s, r, shift in zip(edges.senders, edges.receivers, edges.shifts.tolist(), strict=True)
    ]
    place = {key: number for number, key in enumerate(keys)}
    assert len(place) == edges.n_edges == 2 * len(first) > 0
    for number, (r, s, *shift) in enumerate(keys):
        reverse = place[s, r, *(-step for step in shift)]
        assert reverse != number
        assert pairs[reverse] == pairs[number]
        assert first[pairs[number]] == min(number, reverse)
    assert (np.diff(first) > 0).all()


def test_no_edges():
    none = np.zeros(0, dtype=np.int64)
    pairs, first = pair_edges(Edges(none, none, np.zeros((0, 3), dtype=np.int64)), "test")
    assert len(pairs) == len(first) == 0


@pytest.mark.parametrize("damage", ["missing", "shift", "order", "itself"])
def test_damaged_lists_are_refused(damage):
    edges = edges_of(salt())
    keep = np.arange(edges.n_edges)
    shifts = edges.shifts.copy()
    if damage == "missing":
        keep = np.delete(keep, 7)
    elif damage == "shift":
        shifts[7, 1] += 1
    elif damage == "order":
        keep[:2] = keep[1::-1]
    else:
        edges = Edges(np.zeros(1, int), np.zeros(1, int), np.zeros((1, 3), int))
        keep, shifts = np.arange(1), edges.shifts
    with pytest.raises(InputError, match="file 3: its neighbour list lacks the reverse"):
        pair_edges(Edges(edges.senders[keep], edges.receivers[keep], shifts[keep]), "file 3")
