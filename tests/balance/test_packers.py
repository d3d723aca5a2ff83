"""Packers against the one-by-one greedy rule, brute force, and what every packer promises."""

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mace_train.balance import packers
from mace_train.balance.costs import Capacity, Costs, derive_capacity
from mace_train.balance.packers import PACKERS, least_steps, random_bits, shuffled, without_chance
from mace_train.errors import InputError
from tests.balance.sizes import WORLD_SIZES, capacities, data_sets, paper_like

few = settings(deadline=None, max_examples=80)


def sums(values: np.ndarray, bins: list[np.ndarray]) -> np.ndarray:
    return np.array([values[ids].sum() for ids in bins])


def splitmix64(state: int):
    """The published generator, in Python integers."""
    while True:
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        yield z ^ (z >> 31)


def test_random_bits_are_splitmix64():
    # first output for the seed 1234567, as published with the generator
    assert packers._mix(1234567) == 6457827717110365317
    start = packers._mix(packers._mix(packers._mix(7) ^ 3) ^ 1)
    reference = splitmix64(start)
    assert random_bits(5, 7, 3, 1).tolist() == [next(reference) for _ in range(5)]
    assert random_bits(3, -1, 0, 1).dtype == np.uint64  # a negative seed is a seed, too


def test_every_permutation_is_equally_likely():
    counts = dict.fromkeys(permutations(range(4)), 0)
    for epoch in range(4800):
        counts[tuple(shuffled(4, 5, epoch, 1).tolist())] += 1
    # 200 each on average, standard deviation 14
    assert min(counts.values()) > 130
    assert max(counts.values()) < 270


@given(st.lists(st.integers(1, 300), min_size=20, max_size=200), st.integers(1, 15))
@few
def test_rounds_equal_one_by_one_greedy(sizes, n_bins):
    atoms = np.array(sizes)  # in any order: the rounds are exact for all of them
    loads = [0] * n_bins
    for size in sizes:
        loads[loads.index(min(loads))] += size
    dealt = packers._deal(atoms, 0 * atoms, n_bins, Capacity(sum(sizes), 0))
    assert sorted(np.bincount(dealt, atoms, n_bins).tolist()) == sorted(loads)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(1, 3))
@few
def test_largest_bin_is_within_grahams_bound_of_the_best(sizes, n_bins):
    atoms = np.array(sizes)
    ways = np.array(list(product(range(n_bins), repeat=len(sizes))))
    best = min(max(np.bincount(way, atoms, n_bins)) for way in ways)
    bins = without_chance(Costs(atoms, 0 * atoms), Capacity(sum(sizes), 0), n_bins)
    assert len(bins) == n_bins
    assert sums(atoms, bins).max() <= (4 / 3 - 1 / (3 * n_bins)) * best + 1e-9


@given(st.data(), data_sets(), WORLD_SIZES, st.integers(0, 2**63), st.integers(0, 10**6))
@few
def test_algorithm1_keeps_its_promises(data, costs, world_size, seed, epoch):
    capacity = data.draw(capacities(costs))
    bins = PACKERS["algorithm1"](costs, capacity, world_size, seed, epoch)
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
    again = PACKERS["algorithm1"](costs, capacity, world_size, seed, epoch)
    assert all(np.array_equal(a, b) for a, b in zip(bins, again, strict=True))


@given(data_sets(), st.integers(1, 30), WORLD_SIZES, st.integers(0, 10**6))
@few
def test_fixed_count_keeps_its_promises(costs, batch_size, world_size, epoch):
    bins = PACKERS["fixed_count"](costs, Capacity(1, 0, batch_size), world_size, 1, epoch)
    assert np.array_equal(np.sort(np.concatenate(bins)), np.arange(len(costs)))
    counts = np.array([len(ids) for ids in bins]).reshape(-1, world_size)
    assert len(counts) == -(-len(costs) // (batch_size * world_size))
    assert (counts[:-1] == batch_size).all()
    assert counts[-1].max() <= batch_size
    assert np.ptp(counts[-1]) <= 1  # the last step is short, but no rank is left out of it


def test_fixed_count_needs_a_count():
    with pytest.raises(InputError, match="batch_size"):
        PACKERS["fixed_count"](paper_like(50), Capacity(1000, 50_000), 2, 0, 0)


@given(data_sets(), st.integers(1, 12))
@few
def test_evaluation_bins_do_not_depend_on_chance(costs, world_size):
    capacity = derive_capacity(costs, 5, None, None)
    bins = without_chance(costs, capacity, world_size)
    assert np.array_equal(np.sort(np.concatenate(bins)), np.arange(len(costs)))
    assert len(bins) % world_size == 0
    assert sum(len(ids) == 0 for ids in bins) < world_size
    assert sums(costs.n_edges, bins).max() <= capacity.max_edges


def test_bound_of_steps_is_met_where_it_can_be():
    costs = Costs(np.full(96, 7), np.full(96, 70))
    for world_size, steps in ((1, 24), (8, 3), (5, 5), (32, 1), (740, 1)):
        bins = PACKERS["algorithm1"](costs, Capacity(28, 280), world_size, 0, 0)
        assert len(bins) == steps * world_size


def test_a_step_is_added_where_edges_fit_badly():
    # 3 structures of 6 edges do not fit into 2 bins of 10: 18 edges of 20, but 12 in one bin
    costs = Costs(np.array([1, 1, 1]), np.array([6, 6, 6]))
    assert least_steps(costs, Capacity(10, 10), 1) == 2
    assert len(PACKERS["algorithm1"](costs, Capacity(10, 10), 1, 0, 0)) == 3


def test_no_more_bins_than_structures():
    # needs 7 bins for 7 structures, where adding 1, then 2 steps to the bound of 5 gives 8
    atoms = np.array([170, 127, 102, 54, 62, 9, 15])
    edges = np.array([7648, 7296, 8465, 1756, 892, 8631, 221])
    bins = PACKERS["algorithm1"](Costs(atoms, edges), Capacity(170, 8631), 1, 0, 0)
    assert min(len(ids) for ids in bins) == 1


def test_bins_are_remixed_every_epoch_where_all_sizes_differ():
    costs = Costs(np.arange(1, 601), 30 * np.arange(1, 601))
    capacity = derive_capacity(costs, 10, None, None)

    def pairs(epoch: int) -> set[tuple[int, int]]:
        bins = PACKERS["algorithm1"](costs, capacity, 4, 0, epoch)
        return {(a, b) for ids in bins for a in ids.tolist() for b in ids.tolist() if a < b}

    first, second = pairs(0), pairs(1)
    by_chance = len(first) * len(second) / (600 * 599 / 2)
    assert len(first & second) < 3 * by_chance


def test_position_in_the_epoch_is_independent_of_size():
    costs = paper_like(3000)
    capacity = derive_capacity(costs, 4, None, None)
    first = [
        float(costs.n_atoms[PACKERS["algorithm1"](costs, capacity, 4, 0, epoch)[0]].max())
        for epoch in range(40)
    ]
    assert min(first) < 500 < max(first)
