"""``mace-train md``: short dynamics with ASE, and its energy conservation."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.md.langevin import Langevin
from ase.md.md import MolecularDynamics
from ase.md.velocitydistribution import Stationary, ZeroRotation
from ase.md.verlet import VelocityVerlet

from mace_train.atomic_files import written_together
from mace_train.calculators.drift import draw_energies, energy_drift
from mace_train.calculators.simulation import (
    Frames,
    committee_std,
    prepared_atoms,
    read_structure,
)
from mace_train.errors import InputError, InvalidStructureError
from mace_train.folders import make_folder
from mace_train.progress import ProgressBar, Stopwatch
from mace_train.settings import MDSettings

LOGGER = logging.getLogger("mace_train")
HOTTEST_K = 1e5  # above this the dynamics is unstable
NOTEWORTHY_DRIFT = 1.0  # meV/atom/ps
SHORTEST_FIT = 1.0  # ps; in less, oscillations look like drift


def run_md(settings: MDSettings) -> dict[str, Any]:
    """Run dynamics; writes trajectory, md.json and energy.png to ``settings.output``."""
    atoms = prepared_atoms(read_structure(settings), settings)
    output = Path(settings.output)
    make_folder("output", output)
    random = np.random.default_rng(settings.seed)
    if settings.temperature_K is not None:
        _set_velocities(atoms, settings.temperature_K, random)
    frames, clock = Frames(output, settings.trajectory), Stopwatch()
    records = _run(atoms, _dynamics(atoms, settings, random), settings, frames)
    seconds = clock.seconds()
    series = {name: [record[name] for record in records] for name in records[0]}
    drift = energy_drift(series["time_ps"], series["total_energy_eV"], len(atoms))
    result = {
        "checkpoint": settings.checkpoint,
        "structure": settings.structure,
        "ensemble": settings.ensemble,
        "n_atoms": len(atoms),
        "steps": settings.steps,
        "timestep_fs": settings.timestep_fs,
        "mean_temperature_K": float(np.mean(series["temperature_K"])),
        **drift,
        "seconds": seconds,
        "records": series,
    }
    name = f"{settings.ensemble.upper()}, {len(atoms)} atoms"
    with written_together(output) as new:
        (new / "md.json").write_text(json.dumps(result, indent=1) + "\n")
        draw_energies({name: series}, {name: len(atoms)}, new / "energy.png")
    _report(settings, result, frames)
    return result


def _set_velocities(atoms: Atoms, temperature_K: float, random: np.random.Generator) -> None:
    """Maxwell-Boltzmann velocities at a temperature, without net momentum.

    And without rotation in free space; where atoms are fixed, momentum is left as drawn.
    """
    width = np.sqrt(units.kB * temperature_K * atoms.get_masses())
    atoms.set_momenta(width[:, None] * random.standard_normal((len(atoms), 3)))
    if len(atoms) == 1 or atoms.constraints or temperature_K == 0:
        return
    Stationary(atoms)
    if not atoms.pbc.any():
        ZeroRotation(atoms)


def _dynamics(atoms: Atoms, settings: MDSettings, random: np.random.Generator) -> MolecularDynamics:
    timestep = settings.timestep_fs * units.fs
    if settings.ensemble == "nve":
        return VelocityVerlet(atoms, timestep)
    assert settings.temperature_K is not None
    return Langevin(
        atoms,
        timestep,
        temperature_K=settings.temperature_K,
        friction=settings.friction_per_fs / units.fs,
        fixcm=False,  # what ASE recommends; it had another default
        rng=random,
    )


def _run(
    atoms: Atoms, dynamics: MolecularDynamics, settings: MDSettings, frames: Frames
) -> list[dict[str, float]]:
    """One record, and one frame, per interval and of the start."""
    records = [_record(atoms, 0, settings)]
    frames.add(atoms)
    ends = [*range(settings.interval, settings.steps, settings.interval), settings.steps]
    progress = ProgressBar(settings.ensemble.upper(), len(ends))
    for end in progress.over(ends):
        try:
            dynamics.run(end - dynamics.nsteps)
            records.append(_record(atoms, end, settings))
        except InvalidStructureError as error:
            raise InputError(_unstable(end, settings, str(error))) from None
        frames.add(atoms)
        last = records[-1]
        progress.note(f"{last['temperature_K']:.0f} K  E {last['total_energy_eV']:.4f} eV")
    return records


def _record(atoms: Atoms, step: int, settings: MDSettings) -> dict[str, float]:
    potential, kinetic = atoms.get_potential_energy(), atoms.get_kinetic_energy()
    record = {
        "time_ps": step * settings.timestep_fs / 1000,
        "total_energy_eV": potential + kinetic,
        "potential_energy_eV": potential,
        "temperature_K": float(atoms.get_temperature()),
    }
    std = committee_std(atoms)
    if std is not None:
        record["energy_std_eV"] = std
    if not np.isfinite(potential + kinetic) or record["temperature_K"] > HOTTEST_K:
        raise InputError(_unstable(step, settings, f"{record['temperature_K']:.3g} K"))
    return record


def _unstable(step: int, settings: MDSettings, found: str) -> str:
    return (
        f"the dynamics became unstable within the {settings.interval} steps before step {step} "
        f"({found}); use a smaller timestep_fs than {settings.timestep_fs}, relax "
        f"{settings.structure} first, or train on such structures; frames up to there are in "
        f"{settings.output}"
    )


def _report(settings: MDSettings, result: dict[str, Any], frames: Frames) -> None:
    picoseconds = settings.steps * settings.timestep_fs / 1000
    LOGGER.info(
        "%s: %d steps (%.3g ps) of %d atoms in %.1f s, mean temperature %.0f K",
        settings.ensemble.upper(),
        settings.steps,
        picoseconds,
        result["n_atoms"],
        result["seconds"],
        result["mean_temperature_K"],
    )
    if settings.ensemble == "nve":
        drift = result["drift_meV_per_atom_per_ps"]
        LOGGER.info(
            "drift of the total energy %.3g meV/atom/ps, fluctuation %.3g meV/atom",
            drift,
            result["fluctuation_meV_per_atom"],
        )
        if abs(drift) > NOTEWORTHY_DRIFT and picoseconds >= SHORTEST_FIT:
            LOGGER.warning(
                "energy is not conserved well: use a smaller timestep_fs than %s, or "
                "default_dtype=float64",
                settings.timestep_fs,
            )
    LOGGER.info("wrote %s, md.json and energy.png to %s", frames.path.name, settings.output)
