"""Structure: one labelled configuration, with units, signs and shapes fixed and checked once.

Energies in eV, lengths in Å, forces in eV/Å, stress in eV/Å^3 with ASE's sign (dE/dstrain / V),
``[3, 3]`` and symmetric; rows of ``cell`` are lattice vectors. Virials are read as
stress = -virials / volume. Six numbers are in Voigt order xx, yy, zz, yz, xz, xy.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from mace_train.data.raw_structure import AtomsLike
from mace_train.data.stress_components import stress_mask
from mace_train.data.values import (
    FORCE,
    POSITION,
    SHORTEST_VECTOR,
    STRESS,
    WEIGHT,
    check_values,
    energy_range,
)
from mace_train.errors import InvalidStructureError
from mace_train.settings import DataSettings, PredictionSettings
from mace_train.settings.ranges import Range

LOGGER = logging.getLogger("mace_train")
ISOLATED_TYPES = ("IsolatedAtom", "isolated_atom")
HIGHEST_ATOMIC_NUMBER = 118

# an asymmetry of a stress up to this share of its largest component is rounding in the file
STRESS_ASYMMETRY = 1e-3
STRESS_ASYMMETRY_FLOOR = 1e-6  # eV/Å^3
# periodic vectors whose volume is below this share of the product of their lengths are singular
SINGULAR_CELL = 1e-6

_VOIGT = np.array([[0, 5, 4], [5, 1, 3], [4, 3, 2]])


@dataclass(frozen=True, eq=False)
class Structure:
    """One labelled configuration; a label that is None is missing and is not trained on."""

    numbers: NDArray[np.int64]  # [n_atoms] atomic numbers
    positions: NDArray[np.float64]  # [n_atoms, 3] Å
    cell: NDArray[np.float64]  # [3, 3] Å, rows are lattice vectors; zeros for a molecule
    pbc: NDArray[np.bool_]  # [3]
    energy: float | None  # total, eV
    forces: NDArray[np.float64] | None  # [n_atoms, 3] eV/Å
    stress: NDArray[np.float64] | None  # [3, 3] eV/Å^3
    weight: float = 1.0
    energy_weight: float = 1.0
    forces_weight: float = 1.0
    stress_weight: float = 1.0
    config_type: str = "Default"
    head: str = "Default"  # which level of theory its labels are of
    source: str = ""  # where it was read, for messages

    @classmethod
    def unlabelled(cls, atoms: AtomsLike) -> Self:
        """The geometry alone, as it is (``structure_from_atoms`` checks it)."""
        return cls(
            numbers=np.asarray(atoms.numbers, dtype=np.int64),
            positions=atoms.positions.copy(),
            cell=np.asarray(atoms.cell[:]),
            pbc=np.asarray(atoms.pbc),
            energy=None,
            forces=None,
            stress=None,
        )

    @property
    def n_atoms(self) -> int:
        """Number of atoms."""
        return len(self.numbers)


@dataclass(frozen=True)
class LabelKeys:
    """Names of the labels in the files."""

    energy: str
    forces: str
    stress: str
    virials: str
    head: str = "head"

    @classmethod
    def of(cls, settings: DataSettings | PredictionSettings) -> Self:
        """The names that the settings give."""
        return cls(
            energy=settings.energy_key,
            forces=settings.forces_key,
            stress=settings.stress_key,
            virials=settings.virials_key,
            head=settings.head_key if isinstance(settings, DataSettings) else "head",
        )


class Notes:
    """Warnings about a set of files: each kind is logged once, at its first structure."""

    def __init__(self, *, silent: bool = False) -> None:
        self._logged: set[str] = set()
        self._silent = silent

    def once(self, kind: str, source: str, message: str) -> None:
        """Log ``message`` as a warning, unless one of its ``kind`` was logged before."""
        if kind not in self._logged:
            self._logged.add(kind)
            if self._silent:
                return
            LOGGER.warning("%s: %s (logged once for these files)", source, message)


def is_isolated(structure: Structure) -> bool:
    """Whether this is one atom alone: without periodicity, or with config_type IsolatedAtom."""
    alone = not structure.pbc.any() or structure.config_type in ISOLATED_TYPES
    return structure.n_atoms == 1 and bool(alone)


def names_in(atoms: AtomsLike) -> set[str]:
    """The names of all values of ``atoms`` other than its geometry."""
    results: Mapping[str, Any] = getattr(atoms.calc, "results", {})
    return {*atoms.info, *atoms.arrays, *results} - {"numbers", "positions"}


def structure_from_atoms(
    atoms: AtomsLike,
    keys: LabelKeys,
    source: str,
    notes: Notes | None = None,
    *,
    require_energy: bool = True,
    head: str = "Default",
) -> Structure:
    """The checked structure that ``atoms`` describes.

    Args:
        atoms: As ASE read it; labels in ``info``, ``arrays`` or the results of its calculator.
        keys: Names of the labels; for a missing one the label ASE parsed is used, with
            a notice.
        source: File and index, to begin messages with.
        notes: Collects warnings over many structures, so that each is logged once.
        require_energy: Refuse a structure without energy; else its energy is None.
        head: Of a structure that does not name its own.

    Raises:
        InvalidStructureError: no atoms, or no energy where one is required; a value that is not
            in its range (values.py) or has a wrong shape; an unknown element; a cell that cannot
            be repeated along its periodic directions.
    """
    reader = _Labels(atoms, keys, source, notes or Notes())
    numbers = np.array(atoms.numbers, dtype=np.int64)
    positions = np.array(atoms.positions, dtype=np.float64)
    pbc = np.array(atoms.pbc, dtype=bool)
    cell = np.array(atoms.cell if pbc.any() else np.zeros((3, 3)), dtype=np.float64)
    _check_geometry(numbers, positions, cell, pbc, source)
    structure = Structure(
        numbers=numbers,
        positions=positions,
        cell=cell,
        pbc=pbc,
        energy=reader.energy(require_energy),
        forces=reader.forces(),
        stress=reader.stress(cell, pbc),
        weight=reader.weight("config_weight"),
        energy_weight=reader.weight("config_energy_weight"),
        forces_weight=reader.weight("config_forces_weight"),
        stress_weight=reader.weight("config_stress_weight"),
        config_type=str(atoms.info.get("config_type", "Default")),
        head=str(atoms.info.get(keys.head, head)),
        source=source,
    )
    if structure.forces is None and is_isolated(structure):
        return _with_zero_forces(structure)
    return structure


def _with_zero_forces(structure: Structure) -> Structure:
    """The same single atom with its forces, which are zero by symmetry."""
    fields = {**vars(structure), "forces": np.zeros((1, 3))}
    return Structure(**fields)


def _check_geometry(
    numbers: NDArray[np.int64],
    positions: NDArray[np.float64],
    cell: NDArray[np.float64],
    pbc: NDArray[np.bool_],
    source: str,
) -> None:
    if len(numbers) == 0:
        raise InvalidStructureError(
            "no atoms", f"{source}: no atoms; remove this structure from the file"
        )
    if numbers.min() < 1 or numbers.max() > HIGHEST_ATOMIC_NUMBER:
        atom = int(np.argmax((numbers < 1) | (numbers > HIGHEST_ATOMIC_NUMBER)))
        raise InvalidStructureError(
            "unknown element",
            f"{source}: atom {atom} has atomic number {numbers[atom]}; "
            f"real elements have 1 to {HIGHEST_ATOMIC_NUMBER}, correct the file",
        )
    check_values(positions, POSITION, "position", source, "position")
    if pbc.any():
        _check_cell(cell, pbc, source)


def _check_cell(cell: NDArray[np.float64], pbc: NDArray[np.bool_], source: str) -> None:
    check_values(cell, POSITION, "the cell", source, "cell")
    rows = cell[pbc]
    lengths = np.linalg.norm(rows, axis=1)
    if lengths.min() < SHORTEST_VECTOR:
        singular = True
    else:
        directions = rows / lengths[:, None]
        volume = np.sqrt(max(np.linalg.det(directions @ directions.T), 0.0))
        singular = volume < SINGULAR_CELL
    if singular:
        raise InvalidStructureError(
            "singular cell",
            f"{source}: periodic along {pbc.tolist()} but the cell {cell.tolist()} does not "
            "span these directions; correct the Lattice, or set pbc to F where there is none",
        )


class _Labels:
    """The labels of one ``Atoms``, each looked up under its key and checked."""

    def __init__(self, atoms: AtomsLike, keys: LabelKeys, source: str, notes: Notes) -> None:
        self.atoms, self.keys, self.source, self.notes = atoms, keys, source, notes
        self.results: Mapping[str, Any] = getattr(atoms.calc, "results", {})

    def energy(self, required: bool) -> float | None:
        value = self._find("energy", self.keys.energy)
        if value is None and not required:
            return None
        if value is None:
            raise InvalidStructureError(
                "no energy",
                f"{self.source}: no energy under {self.keys.energy!r} and none that ASE parsed; "
                f"found {self._found()}; name the right one with data.energy_key, or train on "
                "forces and stress alone with data.require_energy=false",
            )
        array = self._numbers(value, self.keys.energy, energy_range(len(self.atoms)))
        if array.size != 1:
            raise InvalidStructureError(
                "shape of a label",
                f"{self.source}: energy {self.keys.energy!r} has shape {array.shape}; "
                "one number (total energy, eV) is needed, correct the file",
            )
        return float(array.reshape(()))

    def forces(self) -> NDArray[np.float64] | None:
        value = self._find("forces", self.keys.forces)
        if value is None:
            return None
        array = self._numbers(value, self.keys.forces, FORCE)
        n_atoms = len(self.atoms)
        if array.shape != (n_atoms, 3):
            raise InvalidStructureError(
                "shape of a label",
                f"{self.source}: forces {self.keys.forces!r} have shape {array.shape} for "
                f"{n_atoms} atoms, which need ({n_atoms}, 3); correct the file or remove them",
            )
        return array

    def stress(
        self, cell: NDArray[np.float64], pbc: NDArray[np.bool_]
    ) -> NDArray[np.float64] | None:
        name, value = self.keys.stress, self._find("stress", self.keys.stress)
        is_virials = value is None
        if is_virials:
            name, value = self.keys.virials, self._find("virials", self.keys.virials)
        if value is None:
            return None
        limits = energy_range(len(self.atoms)) if is_virials else STRESS
        matrix = self._matrix(value, name, limits)
        mask = stress_mask(cell, pbc)
        if not mask.any():
            self.notes.once(
                "stress without volume",
                self.source,
                f"{name!r} is not used where a structure is not periodic, has no cell vector along "
                "a direction that is not, or is periodic along others than x, y and z",
            )
            return None
        if is_virials:
            matrix = -matrix / abs(np.linalg.det(cell))
            check_values(matrix, STRESS, f"the stress of {name!r} / volume", self.source)
        return np.where(mask, matrix, 0.0)

    def weight(self, key: str) -> float:
        if "config_virials_weight" in self.atoms.info:
            self.notes.once(
                "virials weight",
                self.source,
                "config_virials_weight is not used, config_stress_weight covers virials too",
            )
        value = self.atoms.info.get(key)
        if value is None:
            return 1.0
        array = self._numbers(value, key, WEIGHT)
        if array.size != 1:
            raise InvalidStructureError(
                "weight",
                f"{self.source}: {key}={value} must be one number, {WEIGHT}; "
                "correct the file (0 keeps a structure out of the loss)",
            )
        return float(array.reshape(()))

    def _find(self, name: str, key: str) -> Any:
        """The raw label: under its key, else as ASE parsed it (with a notice), else None."""
        for values in (self.atoms.info, self.atoms.arrays, self.results):
            if values.get(key) is not None:
                return values[key]
        value = self.results.get(name)
        if value is not None:
            self.notes.once(
                f"fallback {name}",
                self.source,
                f"no {name} under {key!r}; taking the {name} that ASE parsed",
            )
        return value

    def _numbers(self, value: Any, name: str, limits: Range) -> NDArray[np.float64]:
        """``value`` as float64 numbers in their range."""
        try:
            if isinstance(value, bool):  # a key without a value in an extxyz header
                raise TypeError
            array = np.array(value, dtype=np.float64)
        except (TypeError, ValueError):
            raise InvalidStructureError(
                "label is not a number",
                f"{self.source}: {name!r} is {value!r}, not a number; correct the file",
            ) from None
        check_values(array, limits, repr(name), self.source)
        return array

    def _matrix(self, value: Any, name: str, limits: Range) -> NDArray[np.float64]:
        """``value`` of 3x3, 9 or (Voigt) 6 numbers as a symmetric matrix [3, 3]."""
        array = self._numbers(value, name, limits)
        if array.shape == (6,):
            return array[_VOIGT]
        if array.shape not in ((9,), (3, 3)):
            raise InvalidStructureError(
                "shape of a label",
                f"{self.source}: {name!r} has shape {array.shape}; it must have 3x3, 9 or "
                "(xx, yy, zz, yz, xz, xy) 6 numbers, correct the file",
            )
        matrix = array.reshape(3, 3)
        asymmetry = float(np.abs(matrix - matrix.T).max())
        if asymmetry > max(STRESS_ASYMMETRY_FLOOR, STRESS_ASYMMETRY * float(np.abs(matrix).max())):
            raise InvalidStructureError(
                "asymmetric stress",
                f"{self.source}: {name!r} is {matrix.tolist()}, not symmetric "
                f"(by {asymmetry:.3g}); correct the file or remove it",
            )
        return 0.5 * (matrix + matrix.T)

    def _found(self) -> str:
        """The names that are there, to help with a missing one."""
        return ", ".join(sorted(names_in(self.atoms))) or "no labels"
