"""One trajectory of the example data: rattled copies and Langevin frames, labelled with GFN1-xTB.

Repeatable structures: dynamics amplify the last bits of a force, and these differ between machines
and thread counts. The force that drives a step is therefore rounded to 0.01 eV/Å (a sampler may
do that), positions are rounded to 1e-6 Å after every step, and all else is elementwise
arithmetic: a difference of 1e-10 eV/Å is wiped out unless it straddles a rounding boundary, which
happens about once in 10^8 components. The label is computed afterwards, at full precision, by
a fresh calculator on the rounded structure, so it is a function of what is stored.

Cost: one xTB calculation a step, 5 ms for 10 atoms, 0.6 s for 120. Integrator (BAOAB splitting):
Leimkuhler and Matthews, Appl. Math. Res. eXpress 2013, 34. Labels: Grimme, Bannwarth and
Shushkov, J. Chem. Theory Comput. 13, 1989 (2017).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator

METHOD = "GFN1-xTB"
SEED = 20250410
# Multiplicity of the ground state of the free atom (Hund's rules).
FREE_ATOMS = {"H": 2, "C": 3, "N": 4, "O": 3}


@dataclass(frozen=True)
class Trajectory:
    """How one trajectory is made: `rattles` copies of the start, then `frames` of dynamics."""

    name: str
    config_type: str
    split: str
    start: Callable[[np.random.Generator], Atoms]
    rattles: tuple[float, ...] = ()  # standard deviations, Å
    frames: int = 0
    settle: int = 0  # steps of 1 fs before the first frame
    stride: int = 1  # steps between frames
    kelvin: float = 300.0
    cost: float = 0.0  # only to start the longest first


def calculator(atoms: Atoms) -> Calculator:
    """Return a tight GFN1-xTB calculator (SCF converged 100 times below tblite's default)."""
    from tblite.ase import TBLite

    spin = FREE_ATOMS[atoms.get_chemical_formula()] if len(atoms) == 1 else None
    return TBLite(method=METHOD, accuracy=0.01, multiplicity=spin, verbosity=0)


def label(atoms: Atoms) -> Atoms:
    """Return a copy with REF_energy (eV), REF_forces (eV/Å) and, if periodic, REF_stress (eV/Å^3).

    Energy and stress are rounded to 8 decimals, forces to 6; the stress has ASE's sign.
    """
    free = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    labelled = free.copy()
    free.calc = calculator(free)
    labelled.info["REF_energy"] = round(float(free.get_potential_energy()), 8)
    labelled.arrays["REF_forces"] = np.round(free.get_forces(), 6) + 0.0  # + 0.0: no minus zero
    if free.pbc.all():
        stress = free.get_stress(voigt=False)
        labelled.info["REF_stress"] = np.round((stress + stress.T) / 2, 8) + 0.0
    return labelled


def langevin(start: Atoms, trajectory: Trajectory, rng: np.random.Generator) -> Iterator[Atoms]:
    """Yield frames of BAOAB Langevin dynamics (friction 0.04/fs) driven by coarse xTB forces."""
    atoms = start.copy()
    atoms.calc = calculator(atoms)
    masses = atoms.get_masses()[:, None]
    spread = np.sqrt(units.kB * trajectory.kelvin / masses)
    keep = np.exp(-0.04)
    noise = np.sqrt(1 - keep**2)
    velocities = spread * rng.normal(size=(len(atoms), 3))
    forces = np.round(atoms.get_forces(), 2)
    for step in range(1, trajectory.settle + trajectory.stride * (trajectory.frames - 1) + 1):
        velocities = velocities + 0.5 * units.fs * forces / masses
        half = atoms.positions + 0.5 * units.fs * velocities
        velocities = keep * velocities + noise * spread * rng.normal(size=velocities.shape)
        atoms.positions = np.round(half + 0.5 * units.fs * velocities, 6)
        forces = np.round(atoms.get_forces(), 2)
        velocities = velocities + 0.5 * units.fs * forces / masses
        if step >= trajectory.settle and (step - trajectory.settle) % trajectory.stride == 0:
            yield Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)


def run(trajectory: Trajectory) -> list[Atoms]:
    """Return the labelled frames of one trajectory; info holds its name and the frame number."""
    rng = np.random.default_rng([SEED, zlib.crc32(trajectory.name.encode())])
    start = trajectory.start(rng)
    start.positions = np.round(start.positions, 6) + 0.0
    frames = []
    for amplitude in trajectory.rattles:
        copy = start.copy()
        copy.positions = np.round(start.positions + amplitude * rng.normal(size=(len(copy), 3)), 6)
        frames.append(copy)
    if trajectory.frames:
        frames.extend(langevin(start, trajectory, rng))
    labelled = [label(frame) for frame in frames]
    for i, frame in enumerate(labelled):
        frame.info |= {
            "config_type": trajectory.config_type,
            "trajectory": trajectory.name,
            "frame": i,
        }
    return labelled
