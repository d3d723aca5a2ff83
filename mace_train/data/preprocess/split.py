"""Splitting structures into training and validation: a permutation from the seed alone.

Structure i gets the key splitmix64(seed, i) (Steele, Lea, Flood 2014) and the structures with the
smallest keys are taken for validation. The keys need no state, so the split does not depend on
the number of workers or on the version of a random library. A group of structures (groups.py) is
taken whole or not at all and has the key of its first structure; one that is larger than what is
still to take is passed over. A group that holds the last training example of an element stays in
training. Heads are split each on its own, except for the groups that they share. O(n log n).
"""

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence

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


Elements = Sequence[frozenset[int]] | ElementSets
NOTICEABLE = 0.1  # of the number asked for: a difference from it that is said


def split_off(
    elements: Elements, fraction: float, seed: int, groups: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Structure ids [n_train] for training and [n_valid] for validation, each ascending.

    Args:
        elements: For every structure, the atomic numbers it holds.
        fraction: Share for validation, rounded to whole structures, at least one unless 0.
        seed: Of the permutation.
        groups: [n] number of the group of every structure; None: each is one.

    Raises:
        InputError: no structure would be left for training, or all are one group.
    """
    n = len(elements)
    return split_heads([("Default", np.arange(n), elements)], groups, fraction, seed)


def split_heads(
    heads: Sequence[tuple[str, NDArray[np.int64], Elements]],
    groups: NDArray[np.int64] | None,
    fraction: float,
    seed: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """``split_off`` for several heads: of each its name, the ids of its structures, and elements.

    A group with structures of several heads is on one side in all of them.
    """
    n = sum(len(numbers) for _, numbers, _ in heads)
    is_valid = np.zeros(n, dtype=bool)
    if groups is None:
        groups = np.arange(n)
    if fraction > 0:
        shares = [_Share(*head, groups, fraction, seed) for head in heads]
        _take_groups(shares)
        for share in shares:
            share.report()
            is_valid[share.numbers[share.is_taken]] = True
    return np.flatnonzero(~is_valid), np.flatnonzero(is_valid)


def _take_groups(shares: Sequence["_Share"]) -> None:
    """Choose the groups for validation; the smallest head first, for it has the least choice."""
    ascending = sorted(shares, key=lambda share: share.n)
    for share in ascending:  # no more than is asked for
        for group in share.in_order():
            if share.left == 0:
                break
            parts = _parts(group, shares)
            if _fits(parts):
                _take(parts)
    for share in ascending:  # more, where that is closer
        for group in share.in_order():
            if share.left <= 0:
                break
            parts = _parts(group, shares)
            if sum(part.cost_of(len(members)) for part, members in parts) < 0:
                _take(parts)
    for share in ascending:
        if share.n_taken == 0:
            by_size = sorted(share.in_order(), key=lambda group: len(share.members_of(group)))
            any(_take(_parts(group, shares)) for group in by_size)


_Parts = list[tuple["_Share", NDArray[np.int64]]]


def _parts(group: int, shares: Sequence["_Share"]) -> _Parts:
    """The heads that have structures in a group, and which of theirs these are."""
    parts = [(share, share.members_of(group)) for share in shares]
    return [(share, members) for share, members in parts if len(members)]


def _fits(parts: _Parts) -> bool:
    """Whether a group is in no head larger than what is left to take."""
    fits = all(len(members) <= share.left for share, members in parts)
    for share, _ in parts:
        share.passed_over |= not fits
    return fits


def _take(parts: _Parts) -> bool:
    """Take a group for validation, unless the last training example of an element is in it."""
    if all(share.can_take(members) for share, members in parts):
        for share, members in parts:
            share.take(members)
        return True
    return False


class _Share:
    """The structures of one head, by groups, and which groups are taken for validation."""

    def __init__(
        self,
        name: str,
        numbers: NDArray[np.int64],
        elements: Elements,
        groups: NDArray[np.int64],
        fraction: float,
        seed: int,
    ) -> None:
        self.name, self.numbers, self.elements = name, numbers, elements
        self.n, self.fraction = len(numbers), fraction
        self.n_asked = max(1, int(fraction * self.n + 0.5))
        self.n_taken = 0
        if self.n_asked >= self.n:
            raise InputError(
                f"data.valid_fraction={fraction} of {self.n} structures takes {self.n_asked} for "
                "validation and leaves none for training; set it to 0, lower it, or give more "
                "structures"
            )
        self.groups, first, group_of = np.unique(
            groups[numbers], return_index=True, return_inverse=True
        )
        if len(self.groups) == 1:
            raise InputError(
                f"the {self.n} structures{self._of_head} are one group (copies of one structure, "
                "or joined by data.group_key or data.structures_per_group), which is not divided: "
                "none would be left for training; set data.valid_fraction=0, or give other "
                "structures as data.valid_file"
            )
        of_structure = group_of.reshape(-1)
        keys = counter_hash(seed, self.n)[first]
        self.order, self.first = np.argsort(keys, kind="stable"), first
        self.by_group = np.argsort(of_structure, kind="stable")
        self.starts = np.concatenate([[0], np.cumsum(np.bincount(of_structure))])
        self.is_taken = np.zeros(self.n, dtype=bool)
        self.n_with_element = _count_elements(elements)
        self.passed_over = False  # a group, for its size
        self.last_example = False  # kept a group from being taken

    @property
    def left(self) -> int:
        """How many more structures are to be taken; negative if there are too many."""
        return self.n_asked - self.n_taken

    @property
    def _of_head(self) -> str:
        return "" if self.name == "Default" else f" of the head {self.name}"

    def in_order(self) -> Iterator[int]:
        """The groups that are not taken, by their keys."""
        for index in self.order:
            if not self.is_taken[self.first[index]]:
                yield int(self.groups[index])

    def members_of(self, group: int) -> NDArray[np.int64]:
        """Which of the head's structures are in a group."""
        index = int(self.groups.searchsorted(group))
        if index == len(self.groups) or self.groups[index] != group:
            return self.by_group[:0]
        return self.by_group[self.starts[index] : self.starts[index + 1]]

    def cost_of(self, size: int) -> float:
        """By how much ``size`` more add to the distance from the number asked for, relative."""
        return (abs(self.left - size) - abs(self.left)) / self.n_asked

    def can_take(self, members: NDArray[np.int64]) -> bool:
        """Whether training keeps structures, with every element."""
        lost = self._element_counts(members)
        can = all(self.n_with_element[z] > count for z, count in lost.items())
        self.last_example |= not can
        return can

    def take(self, members: NDArray[np.int64]) -> None:
        """Take these structures for validation."""
        self.n_with_element.subtract(self._element_counts(members))
        self.n_taken += len(members)
        self.is_taken[members] = True

    def _element_counts(self, members: NDArray[np.int64]) -> dict[int, int]:
        """How many of these structures hold each element."""
        if len(members) == 1:  # nearly always
            return dict.fromkeys(self.elements[int(members[0])], 1)
        return Counter(z for member in members.tolist() for z in self.elements[member])

    def report(self) -> None:
        """Log a warning if what is taken is noticeably not what was asked for."""
        if self.last_example and not self.passed_over and self.left > 0:
            LOGGER.warning(
                "only %d of %d structures%s are split off for validation: each of the others holds "
                "the last training example of an element",
                self.n_taken,
                self.n_asked,
                self._of_head,
            )
        elif abs(self.left) > NOTICEABLE * self.n_asked:
            LOGGER.warning(
                "%d of the %d structures%s are split off for validation, data.valid_fraction=%s "
                "asks for %d: groups are not divided (the largest holds %d)%s",
                self.n_taken,
                self.n,
                self._of_head,
                self.fraction,
                self.n_asked,
                np.diff(self.starts).max(),
                " and training keeps every element" if self.last_example else "",
            )


def _count_elements(elements: Elements) -> Counter[int]:
    """The number of structures that hold each element."""
    if not isinstance(elements, ElementSets):
        return Counter(z for structure in elements for z in structure)
    n_with_element = Counter[int]()
    for index, count in Counter(elements.set_of_structure).items():
        n_with_element.update(dict.fromkeys(elements.sets[index], count))
    return n_with_element
