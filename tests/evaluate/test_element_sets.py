"""Filters by elements are those of Python's sets."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mace_train.errors import InputError
from mace_train.evaluate.element_sets import (
    element_set,
    element_sets,
    numbers_in,
    parsed_elements,
    passing,
    symbols_in,
)

NUMBERS = st.integers(1, 118)
SETS = st.sets(NUMBERS, min_size=1, max_size=5)
TRUTH = {
    "subset": lambda own, given: own <= given,
    "overlap": lambda own, given: bool(own & given),
    "equal": lambda own, given: own == given,
    "superset": lambda own, given: own >= given,
}


@given(structures=st.lists(st.lists(NUMBERS, min_size=1, max_size=6), min_size=1), given_set=SETS)
def test_filters_are_those_of_sets(structures, given_set):
    structures += [sorted(given_set), [*sorted(given_set), 1], sorted(given_set)[:1]]
    numbers = np.array([z for structure in structures for z in structure], dtype=np.uint8)
    offsets = np.cumsum([0] + [len(structure) for structure in structures])
    sets = element_sets(numbers, offsets)
    for structure, own in zip(structures, sets, strict=True):
        assert (own == element_set(structure)).all()
        assert numbers_in(own) == sorted(set(structure))
    assert numbers_in(sets) == sorted(set(numbers.tolist()))
    for name, truth in TRUTH.items():
        expected = [truth(set(structure), given_set) for structure in structures]
        assert passing(sets, element_set(given_set), name).tolist() == expected


def test_names():
    assert symbols_in(element_set([64, 63, 1, 118])) == "H, Eu, Gd, Og"
    assert parsed_elements("elements", ["H", 8, "Og"]) == [1, 8, 118]
    assert len(element_sets(np.zeros(0, np.uint8), np.zeros(1, np.int64))) == 0


@pytest.mark.parametrize("value", ["Xx", "X", 0, 119, True, None, 1.0, "h"])
def test_no_element(value):
    with pytest.raises(InputError, match=r"elements: .* is no element; give symbols or"):
        parsed_elements("elements", ["H", value])
