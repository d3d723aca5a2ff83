"""split: a permutation from the seed that keeps every element in training."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mace_train.data.preprocess.split import ElementSets, counter_hash, split_off
from mace_train.errors import InputError

H2 = [frozenset({1})]


def splitmix64(state: int) -> int:
    """The published generator's step on Python integers."""
    mask = 2**64 - 1
    z = state & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


@given(seed=st.integers(0, 2**70), n=st.integers(0, 20))
@settings(deadline=None, max_examples=30)
def test_hash_is_splitmix64_of_a_counter(seed, n):
    start = splitmix64(seed)
    expected = [splitmix64(start + 0x9E3779B97F4A7C15 * i) for i in range(1, n + 1)]
    assert counter_hash(seed, n).tolist() == expected


def test_splitmix64_known_value():
    # first output of Java's SplittableRandom and of the reference C code for seed 0
    assert splitmix64(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF


def test_the_split_never_changes():
    train, valid = split_off(H2 * 20, 0.25, seed=123)
    keys = counter_hash(123, 20)
    assert valid.tolist() == sorted(np.argsort(keys)[:5].tolist())
    assert valid.tolist() == [5, 8, 10, 12, 18]
    assert sorted([*train.tolist(), *valid.tolist()]) == list(range(20))


@given(
    sets=st.lists(st.frozensets(st.integers(1, 9), min_size=1, max_size=4), min_size=2),
    fraction=st.floats(0, 0.6),
    seed=st.integers(0, 1000),
)
@settings(deadline=None, max_examples=100)
def test_a_partition_that_trains_every_element(sets, fraction, seed):
    train, valid = split_off(sets, fraction, seed)
    assert sorted([*train.tolist(), *valid.tolist()]) == list(range(len(sets)))
    assert len(valid) <= (max(1, round(fraction * len(sets) + 1e-9)) if fraction else 0)
    trained = frozenset().union(*(sets[i] for i in train))
    assert trained == frozenset().union(*sets)
    # whatever could be taken besides was needed, or enough was taken
    if len(valid) < int(fraction * len(sets)):
        for i in train:
            others = frozenset().union(*(sets[j] for j in train if j != i))
            assert not sets[i] <= others


def test_seeds_differ():
    splits = {tuple(split_off(H2 * 50, 0.2, seed)[1].tolist()) for seed in range(20)}
    assert len(splits) == 20


def test_a_shortage_is_logged(caplog):
    rare = [frozenset({z}) for z in range(1, 5)] + H2
    _, valid = split_off(rare, 0.5, 0)
    assert len(valid) == 1
    assert "only 1 of 3 structures are split off" in caplog.text


@pytest.mark.parametrize(("n", "fraction"), [(1, 0.1), (1, 0.9), (2, 0.8), (10, 0.99)])
def test_nothing_left_to_train(n, fraction):
    with pytest.raises(InputError, match="leaves none for training"):
        split_off(H2 * n, fraction, 0)


def test_no_fraction_takes_nothing():
    train, valid = split_off(H2 * 3, 0.0, 0)
    assert train.tolist() == [0, 1, 2]
    assert valid.size == 0


def test_at_least_one():
    assert len(split_off(H2 * 3, 0.01, 0)[1]) == 1


def test_element_sets():
    elements = ElementSets()
    for numbers in ([8, 1, 1], [6], [1, 8]):
        elements.add(np.array(numbers))
    assert [elements[i] for i in range(len(elements))] == [{1, 8}, {6}, {1, 8}]
    assert len(elements.sets) == 2
    assert elements.elements == [1, 6, 8]
