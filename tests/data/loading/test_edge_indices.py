"""Index arrays of a batch against a search through all edges."""

import numpy as np
import pytest

from mace_train.data.loading.edge_indices import StructureError, index_edges
from mace_train.data.neighbors import EdgeList
from mace_train.data.shards.arrays import Sample
from mace_train.data.shards.batch import Batch
from tests.model.systems import mixed, salt, single_atom, tiny_cell, unlabelled

R_MAX = 5.0


def indexed(samples: list[Sample]) -> dict[str, np.ndarray]:
    batch = Batch.of_samples(samples)
    n = len(batch.senders)
    filled = {
        name: np.full(n, -1) for name in ("senders", "receivers", "graph_of_edge", "pairs")
    } | {"first_of_pair": np.full(n // 2, -1), "shifts": np.full((n, 3), np.nan, dtype="f4")}
    index_edges(batch, **filled)
    return filled


@pytest.mark.parametrize(
    "make",
    [lambda: [salt()], lambda: [tiny_cell(), single_atom(), mixed((1, 8)), salt(), tiny_cell()]],
)
def test_edges_and_their_reverses(make):
    samples = [unlabelled(atoms, R_MAX) for atoms in make()]
    found = indexed(samples)
    senders, receivers, pairs, first = (
        found[name] for name in ("senders", "receivers", "pairs", "first_of_pair")
    )
    begin = first_atom = 0
    keys = []
    for graph, sample in enumerate(samples):
        edges, own = sample.edges, slice(begin, begin + sample.edges.n_edges)
        assert (found["graph_of_edge"][own] == graph).all()
        np.testing.assert_array_equal(found["shifts"][own], edges.shifts)
        np.testing.assert_array_equal(senders[own], edges.senders + first_atom)
        np.testing.assert_array_equal(receivers[own], edges.receivers + first_atom)
        ends = zip(senders[own], receivers[own], edges.shifts.tolist(), strict=True)
        keys += [(int(r), int(s), *shift) for s, r, shift in ends]
        begin, first_atom = own.stop, first_atom + sample.structure.n_atoms
    place = {key: number for number, key in enumerate(keys)}
    assert len(place) == len(pairs) == 2 * len(first) > 0
    for number, (r, s, *shift) in enumerate(keys):
        reverse = place[s, r, *(-step for step in shift)]
        assert reverse != number
        assert pairs[reverse] == pairs[number]
        assert first[pairs[number]] == min(number, reverse)
    assert (np.diff(first) > 0).all()


def test_no_edges():
    assert all(len(array) == 0 for array in indexed([]).values())
    alone = unlabelled(single_atom()[3:], R_MAX)
    assert all(len(array) == 0 for array in indexed([alone, alone]).values())


def lacking(edges: EdgeList, damage: str) -> EdgeList:
    """The neighbour list, damaged."""
    order, shifts = np.arange(edges.n_edges), edges.shifts.copy()
    senders, receivers = edges.senders.copy(), edges.receivers.copy()
    if damage == "missing":
        order = np.delete(order, 7)
    elif damage == "two missing":
        order = np.delete(order, [7, 23])
    elif damage == "shift":
        shifts[7, 1] += 1
    elif damage == "order":
        order[:2] = order[1::-1]
    elif damage == "receivers":
        order = np.roll(order, 5)
    elif damage == "far sender":
        senders[3] = 200
    elif damage == "doubled":
        order = np.sort(np.append(order, [0, 7]))
    else:
        return EdgeList(np.zeros(1, int), np.zeros(1, int), np.zeros((1, 3), int))
    return EdgeList(senders[order], receivers[order], shifts[order])


@pytest.mark.parametrize(
    "damage",
    ["missing", "two missing", "shift", "order", "receivers", "far sender", "doubled", "itself"],
)
def test_damaged_lists_are_refused(damage):
    whole = unlabelled(salt(), R_MAX)
    damaged = Sample(whole.structure, lacking(whole.edges, damage))
    with pytest.raises(StructureError, match="lacks the reverse") as caught:
        indexed([whole, damaged, whole])
    assert caught.value.structure == 1
