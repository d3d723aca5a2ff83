"""Structure: one labelled configuration, with units, signs and shapes fixed and checked once.

Energies in eV, lengths in Å, forces in eV/Å, stress in eV/Å^3 with ASE's sign (dE/dstrain / V),
``[3, 3]`` and symmetric; rows of ``cell`` are lattice vectors. Virials are read as
stress = -virials / volume. Six numbers are in Voigt order xx, yy, zz, yz, xz, xy.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from mace_train.data.found_labels import (
    FoundLabel,
    LabelKeys,
    as_name,
    candidates,
    difference,
    fallback_kind,
)
from mace_train.data.input_values import NO_INPUTS, InputValues, input_values
from mace_train.data.label_values import numbers_in, symmetric_matrix_in
from mace_train.data.notes import Notes
from mace_train.data.raw_structure import AtomsLike
from mace_train.data.stress_components import no_stress_reason, stress_mask
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
from mace_train.settings.inputs import InputKey
from mace_train.settings.ranges import Range

__all__ = ["LOGGER", "LabelKeys", "Structure", "is_isolated", "names_in", "structure_from_atoms"]

LOGGER = logging.getLogger("mace_train")
ISOLATED_TYPES = ("IsolatedAtom", "isolated_atom")
HIGHEST_ATOMIC_NUMBER = 118

# periodic vectors whose volume is below this share of the product of their lengths are singular
SINGULAR_CELL = 1e-6


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
    inputs: InputValues = NO_INPUTS  # beside the geometry, such as the total charge

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
    inputs: Sequence[InputKey] = (),
) -> Structure:
    """The checked structure that ``atoms`` describes.

    Args:
        atoms: As ASE read it; labels in ``info``, ``arrays`` or the results of its calculator.
        keys: Names of the labels; for a missing one the label ASE parsed is used, with
            a notice.
        source: File and index, to begin messages with.
        notes: Collects remarks over many structures, so that each is logged once with its count;
            without it they are logged here.
        require_energy: Refuse a structure without energy; else its energy is None.
        head: Of a structure that does not name its own.
        inputs: What is read beside geometry and labels.

    Raises:
        InvalidStructureError: no atoms, or no energy where one is required; a value that is not
            in its range (values.py) or has a wrong shape; an unknown element; a cell that cannot
            be repeated along its periodic directions; an input as ``input_values`` says.
    """
    found_notes = Notes() if notes is None else notes
    reader = _Labels(atoms, keys, source, found_notes)
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
        config_type=reader.name("config_type", "Default"),
        head=reader.name(keys.head, head),
        source=source,
        inputs=input_values(atoms, inputs, source, found_notes),
    )
    reader.note_differences(structure)
    if notes is None:
        found_notes.log()
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
            f"{source}: atom {atom} has atomic number {numbers[atom]}"
            f"{' (X, a dummy atom)' if numbers[atom] == 0 else ''}; real elements have 1 to "
            f"{HIGHEST_ATOMIC_NUMBER}, correct the file or remove the atom",
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
        self.others: dict[str, list[FoundLabel]] = {}  # labels for which there are several values

    def energy(self, required: bool) -> float | None:
        found = self._find("energy")
        if found is None and not required:
            return None
        if found is None:
            raise InvalidStructureError(
                "no energy",
                f"{self.source}: no energy under {self.keys.energy!r} and none that ASE parsed; "
                f"found {self._found()}; name the right one with data.energy_key, or train on "
                "forces and stress alone with data.require_energy=false",
            )
        array = numbers_in(found.value, found.key, self._range_of(found), self.source)
        if array.size != 1:
            raise InvalidStructureError(
                "shape of a label",
                f"{self.source}: energy {found.key!r} has shape {array.shape}; "
                "one number (total energy, eV) is needed, correct the file",
            )
        return float(array.reshape(()))

    def forces(self) -> NDArray[np.float64] | None:
        found = self._find("forces")
        if found is None:
            return None
        array = numbers_in(found.value, found.key, self._range_of(found), self.source)
        n_atoms = len(self.atoms)
        if array.shape != (n_atoms, 3):
            raise InvalidStructureError(
                "shape of a label",
                f"{self.source}: forces {found.key!r} have shape {array.shape} for "
                f"{n_atoms} atoms, which need ({n_atoms}, 3); correct the file or remove them",
            )
        return array

    def stress(
        self, cell: NDArray[np.float64], pbc: NDArray[np.bool_]
    ) -> NDArray[np.float64] | None:
        found = self._find("stress")
        if found is None:
            return None
        mask, limits = stress_mask(cell, pbc), self._range_of(found)
        matrix = symmetric_matrix_in(found.value, found.key, limits, self.source, mask)
        reason = no_stress_reason(cell, pbc)
        if reason is not None:
            what = f"{found.key!r} is not used where a structure {reason}"
            self.notes.add(f"stress: {reason}", self.source, what)
            return None
        if found.kind == "virials":
            matrix = -matrix / abs(np.linalg.det(cell))
            what = f"the stress of {found.key!r} / volume"
            check_values(matrix, STRESS, what, self.source)
        return matrix

    def _range_of(self, found: FoundLabel) -> Range:
        """What the numbers of a label are held to."""
        ranges = {"forces": FORCE, "stress": STRESS}
        return ranges.get(found.kind) or energy_range(len(self.atoms))

    def weight(self, key: str) -> float:
        if "config_virials_weight" in self.atoms.info:
            self.notes.add(
                "virials weight",
                self.source,
                "config_virials_weight is not used, config_stress_weight covers virials too",
            )
        value = self.atoms.info.get(key)
        if value is None:
            return 1.0
        array = numbers_in(value, key, WEIGHT, self.source)
        if array.size != 1:
            raise InvalidStructureError(
                "weight",
                f"{self.source}: {key}={value} must be one number, {WEIGHT}; "
                "correct the file (0 keeps a structure out of the loss)",
            )
        return float(array.reshape(()))

    def _find(self, label: str) -> FoundLabel | None:
        """The raw label: under its key, else as ASE parsed it (with a remark), else None."""
        found = list(candidates(self.atoms, self.keys.wanted(label)))
        if not found:
            return None
        if found[0].parsed:
            keys = " or ".join(repr(key) for _, key in self.keys.wanted(label))
            self.notes.add(
                fallback_kind(label),
                self.source,
                f"no {label} under {keys}; taking the {label} that ASE parsed ({found[0].key!r})",
            )
        if len(found) > 1:
            self.others[label] = found
        return found[0]

    def note_differences(self, structure: Structure) -> None:
        """Note labels that the file gives twice, with values that differ."""
        for kind, message in getattr(self.atoms, "remarks", ()):
            self.notes.add(kind, self.source, message)
        for label, found in self.others.items():
            read = getattr(structure, label)
            if read is not None:
                as_read = partial(self._as_read, structure=structure)
                differs = difference(label, np.asarray(read), found, as_read)
                if differs is not None:
                    self.notes.add(differs[0], self.source, differs[1])

    def _as_read(self, found: FoundLabel, structure: Structure) -> NDArray[np.float64] | None:
        """A value that is not read, as the label would be; None where it is not valid."""
        limits, mask = self._range_of(found), stress_mask(structure.cell, structure.pbc)
        try:
            if found.kind not in ("stress", "virials"):
                return numbers_in(found.value, found.key, limits, self.source)
            matrix = symmetric_matrix_in(found.value, found.key, limits, self.source, mask)
        except InvalidStructureError:
            return None
        if found.kind == "virials":
            matrix = -matrix / abs(np.linalg.det(structure.cell))
        return matrix

    def name(self, key: str, default: str) -> str:
        """A name such as config_type; ``default`` where there is none."""
        value = self.atoms.info.get(key)
        if value is None or (not isinstance(value, str) and np.size(value) == 0):
            return default
        text = as_name(value)
        is_truth = isinstance(value, (bool, np.bool_))
        if text is None or (is_truth and key == self.keys.head):
            raise InvalidStructureError(
                "not a name",
                f"{self.source}: {key}={value!r} is not a name; write one, such as {key}=pbe, or "
                "leave it out",
            )
        return text

    def _found(self) -> str:
        """The names that are there, to help with a missing one."""
        return ", ".join(sorted(names_in(self.atoms))) or "no labels"
