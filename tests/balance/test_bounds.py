"""Lower bounds against brute force."""

from itertools import product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mace_train.balance.bounds import least_bins, least_steps
from mace_train.balance.costs import Capacity, Costs

few = settings(deadline=None, max_examples=100)
SIZES = st.lists(st.tuples(st.integers(1, 20), st.integers(0, 20)), min_size=1, max_size=6)


@given(SIZES, st.integers(20, 30), st.integers(20, 40))
@few
def test_no_packing_has_fewer_bins(sizes, max_atoms, max_edges):
    atoms, edges = np.array(sizes).T
    capacity = Capacity(max_atoms, max_edges)
    bound = least_bins(Costs(atoms, edges), capacity)
    for n_bins in range(1, bound):
        for way in product(range(n_bins), repeat=len(sizes)):
            loads = np.bincount(way, atoms, n_bins), np.bincount(way, edges, n_bins)
            assert loads[0].max() > max_atoms or loads[1].max() > max_edges


def test_bounds_by_hand():
    def bins(atoms, limit, **more):
        return least_bins(
            Costs(np.array(atoms), np.zeros(len(atoms), int)), Capacity(limit, 0, **more)
        )

    assert bins([5, 5, 5], 10) == 2  # the sum
    assert bins([6, 6, 6], 10) == 3  # no two share a bin
    assert bins([7, 7, 4, 4, 4], 10) == 4  # nothing fits beside a 7, and only two 4s together
    assert bins([1] * 10, 10, batch_size=3) == 4
    assert least_steps(Costs(np.full(9, 6), np.zeros(9, int)), Capacity(10, 0), 4) == 3
