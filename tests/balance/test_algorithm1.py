"""Algorithm 1 against the one-by-one greedy rule, brute force, and what it promises."""

from itertools import product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mace_train.balance import algorithm1 as algorithm1_module
from mace_train.balance.algorithm1 import algorithm1, deterministic_bins
from mace_train.balance.bounds import least_steps
from mace_train.balance.costs import Capacity, Costs, derive_capacity
from tests.balance.sizes import WORLD_SIZES, capacities, data_sets, paper_like

few = settings(deadline=None, max_examples=80)


def sums(values: np.ndarray, bins: list[np.ndarray]) -> np.ndarray:
    return np.array([values[ids].sum() for ids in bins])


@given(st.lists(st.integers(1, 300), min_size=20, max_size=200), st.integers(1, 15))
@few
def test_rounds_equal_one_by_one_greedy(sizes, n_bins):
    atoms = np.array(sizes)  # in any order: the rounds are exact for all of them
    loads = [0] * n_bins
    for size in sizes:
        loads[loads.index(min(loads))] += size
    assigned = algorithm1_module._assign(
        np.stack([atoms, 0 * atoms, 0 * atoms], axis=1), n_bins, Capacity(sum(sizes), 0)
    )
    assert sorted(np.bincount(assigned, atoms, n_bins).tolist()) == sorted(loads)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(1, 3))
@few
def test_largest_bin_is_within_grahams_bound_of_the_best(sizes, n_bins):
    atoms = np.array(sizes)
    ways = np.array(list(product(range(n_bins), repeat=len(sizes))))
    best = min(max(np.bincount(way, atoms, n_bins)) for way in ways)
    bins = deterministic_bins(Costs(atoms, 0 * atoms), Capacity(sum(sizes), 0), n_bins)
    assert len(bins) == n_bins
    assert sums(atoms, bins).max() <= (4 / 3 - 1 / (3 * n_bins)) * best + 1e-9


@given(st.data(), data_sets(), WORLD_SIZES, st.integers(0, 2**63), st.integers(0, 10**6))
@few
def test_algorithm1_keeps_its_promises(data, costs, world_size, seed, epoch):
    capacity = data.draw(capacities(costs))
    bins = algorithm1(costs, capacity, world_size, seed, epoch)
    assert np.array_equal(np.sort(np.concatenate(bins)), np.arange(len(costs)))
    assert len(bins) % world_size == 0
    assert len(bins) // world_size >= least_steps(costs, capacity, world_size)
    assert sums(costs.n_atoms, bins).max() <= capacity.max_atoms
    assert sums(costs.n_edges, bins).max() <= capacity.max_edges
    if capacity.batch_size:
        assert len(costs) / len(bins) <= capacity.batch_size
    filled = [len(ids) > 0 for ids in bins]
    assert filled == sorted(filled, reverse=True)  # the empty ones last ...
    assert filled.count(False) < world_size  # ... and not a step of them
    again = algorithm1(costs, capacity, world_size, seed, epoch)
    assert all(np.array_equal(a, b) for a, b in zip(bins, again, strict=True))


@given(data_sets(), st.integers(1, 12))
@few
def test_evaluation_bins_do_not_depend_on_chance(costs, world_size):
    capacity = derive_capacity(costs, 5, None, None)
    bins = deterministic_bins(costs, capacity, world_size)
    assert np.array_equal(np.sort(np.concatenate(bins)), np.arange(len(costs)))
    assert len(bins) % world_size == 0
    assert sum(len(ids) == 0 for ids in bins) < world_size
    assert sums(costs.n_edges, bins).max() <= capacity.max_edges


def test_bound_of_steps_is_met_where_it_can_be():
    costs = Costs(np.full(96, 7), np.full(96, 70))
    for world_size, steps in ((1, 24), (8, 3), (5, 5), (32, 1), (740, 1)):
        bins = algorithm1(costs, Capacity(28, 280), world_size, 0, 0)
        assert len(bins) == steps * world_size


def test_a_step_is_added_where_edges_fit_badly():
    # 5 structures of 4 edges do not fit into 2 bins of 10: 20 edges of 20, but 12 in one bin
    costs = Costs(np.ones(5, np.int64), np.full(5, 4))
    assert least_steps(costs, Capacity(10, 10), 1) == 2
    assert len(algorithm1(costs, Capacity(10, 10), 1, 0, 0)) == 3


def test_no_more_bins_than_structures():
    # needs 7 bins for 7 structures, where adding 1, then 2 steps to the bound of 5 gives 8
    atoms = np.array([170, 127, 102, 54, 62, 9, 15])
    edges = np.array([7648, 7296, 8465, 1756, 892, 8631, 221])
    bins = algorithm1(Costs(atoms, edges), Capacity(170, 8631), 1, 0, 0)
    assert min(len(ids) for ids in bins) == 1


def test_bins_are_remixed_every_epoch_where_all_sizes_differ():
    costs = Costs(np.arange(1, 601), 30 * np.arange(1, 601))
    capacity = derive_capacity(costs, 10, None, None)

    def pairs(epoch: int) -> set[tuple[int, int]]:
        bins = algorithm1(costs, capacity, 4, 0, epoch)
        return {(a, b) for ids in bins for a in ids.tolist() for b in ids.tolist() if a < b}

    first, second = pairs(0), pairs(1)
    by_chance = len(first) * len(second) / (600 * 599 / 2)
    assert len(first & second) < 3 * by_chance


def test_position_in_the_epoch_is_independent_of_size():
    costs = paper_like(3000)
    capacity = derive_capacity(costs, 4, None, None)
    first = [
        float(costs.n_atoms[algorithm1(costs, capacity, 4, 0, epoch)[0]].max())
        for epoch in range(40)
    ]
    assert min(first) < 500 < max(first)
