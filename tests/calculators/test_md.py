"""mace-train md with a trained model, and what users may do wrong with md, relax and export."""

import json

import numpy as np
import pytest
from ase.build import molecule
from ase.io import read, write

from mace_train.calculators import MACETrainCalculator
from tests.conftest import run_command


def test_nve_conserves_energy_and_says_so(trained, crystal, tmp_path, capsys):
    output = tmp_path / "md"
    arguments = [f"checkpoint={trained}", f"structure={crystal}", "index=0", f"output={output}"]
    run_command("md", *arguments, "steps=45", "timestep_fs=0.25", "default_dtype=float64")
    found = json.loads((output / "md.json").read_text())
    frames = read(output / "trajectory.extxyz", ":")
    assert len(frames) == len(found["records"]["time_ps"]) == 6  # 0, 10, ..., 40, 45
    assert found["records"]["time_ps"][-1] == pytest.approx(45 * 0.25 / 1000)
    calc = MACETrainCalculator(trained, default_dtype="float64")
    for atoms, total in zip(frames, found["records"]["total_energy_eV"], strict=True):
        again = calc.get_potential_energy(atoms) + atoms.get_kinetic_energy()
        assert again == pytest.approx(total, abs=1e-6)
        np.testing.assert_allclose(atoms.get_forces(), calc.get_forces(atoms), atol=1e-6)
        np.testing.assert_allclose(atoms.get_momenta().sum(0), 0, atol=1e-6)
    assert np.ptp(found["records"]["total_energy_eV"]) < 2e-3
    assert np.ptp(found["records"]["potential_energy_eV"]) > 1e-3
    assert (output / "energy.png").stat().st_size > 1000
    said = capsys.readouterr().err
    assert "NVE: 45 steps (0.0112 ps) of 3 atoms" in said
    assert "drift of the total energy" in said
    assert f"wrote trajectory.extxyz, md.json and energy.png to {output}" in said


def test_dynamics_go_on_with_velocities(trained, crystal, tmp_path):
    """Two runs, the second from the last frame of the first, are one run."""
    arguments = [f"checkpoint={trained}", "default_dtype=float64", "trajectory=traj"]
    whole, first, second = (tmp_path / name for name in ("whole", "first", "second"))
    start = f"structure={crystal}"
    run_command("md", *arguments, start, "steps=20", f"output={whole}")
    run_command("md", *arguments, start, "steps=10", f"output={first}")
    middle = f"structure={first / 'trajectory.traj'}"
    run_command("md", *arguments, middle, "temperature_K=null", "steps=10", f"output={second}")
    end, expected = (read(folder / "trajectory.traj") for folder in (second, whole))
    np.testing.assert_allclose(end.positions, expected.positions, atol=1e-12)
    np.testing.assert_allclose(end.get_momenta(), expected.get_momenta(), atol=1e-12)


def test_nvt_of_a_committee_keeps_the_temperature(trained, crystal, tmp_path):
    output = tmp_path / "md"
    run_command(
        "md",
        f"checkpoint=[{trained},{trained}]",
        f"structure={crystal}",
        f"output={output}",
        "repeat=[2,1,1]",
        "ensemble=nvt",
        "temperature_K=500",
        "friction_per_fs=0.5",
        "timestep_fs=1",
        "steps=60",
        "interval=2",
        "trajectory=traj",
    )
    found = json.loads((output / "md.json").read_text())
    assert found["n_atoms"] == 8
    assert set(found["records"]["energy_std_eV"]) == {0.0}
    assert 300 < found["mean_temperature_K"] < 800
    assert len(read(output / "trajectory.traj", ":")) == 31


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["md", "structure=nowhere.xyz"], "structure=nowhere.xyz: no such file"),
        (["md", "structure={start}", "index=7"], "no structure with index=7"),
        (["md", "structure={start}", "index=0", "repeat=[2,1,1]"], "periodic along [False, False"),
        (["md", "structure={start}", "repeat=[2,1]"], "repeat=[2, 1] must be three numbers"),
        (["md", "structure={start}", "ensemble=npt"], "valid choices are: nve, nvt"),
        (["md", "structure={start}", "ensemble=nvt", "temperature_K=null"], "needs a temperature"),
        (["md", "structure={start}", "timestep_fs=0"], "must be greater than 0"),
        (["md", "structure={junk}"], "junk.xyz, structure 0: line 1 is b'three'"),
        (["md", "structure={cut}"], "the file ends after 1 of 99999999 atoms"),
        (["md", "structure={carbon}"], "does not know C (6), only H, N, O, Al"),
        (["md"], "md needs structure"),
        (["relax", "structure={start}", "index=0", "relax_cell=true"], "its cell has no volume"),
        (["relax", "structure={start}", "pressure_GPa=1"], "needs relax_cell=true"),
        (["relax", "structure={start}", "algorithm=newton"], "valid choices are: fire, lbfgs"),
        (["export", "format=onnx"], "state_dict, aoti, export"),
        (["export", "format=aoti", "output=model.onnx"], "files .pt2"),
    ],
)
def test_bad_input(arguments, words, trained, crystal, tmp_path, capsys):
    (tmp_path / "junk.xyz").write_text("three\natoms\n")
    (tmp_path / "cut.xyz").write_text("99999999\n\nH 0 0 0\n")
    write(tmp_path / "carbon.xyz", molecule("CH4"))
    files = {name: tmp_path / f"{name}.xyz" for name in ("start", "junk", "cut", "carbon")}
    words_of = [argument.format(**files) for argument in arguments]
    if not any(word.startswith("output=") for word in words_of):
        words_of.append(f"output={tmp_path / 'out'}")
    with pytest.raises(SystemExit) as ended:
        run_command(*words_of, f"checkpoint={trained}")
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said


def test_dynamics_that_become_unstable_end_in_a_message(trained, tmp_path, capsys):
    write(tmp_path / "start.xyz", molecule("H2O"))
    with pytest.raises(SystemExit) as ended:
        run_command(
            "md",
            f"checkpoint={trained}",
            f"structure={tmp_path / 'start.xyz'}",
            f"output={tmp_path / 'md'}",
            "temperature_K=1e6",
            "timestep_fs=5",
            "steps=50",
        )
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "the dynamics became unstable within the 10 steps before step" in said
    assert "use a smaller timestep_fs than 5" in said
