"""The packers to compare with."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mace_train.balance.costs import Capacity, Costs
from mace_train.balance.packers import PACKERS
from mace_train.errors import InputError
from tests.balance.sizes import WORLD_SIZES, capacities, data_sets, paper_like

few = settings(deadline=None, max_examples=80)


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


@given(st.data(), data_sets(), WORLD_SIZES, st.integers(0, 10**6))
@few
def test_first_fit_keeps_its_promises(data, costs, world_size, epoch):
    capacity = data.draw(capacities(costs))
    bins = PACKERS["first_fit"](costs, capacity, world_size, 1, epoch)
    assert np.array_equal(np.sort(np.concatenate(list(bins))), np.arange(len(costs)))
    assert len(bins) % world_size == 0
    for counts, limit in zip(costs.dimensions, capacity.limits, strict=True):
        assert max(counts[ids].sum() for ids in bins) <= limit
    assert sum(len(ids) == 0 for ids in bins) < world_size


def test_first_fit_by_hand():
    # whatever the order, 6 and 4 share a bin of 10 in the end, and no bin takes a second 6
    costs = Costs(np.array([6, 4, 6, 4]), np.zeros(4, np.int64))
    for epoch in range(10):
        bins = PACKERS["first_fit"](costs, Capacity(10, 0), 1, 0, epoch)
        loads = sorted(int(costs.n_atoms[ids].sum()) for ids in bins)
        assert loads in ([10, 10], [6, 6, 8])
