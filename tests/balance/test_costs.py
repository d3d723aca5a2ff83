"""Costs and capacities, and what their errors say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mace_train.balance.costs import Capacity, Costs, capacity_of, check_fits, derive_capacity
from mace_train.errors import InputError
from mace_train.settings import BatchingSettings
from tests.balance.sizes import data_sets


def test_derived_capacity_by_hand():
    costs = Costs(np.array([10, 20, 30]), np.array([100, 300, 800]))
    # 2 structures of 20 atoms on average + 10 %; 44 atoms of 20 edges each + 15 %
    assert derive_capacity(costs, 2, None, None) == Capacity(44, 1012, 2)
    # the largest structure fits, however few a batch holds
    assert derive_capacity(costs, 1, None, None) == Capacity(30, 800, 1)
    # a given capacity is kept, and then no number of structures is aimed at
    assert derive_capacity(costs, 2, 60, None) == Capacity(60, 1380, None)
    assert derive_capacity(costs, 2, 60, 900) == Capacity(60, 900, None)


@given(data_sets(), st.integers(1, 50))
@settings(deadline=None, max_examples=50)
def test_derived_capacity_holds_every_structure(costs, batch_size):
    capacity = derive_capacity(costs, batch_size, None, None)
    check_fits(costs, capacity)
    assert capacity.max_atoms * len(costs) >= batch_size * costs.n_atoms.sum()


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"max_atoms": 29}, ["structure 2", "30 atoms", "max_atoms=29", "1 of 3", "at least 30"]),
        ({"max_edges": 299}, ["structure 1", "300 edges", "max_edges=299", "at least 300"]),
    ],
)
def test_a_structure_above_the_capacity_is_named(limits, words):
    costs = Costs(np.array([10, 20, 30]), np.array([100, 300, 80]))
    with pytest.raises(InputError) as error:
        capacity_of(costs, BatchingSettings(**limits))
    assert all(word in str(error.value) for word in words)


def test_fixed_count_takes_no_capacity():
    costs = Costs(np.array([10, 20, 30]), np.array([100, 300, 800]))
    counted = BatchingSettings(packer="fixed_count", batch_size=2)
    assert capacity_of(costs, counted).batch_size == 2
    with pytest.raises(InputError, match=r"max_edges=900.*fixed_count.*null"):
        capacity_of(costs, BatchingSettings(packer="fixed_count", max_edges=900))


@pytest.mark.parametrize(
    ("atoms", "edges", "words"),
    [
        ([], [], "no structures"),
        ([3, 0], [4, 0], "structure 1: 0 atoms"),
        ([3, 3], [4, -1], "structure 1: 3 atoms and -1 edges"),
        ([3], [4, 5], "shape"),
    ],
)
def test_impossible_costs(atoms, edges, words):
    with pytest.raises(InputError, match=words):
        Costs(np.array(atoms), np.array(edges))


def test_fingerprint_sees_size_and_order():
    counts = [([1, 2], [3, 4]), ([2, 1], [3, 4]), ([1, 2], [4, 3]), ([1, 2, 2], [3, 4, 4])]
    prints = {Costs(np.array(a), np.array(e)).fingerprint for a, e in counts}
    assert len(prints) == 4
    again = Costs(np.array([1, 2], np.int32), np.array([3, 4], np.int32))
    assert again.fingerprint in prints
