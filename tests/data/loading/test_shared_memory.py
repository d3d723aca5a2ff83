"""Memory that workers and the process that trains share: used again, but never too early."""

import gc
import mmap
import multiprocessing

import numpy as np
import pytest
import torch

from mace_train.data.loading import loader
from mace_train.data.loading.loader import batches
from mace_train.data.loading.shared_memory import BUFFERS_PER_WORKER, SharedMemoryPool
from mace_train.data.shards.shard_set import ShardSet

NUMBERS = (1, 7, 8, 13)
N_BINS = 6 * BUFFERS_PER_WORKER


@pytest.fixture
def shards(prepared) -> ShardSet:
    return ShardSet(prepared / "train")


@pytest.fixture
def pool(monkeypatch) -> list[SharedMemoryPool]:
    """All that are made in the test."""
    made: list[SharedMemoryPool] = []

    def make(*arguments):
        made.append(SharedMemoryPool(*arguments))
        return made[-1]

    monkeypatch.setattr(loader, "SharedMemoryPool", make)
    return made


def loaded(shards: ShardSet, bins: list[np.ndarray], num_workers: int):
    return batches(
        shards, bins, atomic_numbers=NUMBERS, dtype=torch.float32, num_workers=num_workers
    )


def bins_of(shards: ShardSet) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.permutation(len(shards))[: 1 + i % 7] for i in range(N_BINS)]


def is_inside(graph, pool: SharedMemoryPool) -> bool:
    first = torch.from_numpy(pool.buffer(0)).data_ptr()
    return first <= graph.positions.data_ptr() < first + len(pool.memory)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_graphs_that_are_kept_are_never_overwritten(shards, pool, num_workers):
    bins = bins_of(shards)
    kept = list(loaded(shards, bins, num_workers))
    inside = sum(is_inside(graph, pool[0]) for graph in kept)
    assert inside == num_workers * BUFFERS_PER_WORKER  # all pool, then other memory
    for graph, expected in zip(kept, loaded(shards, bins, 0), strict=True):
        for name, tensor in vars(expected).items():
            assert torch.equal(getattr(graph, name), tensor), name


def test_one_view_keeps_a_buffer(shards, pool):
    bins = bins_of(shards)
    positions = [graph.positions for graph in loaded(shards, bins, 1)]
    for found, expected in zip(positions, loaded(shards, bins, 0), strict=True):
        assert torch.equal(found, expected.positions)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_buffers_are_used_again(shards, pool, num_workers):
    bins = bins_of(shards)
    places = [
        graph.positions.data_ptr()
        for graph in loaded(shards, bins, num_workers)
        if is_inside(graph, pool[0])
    ]
    assert len(places) == len(bins)  # what was released came back in time
    assert len(set(places)) <= num_workers * BUFFERS_PER_WORKER


def test_memory_goes_with_the_last_graph(shards, pool):
    graphs = loaded(shards, bins_of(shards), 2)
    first, copy = next(graphs), next(loaded(shards, bins_of(shards), 0))
    assert any(pool[0].states[:])
    del graphs
    gc.collect()
    assert torch.equal(first.forces, copy.forces)
    states = pool[0].states
    pool.clear()
    n_taken = sum(states[:])
    del first
    assert sum(states[:]) == n_taken - 1


def test_where_processes_are_not_forked_torch_shares_memory(shards, pool, monkeypatch):
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda: "spawn")
    bins = bins_of(shards)[:3]
    assert [graph.ids.tolist() for graph in loaded(shards, bins, 1)] == [b.tolist() for b in bins]
    assert not pool


def test_what_is_larger_than_a_buffer_is_shared_by_torch(shards, monkeypatch):
    made: list[SharedMemoryPool] = []

    def small(n_workers, size):
        made.append(SharedMemoryPool(n_workers, mmap.PAGESIZE))
        return made[-1]

    monkeypatch.setattr(loader, "SharedMemoryPool", small)
    bins = [np.array([0]), np.arange(len(shards))]
    one, whole = loaded(shards, bins, 1)
    assert is_inside(one, made[0])
    assert not is_inside(whole, made[0])
    assert whole.ids.tolist() == bins[1].tolist()


def test_where_there_is_no_room_torch_shares_memory(shards, monkeypatch):
    def refuse(*arguments):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(loader, "SharedMemoryPool", refuse)
    bins = bins_of(shards)[:3]
    assert [graph.ids.tolist() for graph in loaded(shards, bins, 1)] == [b.tolist() for b in bins]


def test_only_empty_bins(shards, pool):
    graphs = list(loaded(shards, [np.zeros(0, dtype=np.int64)] * 3, 2))
    assert [graph.n_atoms for graph in graphs] == [0, 0, 0]
