"""Which key a label was read from: counted, told, kept; labels that contradict each other."""

import json
import subprocess
import sys

import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator

from mace_train.data.found_labels import candidates
from mace_train.data.labels import LabelReport, warn_of_other_keys
from mace_train.data.notes import Notes
from mace_train.data.statistics import Statistics
from mace_train.data.structure import structure_from_atoms
from mace_train.errors import InputError
from tests.data.factories import KEYS, crystal, molecule, molecules, run, statistics_in, write_xyz


def parsed(atoms):
    """``atoms`` with plain labels, as of a calculator, in place of REF_ ones."""
    energy, forces = atoms.info.pop("REF_energy"), atoms.arrays.pop("REF_forces")
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    return atoms


def report_of(*structures):
    report = LabelReport(KEYS)
    for i, atoms in enumerate(structures):
        structure = structure_from_atoms(atoms, KEYS, f"a.xyz, structure {i}", report.notes)
        report.add(atoms, structure)
    return report


def test_one_label_under_two_keys(caplog):
    report = report_of(molecule(), parsed(molecule()), parsed(molecule()), molecule())
    expected = {"energy": {"REF_energy": 2, "energy": 2}, "forces": {"REF_forces": 2, "forces": 2}}
    assert report.numbers_by_key() == {"Default": expected}
    report.warn("data.train_file")
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2  # and none about the label that ASE parsed: it is said here
    assert lines[0] == (
        "data.train_file: the energy comes from 2 keys, so that two levels of theory may be mixed: "
        "'REF_energy' in 2 structures (first: a.xyz, structure 0), 'energy' in 2 structures "
        "(first: a.xyz, structure 1); if so, give each its head, or correct the names in the files "
        "or data.energy_key"
    )


def test_heads_may_have_their_own_keys(caplog):
    other = parsed(molecule())
    other.info["head"] = "pbe"
    report = report_of(molecule(), other)
    report.warn("data.train_file")
    assert [r.getMessage() for r in caplog.records] == [
        "a.xyz, structure 1: no energy under 'REF_energy'; taking the energy that ASE parsed "
        "('energy')",
        "a.xyz, structure 1: no forces under 'REF_forces'; taking the forces that ASE parsed "
        "('forces')",
    ]


def test_a_report_is_the_same_after_json_and_in_parts():
    structures = [molecule(), parsed(molecule()), crystal(), parsed(crystal())]
    whole = report_of(*structures)
    merged = LabelReport(KEYS)
    for i in range(4):
        structure = structure_from_atoms(
            structures[i], KEYS, f"a.xyz, structure {i}", notes := Notes()
        )
        part = LabelReport(KEYS, notes=notes)
        part.add(structures[i], structure)
        merged.merge(LabelReport.of_content(KEYS, json.loads(json.dumps(part.content()))))
    assert merged.content() == whole.content()


def test_splits_under_different_keys(caplog):
    train, test = report_of(molecule()), report_of(parsed(molecule()))
    warn_of_other_keys({"data.train_file": train, "data.test_file": test})
    expected = "the energy is 'REF_energy' in data.train_file and 'energy' in data.test_file, so"
    assert caplog.records[0].getMessage().startswith(expected)
    caplog.clear()
    warn_of_other_keys({"data.train_file": train, "data.test_file": train})
    assert not caplog.records


def test_similar_names_are_those_that_are_not_read(caplog):
    bare = molecule()
    del bare.arrays["REF_forces"]
    bare.arrays["dft_forces"] = np.zeros((2, 3))
    report_of(molecule(), parsed(molecule()), bare).warn_missing("data.train_file")
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.endswith("1 of 3 structures have no forces (forces_key=REF_forces) and are used "
                         "without; similar names found: dft_forces")  # fmt: skip


STRESS = np.diag([0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"energy": -9.0}, "two values of the energy differ: 'REF_energy' is -8 eV and is read, "
         "'energy' is -9"),
        ({"energy": -8.0 + 1e-7}, None),
        ({"forces": np.array([[0, 0, 0], [0, 0, 0.5]])},
         "two values of the forces differ on atom 1: 'REF_forces' is 0 eV/Å"),
        ({"forces": np.full((2, 3), 1e-6)}, None),
        ({"stress": np.array([0.1, 0.2, 0.3, 0, 0, 0])}, None),
        ({"stress": np.array([0.1, 0.2, 0.3, 0, 0.05, 0])}, "stress differ in component (0, 2)"),
        ({"REF_virials": -27 * STRESS}, None),
        ({"REF_virials": -27 * STRESS * (1 + 1e-5)}, None),
        ({"REF_virials": 27 * STRESS}, "'REF_stress' is 0.3 eV/Å^3 and is read, -virials / volume "
         "of 'REF_virials' is -0.3"),
        ({"REF_virials": -STRESS}, "two values of the stress differ in component (2, 2)"),
    ],
)  # fmt: skip
def test_labels_that_contradict_each_other(caplog, changes, message):
    atoms = crystal()
    results = {k: v for k, v in changes.items() if k in ("energy", "forces", "stress")}
    atoms.info.update({k: v for k, v in changes.items() if k not in results})
    if results:
        atoms.calc = SinglePointCalculator(atoms, **results)
    report = report_of(crystal(), atoms, atoms)
    report.warn("data.train_file")
    if message is None:
        assert not caplog.records
        return
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith("a.xyz, structure 1: two values")
    assert message in line
    assert line.endswith("(first of 2 structures)")


def test_a_value_that_is_not_read_need_not_be_valid():
    atoms = crystal()
    atoms.info["REF_virials"] = "none"
    np.testing.assert_array_equal(structure_from_atoms(atoms, KEYS, "a").stress, STRESS)


def test_the_first_candidate_is_what_is_read():
    atoms = crystal()
    atoms.calc = SinglePointCalculator(atoms, energy=-3.0)
    found = list(candidates(atoms, KEYS.wanted("energy")))
    assert [(f.key, f.value, f.parsed) for f in found] == [
        ("REF_energy", -8.0, False), ("energy", -3.0, True),
    ]  # fmt: skip
    assert structure_from_atoms(atoms, KEYS, "a").energy == -8.0


@pytest.mark.parametrize("value", [True, np.array([True] * 6), [True] * 6, np.array(["1", "x"])])
def test_truth_values_are_no_labels(value):
    atoms = crystal()
    atoms.info["REF_stress"] = value
    with pytest.raises(InputError, match=r"'REF_stress' is .*, not a number"):
        structure_from_atoms(atoms, KEYS, "a")


@pytest.mark.parametrize(
    ("value", "name"),
    [(5, "5"), (np.array([]), "Default"), ("Größe\xa01", "Größe\xa01"), (np.array([1, 2]), "1 2")],
)
def test_names_that_are_no_text(value, name):
    atoms = crystal()
    atoms.info["config_type"] = value
    assert structure_from_atoms(atoms, KEYS, "a").config_type == name


def test_a_message_names_the_key_that_was_read():
    atoms = parsed(crystal())
    atoms.calc.results["energy"] = "-1.0D+02"
    message = "'energy' is '-1.0D.02', not a number; it has a Fortran exponent: write E in place"
    with pytest.raises(InputError, match=message):
        structure_from_atoms(atoms, KEYS, "a")


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "mace_train", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_commands_tell_which_key_was_read(tmp_path):
    mixed = [molecules(8)[i] if i % 2 else parsed(molecules(8)[i]) for i in range(8)]
    train = write_xyz(tmp_path / "train.xyz", mixed)
    test = write_xyz(tmp_path / "test.xyz", molecules(2))
    files = (f"data.train_file={train}", f"data.test_file={test}", "data.E0s=average")
    dry = command("preprocess", "--dry-run", *files)
    output = tmp_path / "out"
    done = command("preprocess", *files, "r_max=3", f"output={output}")
    for result in (dry, done):
        assert result.returncode == 0, result.stderr
        assert "the energy comes from 2 keys" in result.stdout + result.stderr
        assert f"'energy' in 4 structures (first: {train}, structure 0)" in (
            result.stdout + result.stderr
        )
    keys = "energy: energy 4, REF_energy 4; forces: forces 4, REF_forces 4"
    assert f"data.train_file: labels by key: {keys}" in done.stdout + done.stderr
    assert "mean interaction energy per atom" in done.stdout + done.stderr
    assert statistics_in(output).label_keys == {
        "train_file": {
            "Default": {
                "energy": {"energy": 4, "REF_energy": 4},
                "forces": {"forces": 4, "REF_forces": 4},
            }
        },
        "test_file": {"Default": {"energy": {"REF_energy": 2}, "forces": {"REF_forces": 2}}},
    }
    shown = command("inspect", str(output), "plots=false")
    assert f"labels by key, train_file: {keys}" in shown.stdout


def test_statistics_of_earlier_versions_have_no_keys(tmp_path):
    output = run(tmp_path, molecules(4), E0s="average", valid_fraction=0)
    path = output / "statistics.json"
    content = json.loads(path.read_text())
    del content["label_keys"]
    path.write_text(json.dumps(content))
    assert Statistics.read(path).label_keys == {}


def test_structures_that_are_left_out_do_not_count(tmp_path, caplog):
    broken = parsed(molecule())
    broken.calc.results["forces"][0, 0] = np.nan
    path = tmp_path / "train.xyz"
    ase.io.write(path, [*molecules(4), broken], format="extxyz")
    output = run(tmp_path, None, train_file=str(path), E0s="average", valid_fraction=0,
                 skip_invalid=True)  # fmt: skip
    assert statistics_in(output).label_keys["train_file"]["Default"]["energy"] == {"REF_energy": 4}
    assert "ASE parsed" not in caplog.text


def test_a_dry_run_refuses_a_key_that_nothing_has(tmp_path):
    train = write_xyz(tmp_path / "train.xyz", [parsed(m) for m in molecules(3)])
    result = command("preprocess", "--dry-run", f"data.train_file={train}", "data.energy_key=foo")
    assert result.returncode == 2
    assert "none of the 3 structures has 'foo' (energy_key)" in result.stderr.replace("\n", " ")
