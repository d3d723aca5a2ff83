"""``mace-train relax``: the nearest minimum of the energy, with ASE."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.filters import FrechetCellFilter
from ase.io import write
from ase.optimize import FIRE, LBFGS
from matplotlib.figure import Figure

from mace_train.atomic_files import written_together
from mace_train.calculators.simulation import (
    Frames,
    committee_std,
    plain,
    prepared_atoms,
    read_structure,
)
from mace_train.data.stress_components import has_stress
from mace_train.errors import InputError, InvalidStructureError
from mace_train.folders import make_folder
from mace_train.progress import ProgressBar, Stopwatch
from mace_train.settings import RelaxSettings

LOGGER = logging.getLogger("mace_train")
ALGORITHMS = {"fire": FIRE, "lbfgs": LBFGS}


def relax(settings: RelaxSettings) -> dict[str, Any]:
    """Relax the structure; writes relaxed.extxyz, trajectory, relax.json and relax.png."""
    atoms = read_structure(settings)
    if settings.relax_cell:
        _check_cell(atoms, settings)
    atoms = prepared_atoms(atoms, settings)
    output = Path(settings.output)
    make_folder("output", output)
    frames, clock = Frames(output, settings.trajectory), Stopwatch()
    records = _run(atoms, settings, frames)
    last = records[-1]
    result = {
        "checkpoint": settings.checkpoint,
        "structure": settings.structure,
        "n_atoms": len(atoms),
        "converged": last["fmax_eV_per_A"] < settings.fmax,
        "steps": len(records) - 1,
        **last,
        "seconds": clock.seconds(),
        "records": {name: [record[name] for record in records] for name in last},
    }
    with written_together(output) as new:
        write(new / "relaxed.extxyz", plain(atoms), format="extxyz")
        (new / "relax.json").write_text(json.dumps(result, indent=1) + "\n")
        _draw(result["records"], settings.fmax, len(atoms), new / "relax.png")
    _report(settings, result, frames)
    return result


def _check_cell(atoms: Atoms, settings: RelaxSettings) -> None:
    """InputError for a cell that cannot relax; of slabs and wires the periodic directions do."""
    periodic = f"relax_cell=true: {settings.structure} is periodic along {atoms.pbc.tolist()}"
    if not has_stress(atoms.cell[:], atoms.pbc):
        raise InputError(
            f"{periodic} and its cell has no volume, so there is no stress to relax it by; give "
            "lattice vectors in all directions and pbc T in those that are to relax"
        )
    if settings.pressure_GPa and not atoms.pbc.all():
        raise InputError(
            f"{periodic}: pressure_GPa={settings.pressure_GPa} acts on cells that are periodic in "
            "all three directions; set it to 0"
        )


def _run(atoms: Atoms, settings: RelaxSettings, frames: Frames) -> list[dict[str, float]]:
    """One record and frame of the start and of every step."""
    target = atoms
    if settings.relax_cell:
        target = FrechetCellFilter(atoms, scalar_pressure=settings.pressure_GPa * units.GPa)
    optimizer = ALGORITHMS[settings.algorithm](target, logfile=None)
    records: list[dict[str, float]] = []
    progress = ProgressBar(settings.algorithm.upper(), settings.max_steps + 1)
    steps = optimizer.irun(fmax=settings.fmax, steps=settings.max_steps)
    try:
        for _ in progress.over(steps):
            records.append(_record(atoms, target))
            frames.add(atoms)
            last = records[-1]
            progress.note(f"fmax {last['fmax_eV_per_A']:.3g} eV/Å  E {last['energy_eV']:.4f} eV")
    except InvalidStructureError as error:
        raise InputError(
            f"the structure became invalid at step {len(records)} ({error}); correct "
            f"{settings.structure}, or train on such structures"
        ) from None
    return records


def _record(atoms: Atoms, target: Any) -> dict[str, float]:
    forces = np.asarray(target.get_forces())
    record = {
        "energy_eV": float(atoms.get_potential_energy()),
        "fmax_eV_per_A": float(np.sqrt((forces**2).sum(axis=1).max())),
    }
    if atoms.pbc.all():
        record["pressure_GPa"] = float(-atoms.get_stress()[:3].mean() / units.GPa)
        record["volume_A3"] = float(atoms.get_volume())
    std = committee_std(atoms)
    if std is not None:
        record["energy_std_eV"] = std
    return record


def _draw(series: dict[str, list[float]], fmax: float, n_atoms: int, path: Path) -> None:
    figure = Figure(figsize=(9.0, 3.4), layout="constrained")
    energy, force = figure.subplots(1, 2)
    energies = np.asarray(series["energy_eV"])
    energy.plot(1000 * (energies - energies[-1]) / n_atoms)
    energy.set(xlabel="step", ylabel="energy - end, meV/atom")
    force.semilogy(series["fmax_eV_per_A"])
    force.axhline(fmax, linestyle="--", color="black", linewidth=0.8)
    force.set(xlabel="step", ylabel="largest force, eV/Å")
    figure.savefig(path, dpi=130)


def _report(settings: RelaxSettings, result: dict[str, Any], frames: Frames) -> None:
    first, last = (result["records"]["energy_eV"][i] for i in (0, -1))
    LOGGER.info(
        "%s: %d steps in %.1f s, energy %.6f eV (%+.3g eV), largest force %.3g eV/Å",
        settings.algorithm.upper(),
        result["steps"],
        result["seconds"],
        last,
        last - first,
        result["fmax_eV_per_A"],
    )
    if not result["converged"]:
        LOGGER.warning(
            "not converged to fmax=%s eV/Å in %d steps; raise max_steps, or go on from %s",
            settings.fmax,
            result["steps"],
            Path(settings.output) / "relaxed.extxyz",
        )
    LOGGER.info(
        "wrote relaxed.extxyz, %s, relax.json and relax.png to %s",
        frames.path.name,
        settings.output,
    )
