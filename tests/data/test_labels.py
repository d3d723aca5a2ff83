"""labels: counts as one would count by hand, and warnings that name what is there."""

import numpy as np
import pytest

from mace_train.data.labels import LabelCounts, LabelReport
from mace_train.data.shards.shard_set import ShardSet, sample_of, shard_path, write_shard
from mace_train.data.structure import LabelKeys, structure_from_atoms
from mace_train.errors import InputError
from tests.data.factories import KEYS, crystal, molecule, random_structure


def report_of(*structures, keys=KEYS):
    report = LabelReport(keys)
    for atoms in structures:
        report.add(atoms, structure_from_atoms(atoms, keys, "a", require_energy=False))
    return report


def test_shards_and_structures_are_counted_alike(tmp_path):
    rng = np.random.default_rng(3)
    structures = [random_structure(rng) for _ in range(40)]
    structures += [random_structure(rng, energy=None) for _ in range(3)]
    counts = LabelCounts()
    for structure in structures:
        counts.add(structure)
    for i in range(3):
        samples = [sample_of(s, 3.0) for s in structures[15 * i : 15 * (i + 1)]]
        write_shard(shard_path(tmp_path, i), samples, 3.0)
    shards = ShardSet(tmp_path)
    arrays = map(shards.arrays, range(shards.n_shards))
    assert LabelCounts.of_shards(arrays) == counts
    assert counts.energy == 40
    assert 0 < counts.stress < counts.n_periodic < counts.n_structures == 43
    assert counts.forces == sum(s.forces is not None for s in structures)


def test_summary():
    assert LabelCounts(5, 0, 5, 4, 0).summary() == "labels: energy 5/5, forces 4/5"
    assert LabelCounts(5, 5, 5, 4, 0).summary() == "labels: energy 5/5, forces 4/5, stress 0/5"
    assert LabelCounts(5, 2, 5, 4, 1).summary().endswith("stress 1/2 periodic")


@pytest.mark.parametrize("name", ["Forces", "dft_forces", "gradient", "vasp_force"])
def test_names_that_look_like_forces(caplog, name):
    atoms = crystal()
    atoms.arrays[name] = atoms.arrays.pop("REF_forces")
    atoms.info.update(config_forces_weight=1.0, note="x")
    report_of(atoms, crystal()).warn_missing("test_file")
    expected = (
        "test_file: 1 of 2 structures have no forces (forces_key=REF_forces) and are used "
        f"without; similar names found: {name}"
    )
    assert [record.getMessage() for record in caplog.records] == [expected]


@pytest.mark.parametrize("name", ["virial", "dft_stress", "Virials"])
def test_names_that_look_like_stress(caplog, name):
    atoms = crystal()
    atoms.info[name] = atoms.info.pop("REF_stress")
    report_of(atoms, molecule()).warn_missing("train_file")
    assert "1 of 1 periodic structures have no stress (stress_key=REF_stress, " in caplog.text
    assert f"virials_key=REF_virials) and are used without; similar names found: {name}\n" in (
        caplog.text
    )


def test_missing_energies(caplog):
    atoms = molecule()
    del atoms.info["REF_energy"]
    report_of(atoms, molecule(), molecule()).warn_missing("test_file")
    assert "test_file: 1 of 3 structures have no energy" in caplog.text
    assert "similar" not in caplog.text


def test_stress_that_nothing_has_is_no_omission(caplog):
    atoms = crystal()
    del atoms.info["REF_stress"]
    report_of(atoms).warn_missing("train_file")
    assert not caplog.records


def test_one_of_two_given_names_of_the_stress_is_enough():
    keys = LabelKeys("REF_energy", "REF_forces", "my_stress", "foo")
    atoms = crystal()
    atoms.info["my_stress"] = atoms.info.pop("REF_stress")
    report_of(atoms, keys=keys).check_given_keys("train_file")
    with pytest.raises(InputError, match=r"'my_stress' \(stress_key\) or 'foo' \(virials_key\)"):
        report_of(crystal(), keys=keys).check_given_keys("train_file")


def test_default_names_need_not_be_found():
    report_of(molecule(), crystal()).check_given_keys("train_file")
    bare = molecule()
    bare.info.clear()
    del bare.arrays["REF_forces"]
    report_of(bare).check_given_keys("train_file")
