"""Data with one kind of label, from the file to the report."""

import json
import re

import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import write

from tests.conftest import TINY_MODEL, labelled, run_command
from tests.train.training import records

STRESS = ("loss.stress_weight=10",)
WITHOUT_ENERGY = ("data.require_energy=false",)


def crystals(n: int) -> list[Atoms]:
    """Strained aluminium with all labels."""
    found = []
    for i in range(n):
        crystal = bulk("Al", a=4.05 * (1 + 0.01 * (i % 5)), cubic=bool(i % 2))
        crystal.rattle(0.05, seed=i)
        found.append(labelled(crystal, "crystal"))
    return found


def keep(label: str, atoms: Atoms) -> Atoms:
    """The structure with this label alone."""
    for name in {"REF_energy", "REF_stress"} - {f"REF_{label}"}:
        del atoms.info[name]
    if label != "forces":
        del atoms.arrays["REF_forces"]
    return atoms


@pytest.mark.parametrize(
    ("label", "preprocessing", "training", "scale"),
    [
        ("energy", (), (), "standard deviation of the energy per atom"),
        ("forces", WITHOUT_ENERGY, (), None),
        ("stress", WITHOUT_ENERGY, STRESS, "1 eV"),
    ],
)
def test_one_kind_of_label_from_file_to_report(
    label, preprocessing, training, scale, tmp_path, capsys
):
    path, data, run = tmp_path / "al.xyz", tmp_path / "data", tmp_path / "run"
    write(path, [keep(label, atoms) for atoms in crystals(8)], format="extxyz")
    more = ("data.E0s=average", "r_max=4", "data.valid_fraction=0.25", *preprocessing)
    run_command("preprocess", f"data.train_file={path}", f"output={data}", *more)
    said = capsys.readouterr().err
    assert ("no forces" in said.splitlines()[-2]) == (label != "forces")
    assert ("no energies" in said.splitlines()[-2]) == (label != "energy")
    more = ("cluster=cpu", "max_num_epochs=2", *TINY_MODEL, *training)
    run_command("train", f"data_dir={data}", f"output={run}", *more)
    said = capsys.readouterr().err
    assert ("interaction energies are scaled by" in said) == (scale is not None)
    assert scale is None or re.search(f"scaled by (the )?{scale}", said)
    quantities = {key.split("_")[1] for key in records(run)[-1] if "_rmse_" in key}
    assert quantities == {label}
    assert records(run)[-1]["valid_loss"] > 0
    out = tmp_path / "evaluation"
    run_command("evaluate", f"checkpoint={run}", f"test_file={path}", f"output={out}")
    (row, *_) = json.loads((out / "errors.json").read_text())["errors"]
    assert {key.split("_")[0] for key in row if "_rmse_" in key} == {label}
    run_command("report", run)
    page = (run / "report" / "report.html").read_text()
    assert label in page.lower()
    assert not re.search(r"\bnan\b", re.sub(r"base64,[^\"')]*", "", page))


def test_one_structure_and_equal_energies(tmp_path, capsys):
    """Nothing to scale by, and nothing to validate on."""
    (atoms,) = (keep("energy", atoms) for atoms in crystals(1))
    path, data, run = tmp_path / "al.xyz", tmp_path / "data", tmp_path / "run"
    write(path, atoms, format="extxyz")
    more = ("data.E0s=average", "r_max=4", "data.valid_fraction=0")
    run_command("preprocess", f"data.train_file={path}", f"output={data}", *more)
    more = ("cluster=cpu", "max_num_epochs=1", *TINY_MODEL)
    run_command("train", f"data_dir={data}", f"output={run}", *more)
    assert "interaction energies are scaled by 1 eV" in capsys.readouterr().err
    assert records(run)[-1]["train_loss"] > 0
