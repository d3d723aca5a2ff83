"""Structures and files for the tests of the data package."""

import os
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms

from mace_train.data.preprocess.preprocess import preprocess
from mace_train.data.statistics import Statistics
from mace_train.data.structure import LabelKeys, Structure
from mace_train.settings import DataSettings, PreprocessSettings

E_H, E_O, E_CU = -13.0, -2000.0, -3.0  # of isolated atoms, eV
KEYS = LabelKeys("REF_energy", "REF_forces", "REF_stress", "REF_virials")
REAL_DATA = Path(
    os.environ.get("MACE_TRAIN_DATA", Path(__file__).parents[3].joinpath("shared", "data"))
)


def real_file(name: str) -> str:
    """A file of the real data, or a skip."""
    path = REAL_DATA / name
    if not path.exists():
        pytest.skip(f"real data set {name} is not here (set MACE_TRAIN_DATA)")
    return str(path)


def random_structure(rng: np.random.Generator, **changes) -> Structure:
    """1 to 9 atoms of H, C, O; half of them periodic, some without forces or stress."""
    n_atoms = int(rng.integers(1, 10))
    periodic = bool(rng.random() < 0.5)
    values = {
        "numbers": rng.choice([1, 6, 8], n_atoms).astype(np.int64),
        "positions": rng.uniform(0, 5, (n_atoms, 3)),
        "cell": np.eye(3) * 5 + rng.uniform(-1, 1, (3, 3)) if periodic else np.zeros((3, 3)),
        "pbc": np.full(3, periodic),
        "energy": float(-10 * n_atoms + rng.normal()),
        "forces": rng.normal(size=(n_atoms, 3)) if rng.random() < 0.8 else None,
        "stress": np.eye(3) * rng.normal() if periodic and rng.random() < 0.7 else None,
        "weight": float(rng.uniform(0, 2)),
        "config_type": str(rng.choice(["bulk", "Default", "Größe"])),
        "source": f"file ü.xyz, structure {rng.integers(100)}",
    }
    return Structure(**{**values, **changes})


def molecule(
    energy: float = -20.0, *, distance: float = 1.0, config_type: str = "Default"
) -> Atoms:
    """OH with labels."""
    atoms = Atoms("OH", [[0, 0, 0], [0, 0, distance]])
    atoms.info.update(REF_energy=energy, config_type=config_type)
    atoms.arrays["REF_forces"] = np.array([[0, 0, 0.5], [0, 0, -0.5]])
    return atoms


def isolated(symbol: str, energy: float, config_type: str = "IsolatedAtom") -> Atoms:
    """One atom with its energy."""
    atoms = Atoms(symbol)
    atoms.info.update(REF_energy=energy, config_type=config_type)
    return atoms


def crystal(energy: float = -8.0, a: float = 3.0) -> Atoms:
    """Two atoms of Cu in a cubic cell, with energy, forces and stress."""
    atoms = Atoms("Cu2", [[0, 0, 0], [a / 2] * 3], cell=[a] * 3, pbc=True)
    atoms.info.update(REF_energy=energy, REF_stress=np.diag([0.1, 0.2, 0.3]))
    atoms.arrays["REF_forces"] = np.zeros((2, 3))
    return atoms


def write_xyz(path: Path, structures: list[Atoms]) -> str:
    """Write ``structures`` as extended XYZ; the path as text."""
    ase.io.write(path, structures, format="extxyz")
    return str(path)


def molecules(n: int) -> list[Atoms]:
    """OH with other energies and distances."""
    return [molecule(-2020.0 - 0.01 * i, distance=0.8 + 0.001 * i) for i in range(n)]


def atoms_of_molecules() -> list[Atoms]:
    """The isolated atoms of ``molecules``."""
    return [isolated("H", E_H), isolated("O", E_O, "isolated_atom")]


def run(tmp_path, structures, *, name="out", r_max=3.0, **changes):
    """Preprocess ``structures`` (or files given as data) into tmp_path / name."""
    data = {key: changes.pop(key) for key in list(changes) if key in vars(DataSettings())}
    if structures is not None:
        data.setdefault("train_file", write_xyz(tmp_path / "train.xyz", structures))
    settings = PreprocessSettings(
        data=DataSettings(**data), output=str(tmp_path / name), r_max=r_max, **changes
    )
    return preprocess(settings)


def statistics_in(folder: Path) -> Statistics:
    """What preprocess wrote to statistics.json."""
    return Statistics.read(folder / "statistics.json")


def files_below(folder: Path) -> dict[str, bytes]:
    """Path below ``folder`` -> content, for every file."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
