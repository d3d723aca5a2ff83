"""Batches against the calculator, one structure at a time."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import read, write

from mace_train.calculators import MACETrainCalculator, evaluate_structures
from mace_train.errors import InputError
from mace_train.settings import BatchingSettings
from tests.model.systems import mixed, model_of, rattled

ELEMENTS = (1, 8, 13)


def structures():
    return [
        rattled(bulk("Al", cubic=True), 1),
        *(mixed(ELEMENTS, n, seed=n) for n in (9, 2, 5, 7)),
        Atoms("O"),
        rattled(bulk("Al"), 2),
        molecule("H2O"),
    ]


@pytest.mark.parametrize("batching", [None, BatchingSettings(max_atoms=10), BatchingSettings()])
def test_in_the_order_they_are_given(batching):
    model, given = model_of(ELEMENTS), structures()
    before = [atoms.copy() for atoms in given]
    evaluated = evaluate_structures(given, model, batching=batching)
    calc = MACETrainCalculator(model)
    assert len(evaluated) == len(given)
    for atoms, found, kept in zip(given, evaluated, before, strict=True):
        assert atoms == kept
        assert atoms.calc is None
        assert found == atoms
        assert found.get_potential_energy() == pytest.approx(calc.get_potential_energy(atoms))
        np.testing.assert_allclose(found.get_forces(), calc.get_forces(atoms), atol=1e-12)
        energies = calc.get_potential_energies(atoms)
        np.testing.assert_allclose(found.get_potential_energies(), energies, rtol=1e-12)
        if atoms.pbc.all():
            np.testing.assert_allclose(found.get_stress(), calc.get_stress(atoms), atol=1e-12)


def test_results_go_into_files(tmp_path):
    evaluated = evaluate_structures(structures(), model_of(ELEMENTS))
    write(tmp_path / "all.extxyz", evaluated)
    for atoms, found in zip(evaluated, read(tmp_path / "all.extxyz", ":"), strict=True):
        assert found.get_potential_energy() == pytest.approx(atoms.get_potential_energy())
        np.testing.assert_allclose(found.get_forces(), atoms.get_forces(), atol=1e-7)


def test_messages_name_the_structure():
    with pytest.raises(InputError, match=r"structure 1: the model does not know C \(6\)"):
        evaluate_structures([molecule("H2O"), molecule("CH4")], model_of(ELEMENTS))
    assert evaluate_structures([], model_of(ELEMENTS)) == []


def test_one_model_is_meant(exported):
    both = str(exported.path.parent / "*.safetensors")
    assert evaluate_structures([molecule("H2O")], both)[0].get_potential_energy() < 0
    (exported.path.parent / "copy.safetensors").symlink_to("small.safetensors")
    try:
        with pytest.raises(InputError, match="is 2 models; name one of them"):
            evaluate_structures([molecule("H2O")], both)
    finally:
        (exported.path.parent / "copy.safetensors").unlink()
