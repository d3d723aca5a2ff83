"""The embedded example data: files, labels, sizes, and that the script rebuilds what is shipped."""

from __future__ import annotations

import gzip
import importlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import ase.io
import numpy as np
import pytest
from ase import Atoms

REPO = Path(__file__).resolve().parents[2]
FOLDER = REPO / "mace_train" / "example_data"
NAMES = {"train": "train.extxyz.gz", "test": "test.extxyz.gz"}
CONFIG_TYPES = {"IsolatedAtom", "molecule", "water", "solvated", "crystal"}
REBUILT = [
    "atom-O",
    "molecule-CH3OH",
    "molecule-CH3CHO",
    "water-train-13-4",
    "solvated-CH4-2",
    "crystal-CO2-cubic-train-2",
    "crystal-N2-alpha-test-0",
]


@pytest.fixture(scope="module")
def shipped() -> dict[str, list[Atoms]]:
    def parse(name: str) -> list[Atoms]:
        text = gzip.decompress((FOLDER / name).read_bytes()).decode()
        return ase.io.read(io.StringIO(text), ":", format="extxyz")

    return {split: parse(name) for split, name in NAMES.items()}


@pytest.fixture(scope="module")
def every(shipped: dict[str, list[Atoms]]) -> list[Atoms]:
    return [atoms for structures in shipped.values() for atoms in structures]


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """Return scripts/make_example_data.py as a module (its own package lies beside it)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(REPO / "scripts"))
        patch.setenv("OMP_NUM_THREADS", "1")
        module = importlib.import_module("make_example_data")
    yield module
    for name in [
        n for n in sys.modules if n.split(".")[0] in {"make_example_data", "example_data"}
    ]:
        del sys.modules[name]


def test_files_are_small_and_carry_no_time_stamp() -> None:
    data = {name: (FOLDER / name).read_bytes() for name in NAMES.values()}
    assert sum(map(len, data.values())) <= 2_000_000
    for content in data.values():
        flags, stamp = content[3], content[4:8]
        assert (flags, stamp) == (0, bytes(4))


def test_counts_and_uneven_sizes(shipped: dict[str, list[Atoms]]) -> None:
    assert {split: len(structures) for split, structures in shipped.items()} == {
        "train": 881,
        "test": 98,
    }
    sizes = np.array([len(atoms) for atoms in shipped["train"]])
    assert sizes.min() == 1
    assert 8 <= np.median(sizes) <= 16
    assert sizes.max() == 120


def test_ase_opens_the_compressed_file_by_name(shipped: dict[str, list[Atoms]]) -> None:
    atoms = ase.io.read(FOLDER / NAMES["test"], index=0)
    assert np.array_equal(atoms.positions, shipped["test"][0].positions)


def test_labels_are_complete_and_sane(every: list[Atoms]) -> None:
    for atoms in every:
        where = (atoms.info["trajectory"], atoms.info["frame"])
        forces = atoms.arrays["REF_forces"]
        assert atoms.info["config_type"] in CONFIG_TYPES, where
        assert np.isfinite(atoms.info["REF_energy"]), where
        assert atoms.info["REF_energy"] < 0, where
        assert forces.shape == (len(atoms), 3), where
        assert np.abs(forces).max() < 15.0, where
        assert np.abs(forces.sum(axis=0)).max() < 1e-4, where  # translations cost nothing


def test_stress_is_there_for_exactly_the_periodic_structures(every: list[Atoms]) -> None:
    assert any(atoms.pbc.all() for atoms in every)
    for atoms in every:
        periodic = atoms.info["config_type"] == "crystal"
        assert atoms.pbc.tolist() == [periodic] * 3
        assert ("REF_stress" in atoms.info) == periodic
        assert (abs(atoms.cell.volume) > 1.0) == periodic
        if periodic:
            stress = atoms.info["REF_stress"]
            assert stress.shape == (3, 3)
            assert np.array_equal(stress, stress.T)


def test_every_element_has_one_isolated_atom_in_the_train_file(
    shipped: dict[str, list[Atoms]], every: list[Atoms]
) -> None:
    isolated = [a for a in shipped["train"] if a.info["config_type"] == "IsolatedAtom"]
    assert sorted(a.numbers[0] for a in isolated) == [1, 6, 7, 8]
    assert all(len(a) == 1 and not a.arrays["REF_forces"].any() for a in isolated)
    assert {n for a in every for n in a.numbers} == {1, 6, 7, 8}
    e0 = {int(a.numbers[0]): a.info["REF_energy"] for a in isolated}
    for atoms in every:  # everything is bound, by a few eV/atom
        binding = (atoms.info["REF_energy"] - sum(e0[n] for n in atoms.numbers)) / len(atoms)
        assert len(atoms) == 1 or -12.0 < binding < -2.0, atoms.info["trajectory"]


def test_no_two_atoms_closer_than_half_an_angstrom(every: list[Atoms]) -> None:
    closest = min(shortest_distance(atoms) for atoms in every if len(atoms) > 1)
    assert 0.5 < closest < 1.0  # H-H and O-H bonds


def shortest_distance(atoms: Atoms) -> float:
    """Return the shortest distance over all images in reach (brute force), Å."""
    reach = range(-1, 2) if atoms.pbc.all() else range(1)
    cells = np.array([[i, j, k] for i in reach for j in reach for k in reach]) @ atoms.cell.array
    positions = atoms.get_positions(wrap=bool(atoms.pbc.all()))
    vectors = positions[None, :, None] - positions[:, None, None] + cells
    squares = (vectors**2).sum(axis=-1)
    home = int(np.flatnonzero((cells == 0).all(axis=1))[0])
    squares[np.arange(len(atoms)), np.arange(len(atoms)), home] = np.inf
    return float(np.sqrt(squares.min()))


def test_train_and_test_share_no_trajectory_and_no_test_molecule(
    shipped: dict[str, list[Atoms]],
) -> None:
    names = {s: {a.info["trajectory"] for a in frames} for s, frames in shipped.items()}
    assert not names["train"] & names["test"]
    molecules = {
        split: {name.split("-", 1)[1] for name in every if name.startswith("molecule-")}
        for split, every in names.items()
    }
    assert len(molecules["train"]) == 49
    assert len(molecules["test"]) == 8
    solutes = {name.split("-")[1] for name in names["train"] if name.startswith("solvated-")}
    assert not molecules["test"] & (molecules["train"] | solutes)


def test_readme_has_the_table_of_the_shipped_files(
    script: ModuleType, shipped: dict[str, list[Atoms]]
) -> None:
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert "\n".join(script.table(shipped)) in readme


def test_writing_is_repeatable_and_exact(
    script: ModuleType, shipped: dict[str, list[Atoms]], tmp_path: Path
) -> None:
    some = {split: frames[::17] for split, frames in shipped.items()}
    for name in ("a", "b"):
        script.write(some, tmp_path / name)
    for name in NAMES.values():
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert script.check(some, script.read(tmp_path / "a")) == []


@pytest.mark.parametrize("damage", ["position", "energy", "stress", "order", "missing"])
def test_check_notices(script: ModuleType, shipped: dict[str, list[Atoms]], damage: str) -> None:
    good = {"test": [atoms.copy() for atoms in shipped["test"][-3:]]}
    bad = {"test": [atoms.copy() for atoms in shipped["test"][-3:]]}
    if damage == "position":
        bad["test"][1].positions[2, 1] += 1e-6
    elif damage == "energy":
        bad["test"][1].info["REF_energy"] += 1.1e-6
    elif damage == "stress":
        del bad["test"][1].info["REF_stress"]
    elif damage == "order":
        bad["test"].reverse()
    else:
        bad["test"].pop()
    assert script.check(good, good) == []
    assert len(script.check(good, bad)) >= 1


def test_unknown_trajectory_is_an_error(script: ModuleType) -> None:
    with pytest.raises(ValueError, match="no trajectory is called"):
        script.build(["molecule-unobtainium"])


def test_rebuilding_a_subset_gives_the_shipped_structures(
    script: ModuleType, shipped: dict[str, list[Atoms]]
) -> None:
    pytest.importorskip("tblite", reason="rebuilding the example data needs tblite")
    built = script.build(REBUILT)
    kept = {s: [a for a in f if a.info["trajectory"] in REBUILT] for s, f in shipped.items()}
    assert {split: len(frames) for split, frames in built.items()} == {"train": 24, "test": 6}
    assert script.check(built, kept) == []


def test_labels_are_derivatives_of_the_energy(
    script: ModuleType, shipped: dict[str, list[Atoms]]
) -> None:
    """Central differences of the energy, 1e-3 Å and 1e-3 of strain: forces, stress, its sign."""
    pytest.importorskip("tblite", reason="finite differences of the labels need tblite")
    dynamics = importlib.import_module("example_data.dynamics")
    name = "crystal-CO2-cubic-train-2"
    atoms = next(a for a in shipped["train"] if a.info["trajectory"] == name)
    step = 1e-3

    def energy(displacement: np.ndarray, strain: np.ndarray) -> float:
        moved = Atoms(atoms.numbers, atoms.positions + displacement, cell=atoms.cell, pbc=True)
        moved.set_cell(atoms.cell.array @ (np.eye(3) + strain), scale_atoms=True)
        return float(dynamics.label(moved).info["REF_energy"])

    still, flat = np.zeros((3, 3)), np.zeros((3, 3))
    for i, j in [(0, 0), (1, 2), (2, 1)]:
        unit = np.zeros((3, 3))
        unit[i, j] = step
        force = -(energy(unit, flat) - energy(-unit, flat)) / (2 * step)
        assert force == pytest.approx(atoms.arrays["REF_forces"][i, j], abs=2e-3)
        bent = (unit + unit.T) / 2
        slope = (energy(still, bent) - energy(still, -bent)) / (2 * step)
        stress = slope / atoms.cell.volume
        assert stress == pytest.approx(atoms.info["REF_stress"][i, j], abs=2e-5)
