"""Sets of elements as bits, 128 per structure, so that millions of structures are filtered fast."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from ase.data import atomic_numbers as number_of_symbol
from ase.data import chemical_symbols
from numpy.typing import NDArray

from mace_train.errors import InputError

ElementSets = NDArray[np.uint64]  # [..., 2]: bit z % 64 of word z // 64


def element_set(numbers: Iterable[int]) -> ElementSets:
    """[2] the set of some atomic numbers."""
    words = [0, 0]
    for z in set(numbers):
        words[z // 64] |= 1 << (z % 64)
    return np.array(words, dtype=np.uint64)


def element_sets(numbers: NDArray[Any], offsets: NDArray[Any]) -> ElementSets:
    """[n, 2] the sets of structures whose atoms are ``numbers[offsets[i]:offsets[i + 1]]``."""
    table = np.stack([element_set([z]) for z in range(len(chemical_symbols))])
    sets = np.zeros((len(offsets) - 1, 2), dtype=np.uint64)
    if len(sets):
        for word in (0, 1):
            bits = table[:, word][numbers]
            sets[:, word] = np.bitwise_or.reduceat(bits, offsets[:-1].astype(np.int64))
    return sets


def numbers_in(sets: ElementSets) -> list[int]:
    """Ascending atomic numbers that are in any of the sets [..., 2]."""
    words = [int(word) for word in np.bitwise_or.reduce(sets.reshape(-1, 2), axis=0)]
    return [z for z in range(len(chemical_symbols)) if words[z // 64] >> (z % 64) & 1]


def symbols_in(sets: ElementSets) -> str:
    """Symbols of all elements in the sets, for messages."""
    return ", ".join(chemical_symbols[z] for z in numbers_in(sets))


def passing(sets: ElementSets, given: ElementSets, element_filter: str) -> NDArray[np.bool_]:
    """[n] which of the sets [n, 2] pass the filter (see ``SelectSettings``) with ``given`` [2]."""
    common = sets & given
    none = np.uint64(0)
    if element_filter == "subset":
        return np.asarray(((sets & ~given) == none).all(axis=1))
    if element_filter == "overlap":
        return np.asarray((common != none).any(axis=1))
    if element_filter == "equal":
        return np.asarray((sets == given).all(axis=1))
    return np.asarray((common == given).all(axis=1))


def parsed_elements(setting: str, values: list[Any]) -> list[int]:
    """Atomic numbers from symbols or numbers as a user gives them."""
    numbers = []
    for value in values:
        z = number_of_symbol.get(value) if isinstance(value, str) else value
        if isinstance(z, bool) or not isinstance(z, int) or not 1 <= z < len(chemical_symbols):
            raise InputError(
                f"{setting}: {value!r} is no element; give symbols or atomic numbers, such as "
                "[H,C,O] or [1,6,8]"
            )
        numbers.append(z)
    return numbers
