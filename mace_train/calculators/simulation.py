"""What dynamics and relaxation share: the structure, its calculator, and the trajectory."""

import io
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import write
from ase.io.trajectory import Trajectory

from mace_train.atomic_files import append_text
from mace_train.calculators.calculator import MACETrainCalculator
from mace_train.checks import as_files
from mace_train.data.read import read_atoms
from mace_train.errors import InputError, system_error
from mace_train.settings import SimulationSettings

LOGGER = logging.getLogger("mace_train")


def read_structure(settings: SimulationSettings) -> Atoms:
    """The structure that the settings name, not yet repeated.

    Raises InputError if it cannot be read or repeated: before a model is loaded.
    """
    if not Path(settings.structure).is_file():
        raise InputError(f"structure={settings.structure}: no such file")
    atoms = read_atoms(settings.structure, settings.index)
    repeat = list(settings.repeat)
    if any(n > 1 and not periodic for n, periodic in zip(repeat, atoms.pbc, strict=True)):
        raise InputError(
            f"repeat={repeat}: {settings.structure} is periodic along {atoms.pbc.tolist()} only; "
            "repeat it along these directions"
        )
    return atoms


def prepared_atoms(atoms: Atoms, settings: SimulationSettings) -> Atoms:
    """The structure, repeated, with the model as its calculator; InputError if they do not fit."""
    calc = MACETrainCalculator(
        as_files("checkpoint", settings.checkpoint),
        head=settings.head,
        device=settings.device,
        default_dtype=settings.default_dtype,
        kernels=settings.kernels,
        info_keys=settings.info_keys,
        arrays_keys=settings.arrays_keys,
    )
    calc.check(atoms, settings.structure)
    repeat = list(settings.repeat)
    if repeat != [1, 1, 1]:
        atoms = atoms.repeat(repeat)
        names = {spec.name for m in calc.models for spec in m.inputs if spec.per == "graph"}
        if names:
            LOGGER.warning(
                "repeat=%s: %s of the structure, as of all copies together, stays what it is in %s",
                repeat,
                ", ".join(sorted(names)),
                settings.structure,
            )
    atoms.calc = calc
    return atoms


class Frames:
    """Writes a trajectory frame by frame."""

    def __init__(self, folder: Path, format: str) -> None:
        self.path = folder / f"trajectory.{format}"
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise system_error(error, self.path) or error from None
        self._format = format
        self._n = 0

    def add(self, atoms: Atoms) -> None:
        """Append the structure with its energy, forces and stress.

        Raises ``InputError`` where it cannot be written; the frames before are whole.
        """
        size = self.path.stat().st_size if self._n else 0
        try:
            self._append(atoms)
        except Exception as error:
            explained = system_error(error, self.path)
            if explained is None:
                raise
            with suppress(OSError):
                os.truncate(self.path, size)
            message = f"{explained}; it holds the {self._n} frames before"
            raise type(explained)(message) from None
        self._n += 1

    def _append(self, atoms: Atoms) -> None:
        if self._format == "traj":
            with Trajectory(self.path, "a", atoms) as trajectory:
                trajectory.write()
        else:
            text = io.StringIO()
            write(text, plain(atoms), format="extxyz")
            append_text(self.path, text.getvalue(), durable=False)


def plain(atoms: Atoms) -> Atoms:
    """A copy whose calculator holds what files keep: energy, forces and stress."""
    from ase.calculators.singlepoint import SinglePointCalculator

    copy = atoms.copy()
    results: dict[str, Any] = atoms.calc.results
    kept = {name: results[name] for name in ("energy", "forces", "stress") if name in results}
    copy.calc = SinglePointCalculator(copy, **kept)
    return copy


def committee_std(atoms: Atoms) -> float | None:
    """Standard deviation of the energy over a committee, eV; None of one model."""
    variance = atoms.calc.results.get("energy_var")
    return None if variance is None else float(np.sqrt(variance))
