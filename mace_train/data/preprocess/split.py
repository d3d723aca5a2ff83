"""Splitting structures into training and validation: a permutation from the seed alone.

Structure i gets the key splitmix64(seed, i) (Steele, Lea, Flood 2014) and the structures with the
smallest keys are taken for validation. The keys need no state, so the split does not depend on
the number of workers or on the version of a random library. A structure that holds the last
training example of an element stays in training. O(n log n).
"""

from array import array
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mace_train.data.structure import LOGGER
from mace_train.errors import InputError

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def counter_hash(seed: int, n: int) -> NDArray[np.uint64]:
    """[n] independent uniform 64-bit numbers: splitmix64 of a counter that starts at the seed."""
    with np.errstate(over="ignore"):
        start = _mix(np.array([seed % 2**64], dtype=np.uint64))
        return _mix(start + _GOLDEN * np.arange(1, n + 1, dtype=np.uint64))


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class ElementSets:
    """Which elements every structure holds, with equal sets stored once."""

    def __init__(self) -> None:
        self.sets: list[frozenset[int]] = []
        self.set_of_structure = array("l")
        self._index: dict[tuple[int, ...], int] = {}

    def add(self, numbers: NDArray[np.int64]) -> None:
        """Append a structure with these atomic numbers [n_atoms]."""
        self.add_set(np.flatnonzero(np.bincount(numbers)).tolist())

    def add_set(self, elements: Sequence[int]) -> None:
        """Append a structure that holds these elements, which ascend."""
        index = self._index.setdefault(tuple(elements), len(self.sets))
        if index == len(self.sets):
            self.sets.append(frozenset(elements))
        self.set_of_structure.append(index)

    def __len__(self) -> int:
        return len(self.set_of_structure)

    def __getitem__(self, structure: int) -> frozenset[int]:
        return self.sets[self.set_of_structure[structure]]

    @property
    def elements(self) -> list[int]:
        """Sorted atomic numbers that occur."""
        return sorted(frozenset().union(*self.sets))


def split_off(
    elements: Sequence[frozenset[int]] | ElementSets, fraction: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Structure ids [n_train] for training and [n_valid] for validation, each ascending.

    Args:
        elements: For every structure, the atomic numbers it holds.
        fraction: Share for validation, rounded to whole structures, at least one unless 0.
        seed: Of the permutation.

    Raises:
        InputError: no structure would be left for training.
    """
    n = len(elements)
    n_valid = max(1, int(fraction * n + 0.5)) if fraction > 0 else 0
    if n_valid >= n:
        raise InputError(
            f"data.valid_fraction={fraction} of {n} structures takes {n_valid} for validation and "
            "leaves none for training; set it to 0, lower it, or give more structures"
        )
    n_with_element = _count_elements(elements) if n_valid else Counter[int]()
    is_valid = np.zeros(n, dtype=bool)
    left = n_valid
    for i in np.argsort(counter_hash(seed, n), kind="stable").tolist():
        if left == 0:
            break
        if all(n_with_element[z] > 1 for z in elements[i]):
            n_with_element.subtract(elements[i])
            is_valid[i] = True
            left -= 1
    if left:
        LOGGER.warning(
            "only %d of %d structures are split off for validation: each of the others holds the "
            "last training example of an element",
            n_valid - left,
            n_valid,
        )
    return np.flatnonzero(~is_valid), np.flatnonzero(is_valid)


def _count_elements(elements: Sequence[frozenset[int]] | ElementSets) -> Counter[int]:
    """The number of structures that hold each element."""
    if not isinstance(elements, ElementSets):
        return Counter(z for structure in elements for z in structure)
    n_with_element = Counter[int]()
    for index, count in Counter(elements.set_of_structure).items():
        n_with_element.update(dict.fromkeys(elements.sets[index], count))
    return n_with_element
