"""mace-train relax with a trained model."""

import json

import numpy as np
import pytest
from ase.build import fcc111
from ase.io import read, write

from mace_train.calculators import MACETrainCalculator
from tests.conftest import run_command


def test_relaxed_atoms_and_cell(trained, crystal, tmp_path, capsys):
    output = tmp_path / "relaxed"
    run_command(
        "relax",
        f"checkpoint={trained}",
        f"structure={crystal}",
        f"output={output}",
        "relax_cell=true",
        "default_dtype=float64",
        "fmax=0.02",
    )
    found = json.loads((output / "relax.json").read_text())
    assert found["converged"]
    atoms, start = read(output / "relaxed.extxyz"), read(crystal)
    atoms.calc = start.calc = MACETrainCalculator(trained, default_dtype="float64")
    assert found["energy_eV"] == pytest.approx(atoms.get_potential_energy(), abs=1e-6)
    first = found["records"]["energy_eV"][0]
    assert first == pytest.approx(start.get_potential_energy(), abs=1e-6)
    assert found["energy_eV"] < first
    assert np.abs(atoms.get_forces()).max() < 0.02
    assert np.abs(atoms.get_stress()).max() * atoms.get_volume() < 0.1
    assert len(read(output / "trajectory.extxyz", ":")) == found["steps"] + 1
    assert "FIRE: " in capsys.readouterr().err
    assert (output / "relax.png").stat().st_size > 1000


def test_not_converged_says_what_to_do(trained, crystal, tmp_path, capsys):
    output = tmp_path / "relaxed"
    arguments = [f"checkpoint={trained}", f"structure={crystal}", f"output={output}"]
    run_command("relax", *arguments, "algorithm=lbfgs", "fmax=1e-9", "max_steps=3")
    assert "warning: not converged to fmax=1e-09 eV/Å in 3 steps" in capsys.readouterr().err
    assert not json.loads((output / "relax.json").read_text())["converged"]


def relax_slab(trained, tmp_path, *arguments, vacuum=5.0):
    atoms = fcc111("Al", (1, 1, 2), vacuum=vacuum)
    atoms.rattle(0.02, seed=1)
    atoms.info.clear()  # of sites to adsorb, which a file does not keep
    path = tmp_path / "slab.xyz"
    write(path, atoms)
    command = ["relax", f"checkpoint={trained}", f"structure={path}", f"output={tmp_path}/out"]
    command += ["relax_cell=true", "default_dtype=float64", "fmax=0.02", *arguments]
    run_command(*command)
    return atoms


def test_of_a_slab_the_plane_relaxes(trained, tmp_path):
    start = relax_slab(trained, tmp_path)
    found = json.loads((tmp_path / "out" / "relax.json").read_text())
    assert found["converged"]
    assert "pressure_GPa" not in found
    atoms = read(tmp_path / "out" / "relaxed.extxyz")
    np.testing.assert_allclose(atoms.cell[2], start.cell[2], atol=1e-6)
    assert np.abs(atoms.cell[:2] - start.cell[:2]).max() > 1e-3
    atoms.calc = MACETrainCalculator(trained, default_dtype="float64")
    assert np.abs(atoms.get_stress()).max() * atoms.get_volume() < 0.1


def test_slabs_that_cannot_relax(trained, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        relax_slab(trained, tmp_path, vacuum=None)
    assert "its cell has no volume" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        relax_slab(trained, tmp_path, "pressure_GPa=1")
    assert "periodic along [True, True, False]: pressure_GPa=1.0" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
