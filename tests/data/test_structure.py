"""structure: units, signs, shapes, fallbacks and refusals."""

import logging
from itertools import product

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import voigt_6_to_full_3x3_stress

from mace_train.data.notes import Notes
from mace_train.data.structure import LabelKeys, is_isolated, structure_from_atoms
from mace_train.errors import InputError
from mace_train.settings import DataSettings
from tests.data.factories import KEYS, crystal, isolated, molecule


def read(atoms, notes=None):
    return structure_from_atoms(atoms, KEYS, "a.xyz, structure 3", notes)


def test_all_fields():
    atoms = crystal()
    atoms.info.update(
        config_weight=2,
        config_energy_weight=0.5,
        config_forces_weight=0.0,
        config_stress_weight=3.0,
        config_type="bulk",
    )
    structure = read(atoms)
    assert structure.numbers.dtype == np.int64
    assert structure.numbers.tolist() == [29, 29]
    np.testing.assert_array_equal(structure.positions, atoms.positions)
    np.testing.assert_array_equal(structure.cell, np.eye(3) * 3.0)
    assert structure.pbc.tolist() == [True] * 3
    assert structure.energy == -8.0
    np.testing.assert_array_equal(structure.forces, np.zeros((2, 3)))
    np.testing.assert_array_equal(structure.stress, np.diag([0.1, 0.2, 0.3]))
    weights = (structure.weight, structure.energy_weight, structure.forces_weight)
    assert weights == (2.0, 0.5, 0.0)
    assert structure.stress_weight == 3.0
    assert structure.config_type == "bulk"
    assert structure.source == "a.xyz, structure 3"


def test_label_keys_of_settings():
    data = DataSettings(train_file="x", energy_key="E", forces_key="F")
    assert LabelKeys.of(data) == LabelKeys("E", "F", data.stress_key, data.virials_key)


def test_the_structure_does_not_change_with_the_atoms():
    atoms = crystal()
    structure = read(atoms)
    atoms.positions += 1.0
    atoms.arrays["REF_forces"] += 1.0
    assert structure.positions[0].tolist() == [0, 0, 0]
    assert not structure.forces.any()


def test_a_molecule_has_no_cell():
    atoms = molecule()
    atoms.cell = np.eye(3) * 50
    assert not read(atoms).cell.any()


STRESS = np.array([[1.0, 6, 5], [6, 2, 4], [5, 4, 3]])  # xx yy zz yz xz xy = 1 2 3 4 5 6


@pytest.mark.parametrize("value", [STRESS, STRESS.reshape(9), np.arange(1.0, 7)])
def test_stress_shapes(value):
    atoms = crystal()
    atoms.info["REF_stress"] = value
    np.testing.assert_array_equal(read(atoms).stress, STRESS)
    np.testing.assert_array_equal(voigt_6_to_full_3x3_stress(np.arange(1.0, 7)), STRESS)


@pytest.mark.parametrize("value", [STRESS, STRESS.reshape(9), np.arange(1.0, 7)])
def test_virials_are_minus_volume_times_stress(value):
    atoms = crystal(a=2.0)
    del atoms.info["REF_stress"]
    atoms.info["REF_virials"] = value
    np.testing.assert_allclose(read(atoms).stress, -STRESS / 8.0, rtol=1e-14)


def test_virials_of_a_left_handed_cell():
    atoms = crystal(a=2.0)
    atoms.set_cell(atoms.cell[[1, 0, 2]])
    del atoms.info["REF_stress"]
    atoms.info["REF_virials"] = STRESS
    np.testing.assert_allclose(read(atoms).stress, -STRESS / 8.0, rtol=1e-14)


def test_stress_comes_before_virials():
    atoms = crystal()
    atoms.info["REF_virials"] = STRESS
    np.testing.assert_array_equal(read(atoms).stress, np.diag([0.1, 0.2, 0.3]))


def test_rounding_makes_a_stress_symmetric():
    atoms = crystal()
    atoms.info["REF_stress"] = STRESS + np.diag([1e-4, 1e-4], 1)
    stress = read(atoms).stress
    np.testing.assert_array_equal(stress, stress.T)
    np.testing.assert_allclose(stress, STRESS, atol=1e-4)


@pytest.mark.parametrize("pbc", [p for p in product([True, False], repeat=3) if any(p)])
@pytest.mark.parametrize("key", ["REF_stress", "REF_virials"])
def test_stress_along_periodic_directions(pbc, key):
    atoms = crystal()
    atoms.pbc = pbc
    del atoms.info["REF_stress"]
    atoms.info[key] = STRESS
    stress = read(atoms).stress
    expected = STRESS if key == "REF_stress" else -STRESS / atoms.get_volume()
    for i, j in product(range(3), range(3)):
        assert stress[i, j] == pytest.approx(expected[i, j] if pbc[i] and pbc[j] else 0.0)


def tilted() -> Atoms:
    atoms = crystal()
    atoms.rotate(30, "x", rotate_cell=True)
    return atoms


def flat() -> Atoms:
    atoms = crystal()
    atoms.cell[2] = 0.0
    return atoms


@pytest.mark.parametrize("make", [tilted, flat])
def test_a_stress_that_says_nothing_is_not_used(caplog, make):
    atoms, notes = make(), Notes()
    atoms.pbc = [True, True, False]
    for _ in range(2):
        assert read(atoms, notes).stress is None
    notes.log()
    assert "(first of 2 structures)" in caplog.text
    assert caplog.text.count("'REF_stress' is not used where a structure") == 1


def test_fallback_to_what_ase_parsed_is_logged_once(caplog):
    notes = Notes()
    atoms = crystal()
    atoms.info.clear()
    del atoms.arrays["REF_forces"]
    forces = np.ones((2, 3))
    atoms.calc = SinglePointCalculator(atoms, energy=-3.0, forces=forces, stress=np.arange(1.0, 7))
    with caplog.at_level(logging.WARNING, logger="mace_train"):
        structure = read(atoms, notes)
        read(atoms, notes)
        notes.log()
    assert structure.energy == -3.0
    np.testing.assert_array_equal(structure.forces, forces)
    np.testing.assert_array_equal(structure.stress, STRESS)
    for name in ("energy", "forces", "stress"):
        assert caplog.text.count(f"taking the {name} that ASE parsed") == 1


def test_a_key_that_ase_moved_to_its_results_is_no_fallback(caplog):
    atoms = crystal()
    atoms.calc = SinglePointCalculator(atoms, energy=-3.0, free_energy=-4.0)
    keys = LabelKeys("free_energy", "REF_forces", "REF_stress", "REF_virials")
    assert structure_from_atoms(atoms, keys, "a").energy == -4.0
    assert not caplog.records


def test_missing_forces_and_stress_are_legal():
    atoms = crystal()
    del atoms.arrays["REF_forces"], atoms.info["REF_stress"]
    structure = read(atoms)
    assert structure.forces is None
    assert structure.stress is None


def test_energy_may_be_optional():
    bare = Atoms("OH", [[0, 0, 0], [0, 0, 1]])
    structure = structure_from_atoms(bare, KEYS, "a", require_energy=False)
    assert (structure.energy, structure.forces, structure.stress) == (None, None, None)
    assert structure_from_atoms(crystal(), KEYS, "a", require_energy=False).energy == -8.0
    with pytest.raises(InputError, match="no energy under 'REF_energy'"):
        read(bare)
    with pytest.raises(InputError, match="'REF_energy' is not finite"):
        structure_from_atoms(changed(REF_energy=np.nan), KEYS, "a", require_energy=False)


def test_isolated_atoms():
    assert is_isolated(read(isolated("H", -13.0, "Default")))
    boxed = isolated("H", -13.0)
    boxed.set_cell(np.eye(3) * 20)
    boxed.pbc = True
    for name, expected in (("IsolatedAtom", True), ("isolated_atom", True), ("x", False)):
        boxed.info["config_type"] = name
        assert is_isolated(read(boxed)) is expected
    assert not is_isolated(read(molecule(config_type="IsolatedAtom")))
    np.testing.assert_array_equal(read(isolated("H", -13.0)).forces, np.zeros((1, 3)))


def changed(**info) -> Atoms:
    atoms = crystal()
    atoms.info.update(info)
    return atoms


def with_array(name: str, value) -> Atoms:
    atoms = crystal()
    atoms.arrays[name] = np.asarray(value)
    return atoms


def far(position: float) -> Atoms:
    atoms = crystal()
    atoms.positions[1, 2] = position
    return atoms


def with_cell(cell, pbc=True) -> Atoms:
    atoms = crystal()
    atoms.set_cell(cell)
    atoms.pbc = pbc
    return atoms


@pytest.mark.parametrize(
    ("atoms", "message"),
    [
        (Atoms(info={"REF_energy": 1.0}), "no atoms"),
        (isolated("X", 0.0), "atomic number 0"),
        (far(np.nan), r"position of atom 1 is not finite \(nan at index \[1, 2\]"),
        (changed(REF_energy=np.nan), "'REF_energy' is not finite"),
        (changed(REF_energy=np.inf), "'REF_energy' is not finite"),
        (changed(REF_energy=[1.0, 2.0]), r"shape \(2,\); one number"),
        (changed(REF_energy="much"), "'much', not a number"),
        (changed(REF_energy=True), "True, not a number"),
        (changed(REF_energy=None), "no energy under 'REF_energy'.*found .*REF_stress"),
        (with_array("REF_forces", [[0, 0, 0], [0, np.inf, 0]]), r"not finite \(inf at index"),
        (with_array("REF_forces", np.zeros((1, 3))), r"shape \(1, 3\) for 2 atoms"),
        (with_array("REF_forces", np.zeros(2)), r"shape \(2,\) for 2 atoms"),
        (changed(REF_stress=np.full(6, np.nan)), "'REF_stress' is not finite"),
        (changed(REF_stress=np.zeros(5)), r"shape \(5,\).*3x3, 9 or"),
        (changed(REF_stress=np.arange(9.0)), "not symmetric"),
        (changed(config_weight=-1.0), "'config_weight' is -1, it must be at least 0 and at"),
        (changed(config_forces_weight=np.nan), "'config_forces_weight' is not finite"),
        (changed(config_stress_weight="no"), "'no', not a number"),
        (with_cell(np.diag([3.0, 3, 0])), "does not span"),
        (with_cell(np.ones((3, 3))), "does not span"),
        (with_cell([[1, 0, 0], [2, 0, 0], [0, 0, 1]], [1, 1, 0]), "does not span"),
        (with_cell(np.full((3, 3), np.nan)), r"the cell is not finite \(nan at index \[0, 0\]"),
        (with_cell(np.diag([3.0, 3, 1e7])), r"the cell is 1e\+07 at index \[2, 2\].* 0.1 mm"),
        (with_cell(np.diag([3.0, 3, 1e-150])), "does not span"),
        (far(1e200), r"position of atom 1 is 1e\+200 at index \[1, 2\].* at most 1e\+06"),
        (changed(REF_energy=1e300), r"'REF_energy' is 1e\+300, .* 2e\+08 \(1e\+08 per atom, eV"),
        (with_array("REF_forces", [[0, 0, 0], [0, 1e200, 0]]), r"'REF_forces' is 1e\+200 at index"),
        (changed(REF_stress=np.full(6, -1e200)), r"'REF_stress' is -1e\+200 at .*eV/Å\^3"),
        (changed(REF_stress=None, REF_virials=np.full(6, 1e200)), r"'REF_virials' is 1e\+200 at"),
        (changed(config_weight=1e300), r"'config_weight' is 1e\+300, it must be"),
        (changed(config_energy_weight=np.inf), "'config_energy_weight' is not finite"),
    ],
)
def test_refusals_name_the_structure(atoms, message):
    with pytest.raises(InputError, match=message) as error:
        read(atoms)
    assert str(error.value).startswith("a.xyz, structure 3: ")


def test_a_cell_of_two_vectors_spans_a_slab():
    assert read(with_cell([[3, 0, 0], [1, 3, 0], [0, 0, 0]], [1, 1, 0])).pbc.tolist() == [1, 1, 0]


def slab(cell=None, stress=None) -> Atoms:
    atoms = crystal()
    atoms.pbc = [True, True, False]
    atoms.set_cell(np.diag([4.0, 4.0, 20.0]) if cell is None else cell)
    atoms.info["REF_stress"] = np.eye(3) if stress is None else stress
    return atoms


def test_a_component_that_is_not_used_may_be_asymmetric():
    stress = np.eye(3)
    stress[0, 2] = 0.5
    assert read(slab(stress=stress)).stress.tolist() == np.diag([1.0, 1.0, 0.0]).tolist()
    stress[0, 1] = 0.5
    with pytest.raises(InputError, match="not symmetric"):
        read(slab(stress=stress))


def test_rounding_of_a_cell_keeps_its_stress():
    assert read(slab([[4, 0, 0.00001], [0, 4, 0], [0, 0, 20]])).stress is not None


@pytest.mark.parametrize(
    ("cell", "pbc", "reason"),
    [
        ([[4, 0, 0.1], [0, 4, 0], [0, 0, 20]], [True, True, False], "vectors that leave x, y"),
        (np.diag([4.0, 4.0, 0.0]), [True, True, False], "has no cell vector along its direction"),
        (np.diag([4.0, 4.0, 4.0]), [False] * 3, "is not periodic"),
    ],
)
def test_the_remark_gives_the_reason(caplog, cell, pbc, reason):
    atoms = slab(cell)
    atoms.pbc = pbc
    assert read(atoms).stress is None
    assert "'REF_stress' is not used where a structure" in caplog.text
    assert reason in caplog.text
