"""Batches against structures one by one: nothing is lost, shifted or mixed up."""

import numpy as np
import pytest
import torch

from mace_train.data.loading.loader import batches, collate, config_types_of
from mace_train.data.shards.shard_set import ShardSet
from mace_train.errors import InputError

NUMBERS = (1, 7, 8, 13)


@pytest.fixture
def shards(prepared) -> ShardSet:
    return ShardSet(prepared / "train")


def test_a_batch_is_its_structures(shards):
    ids = np.array([5, 0, 11, 3])
    samples = [shards.sample(i) for i in ids]
    graph = collate(samples, ids, atomic_numbers=NUMBERS, dtype=torch.float64)
    vectors = graph.vectors()
    assert graph.ids.tolist() == ids.tolist()
    assert (graph.receivers.diff() >= 0).all()
    assert float(vectors.norm(dim=1).max()) < shards.r_max
    for g, sample in enumerate(samples):
        structure, edges = sample.structure, sample.edges
        atoms = graph.graph_of_atom == g
        mine = graph.graph_of_edge == g
        first = int(torch.nonzero(atoms)[0])
        np.testing.assert_array_equal(graph.positions[atoms], structure.positions)
        assert [NUMBERS[i] for i in graph.elements[atoms]] == structure.numbers.tolist()
        np.testing.assert_array_equal(graph.senders[mine] - first, edges.senders)
        expected = (
            structure.positions[edges.receivers]
            - structure.positions[edges.senders]
            + edges.shifts @ structure.cell
        )
        np.testing.assert_allclose(vectors[mine], expected, atol=1e-12)
        assert float(graph.energy[g]) == structure.energy
        np.testing.assert_array_equal(graph.forces[atoms], structure.forces)
        assert bool(graph.has_stress[g]) == (structure.stress is not None)
        if structure.stress is not None:
            np.testing.assert_array_equal(graph.stress[g], structure.stress)


def test_an_empty_batch_has_every_field_in_its_shape(shards):
    ids = np.zeros(0, dtype=np.int64)
    empty = collate([], ids, atomic_numbers=NUMBERS, dtype=torch.float32)
    full = collate([shards.sample(0)], np.array([0]), atomic_numbers=NUMBERS, dtype=torch.float32)
    for name, value in vars(full).items():
        other = getattr(empty, name)
        assert other.dtype == value.dtype, name
        assert other.shape == (0, *value.shape[1:]), name
    assert empty.n_graphs == empty.n_atoms == empty.n_edges == 0


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bins_come_in_order(shards, num_workers):
    bins = [np.array([3, 1]), np.zeros(0, dtype=np.int64), np.array([2]), np.array([7, 8, 9])]
    graphs = list(
        batches(shards, bins, atomic_numbers=NUMBERS, dtype=torch.float32, num_workers=num_workers)
    )
    assert [graph.ids.tolist() for graph in graphs] == [b.tolist() for b in bins]


def test_every_number_of_workers_gives_the_same_bits(shards):
    """In the order of the bins, whatever is read first; runs and scattered structures alike."""
    rng = np.random.default_rng(0)
    bins = [np.arange(i, i + 6) for i in range(0, 18, 6)]
    bins += [rng.permutation(len(shards))[:7] for _ in range(5)]

    def bits(num_workers):
        options = {"atomic_numbers": NUMBERS, "dtype": torch.float32, "num_workers": num_workers}
        return [
            {name: tensor.numpy().tobytes() for name, tensor in vars(graph).items()}
            for graph in batches(shards, bins, **options)
        ]

    expected = bits(0)
    assert bits(1) == expected
    assert bits(2) == expected
    for ids, graph in zip(bins, expected, strict=True):
        one_by_one = collate(
            [shards.sample(i) for i in ids], ids, atomic_numbers=NUMBERS, dtype=torch.float32
        )
        assert {n: t.numpy().tobytes() for n, t in vars(one_by_one).items()} == graph


def test_an_element_the_model_lacks_is_named(shards):
    i = next(i for i in range(len(shards)) if 13 in shards.sample(i).structure.numbers)
    with pytest.raises(InputError, match=r"\[13\]"):
        collate([shards.sample(i)], np.array([i]), atomic_numbers=(1, 7, 8), dtype=torch.float32)


def test_config_types_index_every_structure(shards):
    types = config_types_of(shards)
    assert types.names == sorted(set(shards.config_types))
    assert [types.names[i] for i in types.index_of] == shards.config_types
