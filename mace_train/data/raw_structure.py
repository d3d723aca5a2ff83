"""RawStructure: one structure as parsed from a file, before it is checked.

It has the attributes of ``ase.Atoms`` that ``structure_from_atoms`` looks at and none of its cost
(40 µs to build). A reader yields functions that make one, so that a structure which cannot be
parsed is one failure and not the end of its file.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from numpy.typing import NDArray


@dataclass(frozen=True)
class Results:
    """Stands in for a calculator: labels by ASE's names."""

    results: Mapping[str, Any]


@dataclass(eq=False)
class RawStructure:
    """Geometry and labels as parsed from a file."""

    numbers: NDArray[Any]  # [n_atoms]
    positions: NDArray[np.float64]  # [n_atoms, 3] Å
    cell: NDArray[np.float64]  # [3, 3] Å
    pbc: NDArray[np.bool_]  # [3]
    info: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    calc: Results = field(default_factory=lambda: Results({}))
    remarks: tuple[tuple[str, str], ...] = ()  # (kind, message) for the user, of its reader

    def __len__(self) -> int:
        return len(self.numbers)


AtomsLike: TypeAlias = "Atoms | RawStructure"
ParseFn: TypeAlias = Callable[[], AtomsLike]


def already_parsed(atoms: AtomsLike) -> ParseFn:
    """A parse function for a structure that its reader has parsed already."""
    return lambda: atoms


def without_results(atoms: AtomsLike) -> RawStructure:
    """The same structure without the labels that ASE has parsed."""
    cell = np.asarray(atoms.cell[:], dtype=np.float64)
    return RawStructure(atoms.numbers, atoms.positions, cell, atoms.pbc, atoms.info, atoms.arrays)


def as_atoms(raw: AtomsLike) -> Atoms:
    """The same as ``ase.Atoms``, to write it to a file."""
    if isinstance(raw, Atoms):
        return raw
    atoms = Atoms(raw.numbers, raw.positions, cell=raw.cell, pbc=raw.pbc)
    atoms.info.update(raw.info)
    for name, array in raw.arrays.items():
        atoms.new_array(name, array)
    if raw.calc.results:
        atoms.calc = SinglePointCalculator(atoms, **raw.calc.results)
    return atoms
