"""Windows: every structure once, equal numbers, nearly equal totals, uniform company."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mace_train.balance.windows import assign, layout_for, locality_order
from tests.balance.sizes import data_sets, paper_like

few = settings(deadline=None, max_examples=60)


@given(st.integers(1, 5000), st.integers(1, 5000))
@example(73, 42)
@example(211, 30)
@few
def test_layouts_hold_whole_steps(n_steps, world_size):
    layout = layout_for(n_steps, world_size, 10**9)
    assert n_steps <= layout.n_steps <= max(1.02 * n_steps, n_steps + 1)
    assert layout.n_windows * layout.n_bins == layout.n_steps * world_size
    assert layout.n_bins % world_size == 0 or world_size % layout.n_bins == 0


@pytest.mark.parametrize(("world_size", "n_bins"), [(740, 370), (4096, 512), (739, 739), (8, 368)])
def test_windows_are_of_a_few_hundred_bins(world_size, n_bins):
    assert layout_for(46 * 12 * 8, world_size, 10**9).n_bins == n_bins


@given(data_sets(), st.integers(1, 40), st.integers(0, 99))
@few
def test_every_structure_is_assigned_once(costs, n_windows, epoch):
    order = costs.locality_order
    assert np.array_equal(np.sort(order), np.arange(len(costs)))
    assigned = assign(order, n_windows, 3, epoch)
    assert np.array_equal(np.sort(assigned.ids), np.arange(len(costs)))
    counts = np.diff(assigned.offsets)
    assert counts.sum() == len(costs)
    assert np.ptp(counts) <= 1
    assert np.array_equal(assigned.ids, assign(order, n_windows, 3, epoch).ids)


def test_totals_of_windows_are_nearly_equal():
    costs = paper_like(100_000)
    assigned = assign(locality_order(costs.n_atoms, costs.n_edges), 20, 0, 0)
    for counts in (costs.n_atoms, costs.n_edges):
        totals = np.add.reduceat(counts[assigned.ids], assigned.offsets[:-1])
        assert totals.std() < 0.002 * totals.mean()  # 0.02 for a shuffle
    assert np.ptp(np.diff(assigned.offsets)) == 0


def test_any_two_structures_meet_equally_often():
    costs, n_windows, n_epochs = paper_like(60), 5, 3000
    together = np.zeros((60, 60))
    for epoch in range(n_epochs):
        assigned = assign(costs.locality_order, n_windows, 0, epoch)
        for window in range(n_windows):
            members = assigned.members(window)
            together[np.ix_(members, members)] += 1
    share = together[np.triu_indices(60, 1)] / n_epochs
    assert share.max() < 0.3  # 1 / 5 were all pairs alike, standard error 0.007
    assert share.mean() == pytest.approx(11 / 59, rel=1e-12)
