"""The sampler: restarts go on exactly where a training stopped; evaluation sees everything once."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mace_train.balance.costs import Costs, derive_capacity
from mace_train.balance.packers import PACKERS
from mace_train.balance.sampler import BinSampler, evaluation_plan
from mace_train.errors import InputError
from mace_train.settings import BatchingSettings
from tests.balance.sizes import WORLD_SIZES, data_sets, paper_like

few = settings(deadline=None, max_examples=40)


def sampler(costs: Costs, *, world_size=3, rank=1, seed=0, **batching) -> BinSampler:
    return BinSampler(costs, BatchingSettings(**batching), world_size, rank, seed)


def trained(of: BinSampler, n_steps: int) -> list[list[int]]:
    """The structures of the next steps, as a training loop takes them, across epochs."""
    steps: list[list[int]] = []
    while len(steps) < n_steps:
        for ids in of:
            steps.append(ids.tolist())
            of.advance()
            if len(steps) == n_steps:
                break
    return steps


@given(data_sets(), st.integers(1, 6), st.integers(0, 40), st.sampled_from(sorted(PACKERS)))
@few
def test_a_restart_at_any_step_is_the_tail_of_the_uninterrupted_run(costs, world, stop, packer):
    settings_ = {"batch_size": 3, "packer": packer}
    rank = stop % world
    whole = trained(sampler(costs, world_size=world, rank=rank, **settings_), 50)
    first = sampler(costs, world_size=world, rank=rank, **settings_)
    head = trained(first, stop)
    state = json.loads(json.dumps(first.state_dict()))  # as a checkpoint keeps it
    second = sampler(costs, world_size=world, rank=rank, **settings_)
    second.load_state_dict(state)
    assert head + trained(second, 50 - stop) == whole


def test_reading_ahead_does_not_move_the_position():
    reader = sampler(paper_like(200), batch_size=5)
    n_steps = len(reader)
    assert len(list(reader)) == n_steps == reader.plan(0).n_steps
    assert (reader.epoch, reader.step) == (0, 0)
    reader.advance()
    assert len(reader) == len(list(reader)) == n_steps - 1
    tail = [ids.tolist() for ids in reader.bins(0, 1)]
    assert tail == [ids.tolist() for ids in reader]
    for _ in range(n_steps - 1):
        reader.advance()
    assert (reader.epoch, reader.step) == (1, 0)


def test_all_ranks_together_see_every_structure_once():
    costs = paper_like(500)
    parts = [sampler(costs, world_size=7, rank=rank, batch_size=4) for rank in range(7)]
    assert len({part.plan(2).fingerprint for part in parts}) == 1
    ids = np.concatenate([np.concatenate(list(part.bins(2))) for part in parts])
    assert np.array_equal(np.sort(ids), np.arange(500))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"world_size": 4}, "world_size=4 (the checkpoint has 3)"),
        ({"seed": 1}, "seed=1"),
        ({"packer": "fixed_count"}, "packer=fixed_count"),
        ({"max_atoms": 2000}, "max_atoms=2000"),
    ],
)
def test_within_an_epoch_nothing_may_change_between_epochs_it_may(change, word):
    costs = paper_like(300)
    before = sampler(costs, batch_size=5)
    state = before.state_dict()
    sampler(costs, **{"batch_size": 5, **change}).load_state_dict(state)
    before.advance()
    with pytest.raises(InputError) as error:
        sampler(costs, **{"batch_size": 5, **change}).load_state_dict(before.state_dict())
    assert word in str(error.value)
    assert "step 1 of epoch 0" in str(error.value)


def test_other_data_within_an_epoch_is_an_error():
    before = sampler(paper_like(300, seed=0), max_atoms=3000, max_edges=200_000)
    before.advance()
    after = sampler(paper_like(300, seed=1), max_atoms=3000, max_edges=200_000)
    with pytest.raises(InputError, match="dataset="):
        after.load_state_dict(before.state_dict())


def test_errors_come_before_the_first_step():
    with pytest.raises(InputError, match=r"structure \d+ has 768 atoms.*max_atoms=500"):
        sampler(paper_like(100), max_atoms=500)
    with pytest.raises(InputError, match="rank=3 of world_size=3"):
        sampler(paper_like(100), rank=3)


@given(data_sets(), WORLD_SIZES, st.integers(1, 10))
@few
def test_evaluation_sees_everything_once(costs, world_size, batch_size):
    capacity = derive_capacity(costs, batch_size, None, None)
    plan = evaluation_plan(costs, capacity, world_size)
    ids = np.concatenate([np.concatenate(list(plan.of_rank(r))) for r in range(world_size)])
    assert np.array_equal(np.sort(ids), np.arange(len(costs)))
    assert len({len(list(plan.of_rank(r))) for r in range(world_size)}) == 1
    assert plan.n_over(capacity) == 0
    assert plan.fingerprint == evaluation_plan(costs, capacity, world_size).fingerprint
