"""The balanced packer: its promises, restarts by window, balance in two dimensions."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mace_train.balance import balanced as balanced_module
from mace_train.balance.balanced import Packing, balanced, usual_steps
from mace_train.balance.bounds import least_steps
from mace_train.balance.costs import Capacity, Costs, derive_capacity
from mace_train.balance.plan import make_plan
from mace_train.errors import InputError
from tests.balance.sizes import WORLD_SIZES, capacities, data_sets, paper_like

few = settings(deadline=None, max_examples=60)


@given(st.data(), data_sets(), WORLD_SIZES, st.integers(0, 2**63), st.integers(0, 10**6))
@few
def test_promises_on_hard_sizes(data, costs, world_size, seed, epoch):
    capacity = data.draw(capacities(costs))
    bins = balanced(costs, capacity, world_size, seed, epoch)
    assert np.array_equal(np.sort(np.concatenate(list(bins))), np.arange(len(costs)))
    assert len(bins) % world_size == 0
    assert len(bins) // world_size >= least_steps(costs, capacity, world_size)
    for counts, limit in zip(costs.dimensions, capacity.limits, strict=True):
        assert max(counts[ids].sum() for ids in bins) <= limit
    steps = np.array([len(ids) for ids in bins]).reshape(-1, world_size).sum(axis=1)
    assert steps.min() > 0
    if capacity.batch_size:
        assert len(costs) / len(bins) <= capacity.batch_size
    again = balanced(costs, capacity, world_size, seed, epoch)
    assert np.array_equal(bins.ids, again.ids)
    assert np.array_equal(bins.offsets, again.offsets)


@given(data_sets(), st.integers(2, 12), st.integers(0, 99))
@few
def test_memory_is_a_capacity_of_its_own(costs, world_size, seed):
    memory = np.random.default_rng(seed).integers(1, 1000, len(costs))
    weighed = Costs(costs.n_atoms, costs.n_edges, memory)
    loose = Capacity(int(costs.n_atoms.sum()), int(costs.n_edges.sum()), None, 1500)
    bins = balanced(weighed, loose, world_size, seed, 0)
    assert max(memory[ids].sum() for ids in bins) <= 1500


@pytest.mark.parametrize("world_size", [3, 64, 740])
def test_atoms_and_edges_are_even_in_every_step(world_size):
    costs = paper_like(60_000)
    capacity = derive_capacity(costs, 1, 3072, None)
    plan = make_plan(costs, "balanced", capacity, world_size, 0, 0)
    assert plan.n_over(capacity) == 0
    assert plan.n_steps <= 1.01 * least_steps(costs, capacity, world_size) + 1
    for counts in (plan.n_atoms, plan.n_edges):  # so every linear cost is even
        assert counts.max(axis=1).sum() * world_size / counts.sum() < 1.01
    assert plan.straggler < 1.004


@pytest.mark.parametrize("world_size", [8, 600, 740])
def test_a_rank_packs_only_its_windows_and_gets_the_same_bins(world_size):
    costs = paper_like(40_000)
    capacity = derive_capacity(costs, 4 if world_size == 8 else 2, None, None)
    n_steps = usual_steps(costs, capacity, world_size)
    packing = Packing(costs, capacity, world_size, 5, 2, n_steps)
    assert packing.layout.n_windows > 1
    bins = balanced(costs, capacity, world_size, 5, 2)
    for rank in (0, world_size - 1):
        for start in (0, n_steps // 2, n_steps - 1):
            own = list(packing.of_rank(rank, start))
            assert len(own) == n_steps - start
            for step, ids in enumerate(own, start):
                assert np.array_equal(ids, bins[step * world_size + rank])


def test_structures_without_room_make_steps_of_their_own(monkeypatch):
    costs = paper_like(20_000)
    capacity = derive_capacity(costs, 1, 1200, None)
    least = least_steps(costs, capacity, 8)
    monkeypatch.setattr(balanced_module, "usual_steps", lambda *_: least)  # too few
    packing = Packing(costs, capacity, 8, 0, 0, least)
    assert packing.layout.n_windows > 1
    assert any(len(packing.window(w)[1]) for w in range(packing.layout.n_windows))
    plan = make_plan(costs, "balanced", capacity, 8, 0, 0)  # checks that all are there once
    assert plan.n_steps > packing.layout.n_steps
    assert plan.n_over(capacity) == 0


def test_a_structure_that_fits_nowhere_is_named_before_the_first_step():
    with pytest.raises(InputError, match=r"structure \d+ has 768 atoms.*max_atoms=700"):
        balanced(paper_like(50), Capacity(700, 10**6), 2, 0, 0)


def test_steps_do_not_depend_on_the_epoch():
    costs = paper_like(5000)
    capacity = derive_capacity(costs, 1, 1600, None)
    steps = {make_plan(costs, "balanced", capacity, 8, 0, epoch).n_steps for epoch in range(8)}
    assert steps == {usual_steps(costs, capacity, 8)}


def test_position_in_the_epoch_is_independent_of_size():
    costs = paper_like(3000)
    capacity = derive_capacity(costs, 4, None, None)
    first = [
        float(costs.n_atoms[balanced(costs, capacity, 4, 0, epoch)[0]].max()) for epoch in range(40)
    ]
    assert min(first) < 500 < max(first)
