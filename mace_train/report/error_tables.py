"""Errors of a model on a set of structures, by structure and by group.

Computed in float64 from labels and predictions: energies per atom, components of forces and stress.
The same sums as those of training (train/metrics.py), with more ways to group them.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from ase.formula import Formula
from numpy.typing import NDArray

from mace_train.data.structure import Structure
from mace_train.evaluate.parity_plot import Predicted

Floats = NDArray[np.float64]
SIZE_GROUPS = 8


@dataclass(frozen=True)
class Row:
    """Errors of a group; an RMSE or MAE without labels is None."""

    name: str
    n_structures: int
    n_atoms: int
    energy_rmse: float | None  # eV/atom
    energy_mae: float | None
    forces_rmse: float | None  # eV/Å
    forces_mae: float | None
    forces_relative: float | None  # RMSE over the RMS of the reference
    stress_rmse: float | None  # eV/Å^3


@dataclass(frozen=True)
class WorstStructure:
    """One structure with a large error."""

    id: int  # index in the set, from 0
    source: str  # file and number that it was read from, below Errors.folder
    formula: str
    n_atoms: int
    config_type: str
    energy_error: float | None  # eV/atom, predicted - reference
    forces_rmse: float | None  # eV/Å
    largest: float | None  # largest force error magnitude, eV/Å


@dataclass(frozen=True)
class Errors:
    """Labels and predictions of a set of structures."""

    title: str
    structures: Sequence[Structure]
    predicted: Mapping[int, Predicted]

    @cached_property
    def n_atoms(self) -> NDArray[np.int64]:
        """[n_structures]."""
        return np.array([s.n_atoms for s in self.structures], dtype=np.int64)

    @cached_property
    def structure_of_atom(self) -> NDArray[np.int64]:
        """[n_atoms]."""
        return np.repeat(np.arange(len(self.structures)), self.n_atoms)

    @cached_property
    def numbers(self) -> NDArray[np.int64]:
        """[n_atoms] atomic numbers."""
        return np.concatenate([s.numbers for s in self.structures])

    @cached_property
    def folder(self) -> str:
        """The beginning of all paths that the structures were read from, up to a slash."""
        common = os.path.commonprefix([s.source for s in self.structures])  # noqa: RUF071
        return common[: common.rfind("/") + 1]

    @cached_property
    def energy(self) -> Floats:
        """[n_structures] error of the energy per atom, eV; nan without a label."""
        return np.array(
            [
                np.nan if s.energy is None else (self.predicted[i].energy - s.energy) / s.n_atoms
                for i, s in enumerate(self.structures)
            ]
        )

    @cached_property
    def forces(self) -> Floats:
        """[n_atoms, 3] errors, eV/Å; nan without labels."""
        return np.concatenate(
            [
                np.full((s.n_atoms, 3), np.nan)
                if s.forces is None
                else self.predicted[i].forces - s.forces
                for i, s in enumerate(self.structures)
            ]
        )

    @cached_property
    def reference_forces(self) -> Floats:
        """[n_atoms, 3] eV/Å; nan without labels."""
        none = [np.full((s.n_atoms, 3), np.nan) for s in self.structures]
        pairs = zip(self.structures, none, strict=True)
        return np.concatenate([n if s.forces is None else s.forces for s, n in pairs])

    @cached_property
    def stress(self) -> Floats:
        """[n_structures, 3, 3] errors, eV/Å^3; nan without labels and where none is defined."""
        errors = np.full((len(self.structures), 3, 3), np.nan)
        for i, s in enumerate(self.structures):
            if s.stress is not None:
                mask = np.outer(s.pbc, s.pbc)
                errors[i][mask] = (self.predicted[i].stress - s.stress)[mask]
        return errors

    @cached_property
    def forces_rmse(self) -> Floats:
        """[n_structures] eV/Å; nan without labels."""
        squares = np.bincount(self.structure_of_atom, (self.forces**2).sum(1), len(self.structures))
        return np.sqrt(squares / (3 * self.n_atoms))

    @cached_property
    def force_error_magnitudes(self) -> Floats:
        """[n_labelled_atoms] force error magnitudes |F - F_ref|, eV/Å."""
        magnitudes = np.linalg.norm(self.forces, axis=1)
        return magnitudes[np.isfinite(magnitudes)]

    def composition_energies(self) -> Floats:
        """[n_structures] eV: the least-squares sum of one energy per element, of each head."""
        result = np.zeros(len(self.structures))
        elements, columns = np.unique(self.numbers, return_inverse=True)
        counts = np.zeros((len(self.structures), len(elements)))
        np.add.at(counts, (self.structure_of_atom, columns), 1)
        heads = np.array([s.head for s in self.structures])
        energies = np.array([np.nan if s.energy is None else s.energy for s in self.structures])
        for head in np.unique(heads):
            rows = (heads == head) & np.isfinite(energies)
            if rows.any():
                fitted, *_ = np.linalg.lstsq(counts[rows], energies[rows], rcond=None)
                result[heads == head] = counts[heads == head] @ fitted
        return result

    def row(self, name: str, structures: NDArray[np.bool_], atoms: Any = None) -> Row:
        """Errors of ``structures`` (mask [n_structures]), or of forces on ``atoms`` ([n_atoms])."""
        own = structures[self.structure_of_atom] if atoms is None else atoms
        forces, reference = self.forces[own], self.reference_forces[own]
        energy = self.energy[structures] if atoms is None else np.zeros(0)
        stress = self.stress[structures] if atoms is None else np.zeros(0)
        rmse, rms = _rms(forces), _rms(reference)
        return Row(
            name=name,
            n_structures=int(structures.sum()),
            n_atoms=int(own.sum()),
            energy_rmse=_rms(energy),
            energy_mae=_mean_size(energy),
            forces_rmse=rmse,
            forces_mae=_mean_size(forces),
            forces_relative=rmse / rms if rmse is not None and rms else None,
            stress_rmse=_rms(stress),
        )

    def all(self) -> Row:
        """Errors over all structures."""
        return self.row("all", np.ones(len(self.structures), dtype=bool))

    def by(self, attribute: str) -> list[Row]:
        """Errors by ``head`` or ``config_type``, the largest group first."""
        values = np.array([getattr(s, attribute) for s in self.structures])
        names, counts = np.unique(values, return_counts=True)
        return [self.row(str(names[i]), values == names[i]) for i in np.argsort(-counts)]

    def by_element(self) -> list[Row]:
        """Errors of forces by element."""
        rows = []
        for number in np.unique(self.numbers):
            atoms = self.numbers == number
            holds = np.zeros(len(self.structures), dtype=bool)
            holds[self.structure_of_atom[atoms]] = True
            rows.append(self.row(chemical_symbols[number], holds, atoms))
        return rows

    def by_size(self) -> list[Row]:
        """Errors by number of atoms, in at most eight groups of about as many structures."""
        sizes = np.unique(self.n_atoms)
        if len(sizes) > SIZE_GROUPS:
            cuts = np.quantile(self.n_atoms, np.arange(1, SIZE_GROUPS) / SIZE_GROUPS)
            starts = np.unique([sizes[0], *np.ceil(cuts).astype(np.int64)])
        else:
            starts = sizes
        group = np.searchsorted(starts, self.n_atoms, side="right") - 1
        rows = []
        for k in np.unique(group):
            chosen = group == k
            low, high = self.n_atoms[chosen].min(), self.n_atoms[chosen].max()
            rows.append(self.row(f"{low}" if low == high else f"{low} to {high}", chosen))
        return rows

    def worst(self, by: Floats, n: int) -> list[WorstStructure]:
        """The ``n`` structures that are largest in ``by`` [n_structures], the worst first."""
        known = np.flatnonzero(np.isfinite(by))
        order = known[np.argsort(-by[known], kind="stable")][:n]
        return [self._worst(int(i)) for i in order]

    def _worst(self, i: int) -> WorstStructure:
        structure = self.structures[i]
        symbols = [chemical_symbols[z] for z in structure.numbers.tolist()]
        magnitudes = np.linalg.norm(self.forces[self.structure_of_atom == i], axis=1)
        return WorstStructure(
            id=i,
            source=structure.source.removeprefix(self.folder),
            formula=Formula.from_list(symbols).format("hill"),
            n_atoms=structure.n_atoms,
            config_type=structure.config_type,
            energy_error=_finite(self.energy[i]),
            forces_rmse=_finite(self.forces_rmse[i]),
            largest=_finite(magnitudes.max()),
        )


def number(value: float | None) -> str:
    """About three digits, without exponents where they fit."""
    if value is None:
        return ""
    size = abs(value)
    if size >= 100:
        return f"{value:,.0f}"
    if size >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if size >= 1 or value == 0 else f"{value:.3g}"


def _rms(values: Floats) -> float | None:
    """Root mean square of what is not nan; None if nothing is."""
    known = values[np.isfinite(values)]
    return float(np.sqrt(np.mean(known**2))) if known.size else None


def _mean_size(values: Floats) -> float | None:
    known = values[np.isfinite(values)]
    return float(np.mean(np.abs(known))) if known.size else None


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
