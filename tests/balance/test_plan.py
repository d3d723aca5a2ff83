"""Plans: their numbers by brute force, determinism, and the balance that the packers reach."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mace_train.balance.bins import Bins
from mace_train.balance.costs import Capacity, Costs, derive_capacity
from mace_train.balance.packers import PACKERS
from mace_train.balance.plan import Plan, make_plan
from mace_train.errors import InputError
from tests.balance.sizes import WORLD_SIZES, data_sets, paper_like

few = settings(deadline=None, max_examples=40)
packer_names = st.sampled_from(sorted(PACKERS))


@given(data_sets(), packer_names, WORLD_SIZES, st.integers(1, 12))
@few
def test_numbers_of_a_plan_by_brute_force(costs, packer, world_size, batch_size):
    capacity = derive_capacity(costs, batch_size, None, None)
    plan = make_plan(costs, packer, capacity, world_size, 3, 1)
    cost = costs.n_atoms + costs.n_edges / 30
    slowest = total = n_over = 0.0
    for step in range(plan.n_steps):
        bins = [plan.bin(step, rank) for rank in range(world_size)]
        for rank, ids in enumerate(bins):
            assert plan.n_structures[step, rank] == len(ids)
            assert plan.n_atoms[step, rank] == sum(costs.n_atoms[ids].tolist())
            assert plan.n_edges[step, rank] == sum(costs.n_edges[ids].tolist())
            n_over += plan.n_atoms[step, rank] > capacity.max_atoms or (
                plan.n_edges[step, rank] > capacity.max_edges
            )
        of_ranks = [sum(cost[ids].tolist()) for ids in bins]
        slowest, total = slowest + max(of_ranks), total + sum(of_ranks)
        assert plan.imbalance[step] == pytest.approx(max(of_ranks) * world_size / sum(of_ranks))
    assert plan.straggler == pytest.approx(slowest * world_size / total)
    assert plan.n_over(capacity) == n_over
    fill_atoms = costs.n_atoms.sum() / (plan.n_steps * world_size * capacity.max_atoms)
    assert plan.fill(capacity)[0] == pytest.approx(fill_atoms)


@given(data_sets(), packer_names, WORLD_SIZES, st.integers(0, 99))
@few
def test_ranks_share_the_structures_and_the_number_of_steps(costs, packer, world_size, epoch):
    capacity = derive_capacity(costs, 4, None, None)
    plan = make_plan(costs, packer, capacity, world_size, 0, epoch)
    seen = [list(plan.of_rank(rank)) for rank in range(world_size)]
    assert {len(bins) for bins in seen} == {plan.n_steps}
    ids = np.concatenate([np.concatenate(bins) for bins in seen])
    assert np.array_equal(np.sort(ids), np.arange(len(costs)))


@given(data_sets(), packer_names, st.integers(1, 9))
@few
def test_a_plan_follows_from_its_arguments_alone(costs, packer, world_size):
    capacity = derive_capacity(costs, 4, None, None)
    plan = make_plan(costs, packer, capacity, world_size, 5, 2)
    assert plan.fingerprint == make_plan(costs, packer, capacity, world_size, 5, 2).fingerprint
    more = make_plan(costs, packer, capacity, world_size + 1, 5, 2)
    assert plan.fingerprint != more.fingerprint


def test_plans_are_the_same_on_every_machine():
    # changes only with the algorithm: checkpoints written before cannot continue within an epoch
    costs = paper_like_by_formula()
    capacity = derive_capacity(costs, 8, None, None)
    prints = {name: make_plan(costs, name, capacity, 4, 7, 3).fingerprint for name in PACKERS}
    assert prints == GOLDEN


def paper_like_by_formula() -> Costs:
    """500 sizes from integer arithmetic, so that they are the same everywhere."""
    atoms = 2 + np.arange(500) ** 2 % 97 + 400 * (np.arange(500) % 31 == 0)
    return Costs(atoms, atoms * (20 + np.arange(500) % 23))


GOLDEN = {
    "balanced": 2366540596593092248,
    "algorithm1": 3521708242139776524,
    "first_fit": 5589443411414971585,
    "fixed_count": 5788156484965896246,
}


@pytest.mark.parametrize("packer", sorted(PACKERS))
def test_epochs_and_seeds_differ(packer):
    costs = paper_like(400)
    capacity = derive_capacity(costs, 6, None, None)
    plans = [make_plan(costs, packer, capacity, 4, s, e) for s, e in ((0, 0), (0, 1), (1, 0))]
    assert len({plan.fingerprint for plan in plans}) == 3


@given(st.integers(0, 1000), st.sampled_from([4, 8, 16]), st.integers(4, 12))
@few
def test_algorithm1_is_no_worse_than_fixed_count_on_uneven_sets(seed, world_size, batch_size):
    random = np.random.default_rng(seed)
    atoms = np.clip(random.lognormal(3.0, 1.0, 1500), 2, 800).astype(np.int64)
    costs = Costs(atoms, (atoms * random.uniform(25, 45, 1500)).astype(np.int64))
    capacity = derive_capacity(costs, batch_size, None, None)
    balanced = make_plan(costs, "algorithm1", capacity, world_size, 0, 0)
    counted = make_plan(costs, "fixed_count", capacity, world_size, 0, 0)
    assert balanced.straggler <= counted.straggler


def test_balance_on_the_sizes_of_the_paper():
    costs = paper_like(60_000)
    capacity = derive_capacity(costs, 1, 3072, None)
    plan = make_plan(costs, "algorithm1", capacity, 64, 0, 0)
    assert 1.0 < plan.straggler < 1.15
    assert plan.n_over(capacity) == 0
    assert plan.fill(capacity)[0] > 0.95
    counted = make_plan(costs, "fixed_count", Capacity(3072, 10**9, 6), 64, 0, 0)
    assert counted.straggler > 2.5
    per_step = plan.n_structures.sum(axis=1)
    assert per_step.std() < 0.05 * per_step.mean()


def test_fewer_structures_than_ranks():
    costs = Costs(np.array([5, 3, 9]), np.array([10, 6, 30]))
    capacity = derive_capacity(costs, 4, None, None)
    for packer in PACKERS:
        plan = make_plan(costs, packer, capacity, 8, 0, 0)
        assert plan.n_steps == 1
        assert sorted(plan.n_structures[0].tolist()) == [0] * 5 + [1] * 3


def test_wrong_arguments_are_named():
    costs = paper_like(50)
    capacity = derive_capacity(costs, 4, None, None)
    with pytest.raises(
        InputError, match=r"packer='best'.*balanced, algorithm1, first_fit, fixed_count"
    ):
        make_plan(costs, "best", capacity, 2, 0, 0)
    with pytest.raises(InputError, match="world_size=0"):
        make_plan(costs, "algorithm1", capacity, 0, 0, 0)
    with pytest.raises(InputError, match=r"structure .* has 768 atoms.*max_atoms=700"):
        make_plan(costs, "algorithm1", Capacity(700, 10**6), 2, 0, 0)
    with pytest.raises(IndexError, match="rank 2"):
        make_plan(costs, "algorithm1", capacity, 2, 0, 0).bin(0, 2)


@pytest.mark.parametrize("bins", [[[0, 1], [2]], [[0, 1], [2, 3, 3]], [[0, 1], [2, 3, 4]]])
def test_a_packer_that_loses_or_doubles_is_caught(bins):
    costs = Costs(np.ones(4, np.int64), np.ones(4, np.int64))
    with pytest.raises(AssertionError):
        Plan(costs, 1, Bins.listed(bins))
    with pytest.raises(AssertionError, match="number of steps"):
        Plan(costs, 2, Bins.listed([[0], [1], [2, 3]]))


@given(data_sets(), packer_names, WORLD_SIZES)
@few
def test_no_plan_is_below_its_bound(costs, packer, world_size):
    capacity = derive_capacity(costs, 4, None, None)
    plan = make_plan(costs, packer, capacity, world_size, 0, 0)
    assert plan.straggler >= plan.least_straggler * (1 - 1e-12) >= 1 - 1e-9
    largest = [
        max([0, *costs.scaled[plan.bins.ids[slice(*ends)]].tolist()])
        for ends in zip(
            plan.bins.offsets[:-1:world_size],
            plan.bins.offsets[world_size::world_size],
            strict=True,
        )
    ]
    mean = (plan.bin_costs * costs.edges_per_atom).mean(axis=1)
    expected = np.maximum(mean, largest).sum() / mean.sum()
    assert plan.least_straggler == pytest.approx(expected)
