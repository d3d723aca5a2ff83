"""Evaluation: shards and raw files agree, and the report says what a person would compute."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from ase.build import fcc111, molecule
from ase.io import read, write

from tests.conftest import run_command


@pytest.fixture(scope="module")
def report(trained, xyz, tmp_path_factory):
    output = tmp_path_factory.mktemp("evaluation") / "out"
    run_command("evaluate", f"checkpoint={trained}", f"test_file={xyz}", f"output={output}")
    return output


def test_errors_follow_from_the_written_predictions(report, xyz):
    errors = json.loads((report / "errors.json").read_text())
    rows = {row["name"]: row for row in errors["errors"]}
    predicted, reference = read(report / "predictions.extxyz", ":"), read(xyz, ":")
    assert len(predicted) == len(reference) == errors["n_structures"]
    for p, r in zip(predicted, reference, strict=True):
        assert (p.numbers == r.numbers).all()
    forces = [
        p.arrays["MACE_forces"] - r.arrays["REF_forces"]
        for p, r in zip(predicted, reference, strict=True)
    ]
    assert [p.info["source"] for p in predicted] == [
        f"{xyz}, structure {i}" for i in range(len(reference))
    ]
    rmse = np.sqrt(np.mean(np.concatenate(forces) ** 2))
    assert rows["all"]["forces_rmse_eV_per_A"] == pytest.approx(rmse, rel=1e-4)
    chosen = [
        np.abs(p.info["MACE_energy"] - r.info["REF_energy"]) / len(r)
        for p, r in zip(predicted, reference, strict=True)
        if r.info["config_type"] == "crystal"
    ]
    assert rows["config_type crystal"]["energy_mae_eV_per_atom"] == pytest.approx(
        np.mean(chosen), rel=1e-3
    )
    aluminium = [f[p.numbers == 13] for f, p in zip(forces, predicted, strict=True)]
    rmse = np.sqrt(np.mean(np.concatenate(aluminium) ** 2))
    assert rows["element Al"]["forces_rmse_eV_per_A"] == pytest.approx(rmse, rel=1e-4)
    assert "stress_rmse_eV_per_A3" in rows["config_type crystal"]
    assert "stress_rmse_eV_per_A3" not in rows["config_type molecule"]


def test_isolated_atoms_are_reproduced(report):
    for atoms in read(report / "predictions.extxyz", ":"):
        if len(atoms) == 1 and not atoms.pbc.any():
            assert np.abs(atoms.arrays["MACE_forces"]).max() == 0


def test_structures_without_labels_are_predicted(trained, tmp_path):
    path = tmp_path / "bare.xyz"
    write(path, molecule("H2O"), format="extxyz")
    output = tmp_path / "out"
    run_command("evaluate", f"checkpoint={trained}", f"test_file={path}", f"output={output}")
    (atoms,) = read(output / "predictions.extxyz", ":")
    assert np.isfinite(atoms.info["MACE_energy"])
    assert "REF_energy" not in atoms.info
    assert json.loads((output / "errors.json").read_text())["errors"] == []
    assert "1 structures, none of them with a label" in (output / "errors.txt").read_text()
    assert not (output / "parity.png").exists()


@pytest.mark.slow
def test_two_ranks_report_what_one_does(report, trained, xyz, tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    settings = [f"checkpoint={trained}", f"test_file={xyz}", f"output={tmp_path}", "plots=false"]
    subprocess.run(
        [*launcher, "--nproc-per-node=2", "-m", "mace_train", "evaluate", *settings, "cluster=cpu"],
        check=True,
        capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    one, two = (json.loads((path / "errors.json").read_text()) for path in (report, tmp_path))
    for row, other in zip(one["errors"], two["errors"], strict=True):
        assert row.pop("name") == other.pop("name")
        assert row == pytest.approx(other, rel=1e-4)
    pairs = zip(
        read(report / "predictions.extxyz", ":"),
        read(tmp_path / "predictions.extxyz", ":"),
        strict=True,
    )
    for a, b in pairs:
        assert a.info["MACE_energy"] == pytest.approx(b.info["MACE_energy"], rel=1e-5)


def test_the_report_can_be_looked_at(report):
    assert (report / "parity.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    text = (report / "errors.txt").read_text()
    for words in ("RMSE F", "crystal", "element Al", "all"):
        assert words in text


def test_shards_and_training_agree(trained, prepared, tmp_path):
    output = tmp_path / "out"
    run_command(
        "evaluate",
        f"checkpoint={trained}",
        f"data_dir={prepared}",
        "split=valid",
        f"output={output}",
        "plots=false",
        "predictions=false",
        "batching.valid_batch_size=2",
    )
    row = json.loads((output / "errors.json").read_text())["errors"][0]
    header = json.loads((trained / "checkpoints" / "best.json").read_text())
    records = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    best = records[header["progress"]["best_epoch"]]
    for key in ("energy_rmse_eV_per_atom", "forces_rmse_eV_per_A", "stress_rmse_eV_per_A3"):
        assert row[key] == pytest.approx(best[f"valid_{key}"], rel=1e-4)
    assert sorted(path.name for path in output.iterdir()) == ["errors.json", "errors.txt"]


def test_errors_of_slabs_are_along_their_plane(trained, tmp_path, capsys):
    """Counted and compared where the label says something, in the table and in the predictions."""
    slabs = [fcc111("Al", (1, 1, 2), vacuum=4.0 + i) for i in range(3)]
    rng = np.random.default_rng(0)
    for atoms in slabs:
        atoms.rattle(0.05, rng=rng)
        atoms.info = {"REF_energy": -7.0, "REF_stress": np.full((3, 3), 0.01)}
    slabs[2].pbc = False
    path = tmp_path / "slabs.xyz"
    write(path, slabs)
    command = ["evaluate", f"checkpoint={trained}", f"test_file={path}", f"output={tmp_path}/out"]
    run_command(*command, "plots=true")
    said = capsys.readouterr().err
    assert "2 structures with a stress are periodic in one or two directions" in said
    (row, *_) = json.loads((tmp_path / "out" / "errors.json").read_text())["errors"]
    assert row["stress_count"] == 8
    predicted = read(tmp_path / "out" / "predictions.extxyz", ":")
    found = [np.reshape(p.info["MACE_stress"], (3, 3)) for p in predicted[:2]]
    assert "MACE_stress" not in predicted[2].info
    errors = np.array([stress[:2, :2] - 0.01 for stress in found])
    assert row["stress_rmse_eV_per_A3"] == pytest.approx(np.sqrt((errors**2).mean()), rel=1e-4)
    for stress in found:
        assert np.abs(stress[:2, :2]).min() > 0
        assert not stress[2].any()
        assert not stress[:, 2].any()
