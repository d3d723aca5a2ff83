"""Plans of an epoch and of its remainder: every structure once, and the time in epochs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mace_train.balance.epoch_plan import EpochPlan, as_bits, from_bits
from mace_train.balance.sampler import BinSampler
from mace_train.settings import BatchingSettings
from tests.balance.sizes import paper_like

COSTS = paper_like(200)
N = len(COSTS)


def sampler(world_size: int) -> BinSampler:
    return BinSampler(COSTS, BatchingSettings(batch_size=3), world_size, 0, 5)


def ids_of(plan: EpochPlan, world_size: int, first_step: int = 0, n_steps: int | None = None):
    """Ids of the bins of all ranks from a step on, of all steps or of some."""
    bins = [list(plan.bins(rank, first_step))[:n_steps] for rank in range(world_size)]
    return sorted(int(i) for of_rank in bins for ids in of_rank for i in ids)


@pytest.mark.parametrize("world_size", [1, 2, 7])
def test_done_and_remaining_structures_are_the_epoch(world_size):
    plan = EpochPlan.full(sampler(world_size), 3)
    assert ids_of(plan, world_size) == list(range(N))
    for step in (0, 1, plan.n_steps // 2, plan.n_steps):
        remaining = plan.remaining_ids(step)
        assert (np.diff(remaining) > 0).all()
        assert remaining.tolist() == ids_of(plan, world_size, step)
        assert ids_of(plan, world_size, 0, step) == sorted(set(range(N)) - set(remaining.tolist()))


def test_the_remainder_on_other_ranks_has_each_remaining_structure_once():
    whole = EpochPlan.full(sampler(2), 3)
    left = whole.remaining_ids(5)
    rest = EpochPlan.remaining(sampler(3), 3, left)
    assert 0 < len(left) < N
    assert ids_of(rest, 3) == left.tolist()
    left_twice = rest.remaining_ids(4)  # ids in the shards, not in the remainder
    assert left_twice.tolist() == ids_of(rest, 3, 4)
    assert 0 < len(left_twice) < len(left)
    again = EpochPlan.remaining(sampler(1), 3, left_twice)
    assert ids_of(again, 1) == left_twice.tolist()


def test_time_runs_evenly_through_the_structures():
    whole = EpochPlan.full(sampler(2), 4)
    assert whole.time(0) == 4.0
    assert whole.time(whole.n_steps) == 5.0
    assert whole.time(3) == pytest.approx(4.0 + 3 / whole.n_steps)
    left = whole.remaining_ids(5)
    rest = EpochPlan.remaining(sampler(3), 4, left)
    assert rest.time(0) == pytest.approx(5.0 - len(left) / N)
    assert rest.time(rest.n_steps) == pytest.approx(5.0)


@given(st.integers(1, 100).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1)))))
def test_bits_hold_a_set_of_ids(case):
    n, ids = case
    bits = as_bits(np.array(sorted(ids), dtype=np.int64), n)
    assert bits.dtype == np.uint8
    assert len(bits) == -(-n // 8)
    assert from_bits(bits, n).tolist() == sorted(ids)
