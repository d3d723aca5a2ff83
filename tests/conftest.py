"""Small labelled structures (ASE's EMT), a preprocessed folder and a trained model, made once."""

import logging
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.io import write

from mace_train.cli import main
from tests.skips import SkipLimits

torch.set_num_threads(1)
for _name in [name for name in os.environ if name.startswith(("SLURM_", "PMI", "OMPI_", "PBS_"))]:
    del os.environ[_name]  # the job that runs the tests is not the launch that they test

TINY_MODEL = (
    "model.num_channels=4",
    "model.max_L=1",
    "model.max_ell=2",
    "model.correlation=2",
    "model.radial_MLP=[8]",
)


def pytest_configure(config: pytest.Config) -> None:
    """Bounds on the numbers of skipped tests."""
    config.pluginmanager.register(SkipLimits(), "skip-limits")


@pytest.fixture(autouse=True)
def root_handlers_as_before() -> Iterator[None]:
    """Hydra and mace-torch add handlers to the root logger, on streams that end with the test."""
    root = logging.getLogger()
    before = list(root.handlers)
    yield
    root.handlers[:] = before


def labelled(atoms: Atoms, config_type: str) -> Atoms:
    """The structure with EMT's energy, forces and (periodic) stress as REF_* labels."""
    atoms = atoms.copy()
    atoms.calc = EMT()
    energy, forces = atoms.get_potential_energy(), atoms.get_forces()
    stress = atoms.get_stress(voigt=False) if atoms.pbc.all() else None
    atoms.calc = None
    atoms.info = {"REF_energy": float(energy), "config_type": config_type}
    atoms.arrays["REF_forces"] = forces
    if stress is not None:
        atoms.info["REF_stress"] = stress
    return atoms


def emt_structures(n_molecules: int = 24, n_crystals: int = 8, seed: int = 0) -> list[Atoms]:
    """Isolated atoms, water and ammonia clusters of 3 to 12 atoms, strained aluminium crystals."""
    random = np.random.default_rng(seed)
    structures = [labelled(Atoms(symbol), "IsolatedAtom") for symbol in ("H", "N", "O", "Al")]
    for i in range(n_molecules):
        cluster = Atoms()
        for k in range(1 + i % 3):
            part = molecule("H2O" if i % 2 else "NH3")
            part.rotate(float(random.uniform(0, 360)), "xyz"[k])
            part.translate([2.8 * k, 0, 0])
            cluster += part
        cluster.rattle(0.05, rng=random)
        structures.append(labelled(cluster, "molecule"))
    for i in range(n_crystals):
        crystal = bulk("Al", cubic=bool(i % 2))
        strain = np.eye(3) + random.normal(scale=0.01, size=(3, 3))
        crystal.set_cell(crystal.cell @ strain, scale_atoms=True)
        crystal.rattle(0.05, rng=random)
        structures.append(labelled(crystal, "crystal"))
    return structures


def run_command(*arguments: object) -> None:
    """Run ``mace-train`` in this process; a failure raises SystemExit."""
    main([str(argument) for argument in arguments])


@pytest.fixture(scope="session")
def xyz(tmp_path_factory) -> Path:
    """A file of labelled structures."""
    path = tmp_path_factory.mktemp("xyz") / "train.xyz"
    write(path, emt_structures(), format="extxyz")
    return path


@pytest.fixture(scope="session")
def prepared(xyz, tmp_path_factory) -> Path:
    """The file, preprocessed with r_max 4 into train/ and valid/."""
    output = tmp_path_factory.mktemp("prepared") / "data"
    run_command(
        "preprocess",
        f"data.train_file={xyz}",
        "data.valid_fraction=0.25",
        "r_max=4.0",
        "structures_per_shard=9",
        f"output={output}",
    )
    return output


@pytest.fixture(scope="session")
def trained(prepared, tmp_path_factory) -> Path:
    """The output folder of two epochs of training."""
    output = tmp_path_factory.mktemp("trained") / "run"
    run_command(
        "train",
        f"data_dir={prepared}",
        f"output={output}",
        "max_num_epochs=2",
        "loss=stress",
        "cluster=cpu",
        *TINY_MODEL,
    )
    return output
