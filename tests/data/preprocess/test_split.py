"""split: a permutation from the seed that keeps every element in training."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mace_train.data.preprocess.split import (
    ElementSets,
    counter_hash,
    split_heads,
    split_off,
)
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


def split_without_groups(sets, fraction, seed):
    """What split_off did before it knew groups: the structures with the smallest keys."""
    n = len(sets)
    left = max(1, int(fraction * n + 0.5)) if fraction else 0
    holding = {z: sum(z in s for s in sets) for z in range(1, 10)}
    valid = []
    for i in np.argsort(counter_hash(seed, n), kind="stable").tolist():
        if left and all(holding[z] > 1 for z in sets[i]):
            holding = {z: count - (z in sets[i]) for z, count in holding.items()}
            valid.append(i)
            left -= 1
    return sorted(valid)


SETS = st.lists(st.frozensets(st.integers(1, 9), min_size=1, max_size=3), min_size=4, max_size=40)


@given(sets=SETS, fraction=st.floats(0.01, 0.6), seed=st.integers(0, 1000), data=st.data())
@settings(deadline=None, max_examples=200)
def test_without_groups_nothing_changes(sets, fraction, seed, data):
    names = st.permutations(range(len(sets)))  # of groups: they say nothing
    groups = np.array(data.draw(names))
    expected = split_without_groups(sets, fraction, seed)
    assert split_off(sets, fraction, seed)[1].tolist() == expected
    assert split_off(sets, fraction, seed, groups)[1].tolist() == expected


@given(sets=SETS, fraction=st.floats(0.01, 0.6), seed=st.integers(0, 1000), data=st.data())
@settings(deadline=None, max_examples=200)
def test_no_group_is_divided(sets, fraction, seed, data):
    n = len(sets)
    numbers = st.lists(st.integers(0, n // 2), min_size=n, max_size=n)
    groups = np.array(data.draw(numbers.filter(lambda found: len(set(found)) > 1)))
    train, valid = split_off(sets, fraction, seed, groups)
    assert sorted([*train.tolist(), *valid.tolist()]) == list(range(n))
    assert len(train) > 0
    assert not set(groups[train].tolist()) & set(groups[valid].tolist())
    assert frozenset().union(*(sets[i] for i in train)) == frozenset().union(*sets)
    again = data.draw(st.permutations(range(n)))  # other numbers for the same groups
    renamed = np.array(again)[groups]
    assert split_off(sets, fraction, seed, renamed)[1].tolist() == valid.tolist()


@given(
    sizes=st.lists(st.integers(1, 6), min_size=2, max_size=30),
    fraction=st.floats(0.01, 0.6),
    seed=st.integers(0, 1000),
)
@settings(deadline=None, max_examples=200)
def test_the_number_is_as_close_as_groups_allow(sizes, fraction, seed):
    groups = np.repeat(np.arange(len(sizes)), sizes)
    n = len(groups)
    asked = max(1, int(fraction * n + 0.5))
    train, valid = split_off(H2 * n, fraction, seed, groups)
    assert len(valid) > 0
    for group in set(groups[train].tolist()):  # no other one brings it closer
        more = len(valid) + sizes[group]
        assert more == n or abs(more - asked) >= abs(len(valid) - asked)
    distance = abs(len(valid) - asked)
    assert distance <= max(sizes) / 2 or len(valid) in (min(sizes), n - min(sizes))


def test_large_groups_are_said(caplog):
    groups = np.repeat(np.arange(3), 100)
    _, valid = split_off(H2 * 300, 0.1, 0, groups)
    assert len(valid) == 100
    assert (
        "100 of the 300 structures are split off for validation, data.valid_fraction=0.1 asks for "
        "30: groups are not divided (the largest holds 100)"
    ) in caplog.text


@given(
    heads=st.lists(st.lists(st.integers(0, 12), min_size=4, max_size=20), min_size=1, max_size=3),
    fraction=st.floats(0.05, 0.4),
    seed=st.integers(0, 100),
)
@settings(deadline=None, max_examples=200)
def test_groups_of_several_heads(heads, fraction, seed):
    heads = [groups for groups in heads if len(set(groups)) > 1]
    groups = np.array([group for head in heads for group in head])
    ends = np.cumsum([len(head) for head in heads])
    parts = [
        (str(k), np.arange(end - len(head), end), H2 * len(head))
        for k, (head, end) in enumerate(zip(heads, ends, strict=True))
    ]
    train, valid = split_heads(parts, groups, fraction, seed)
    assert sorted([*train.tolist(), *valid.tolist()]) == list(range(len(groups)))
    assert not set(groups[train].tolist()) & set(groups[valid].tolist())
    for _, numbers, _ in parts:
        assert set(numbers.tolist()) & set(train.tolist())
    if len(heads) == 1:
        assert valid.tolist() == split_off(H2 * len(groups), fraction, seed, groups)[1].tolist()
