"""Hessians against finite differences of forces."""

import numpy as np
import pytest
from ase.vibrations import VibrationsData

from tests.calculators.systems import STRUCTURES, calculator


@pytest.mark.parametrize("kernels", ["auto", "reference"])
@pytest.mark.parametrize("name", ["molecule", "crystal", "slab"])
def test_hessian(name, kernels):
    atoms = STRUCTURES[name]()
    atoms.calc = calculator(kernels=kernels)
    found = atoms.calc.get_hessian(atoms)
    numerical = []
    for i in range(len(atoms)):
        for axis in range(3):
            moved = [atoms.copy(), atoms.copy()]
            for copy, sign in zip(moved, (1, -1), strict=True):
                copy.positions[i, axis] += sign * 1e-4
                copy.calc = atoms.calc
            plus, minus = (copy.get_forces() for copy in moved)
            numerical.append((minus - plus).ravel() / 2e-4)
    assert np.abs(found).max() > 0.05
    np.testing.assert_allclose(found, np.array(numerical), atol=1e-6)


def test_hessian_in_parts_is_the_same(monkeypatch):
    atoms = STRUCTURES["molecule"]()
    calc = calculator()
    whole = calc.get_hessian(atoms)
    monkeypatch.setattr("mace_train.calculators.hessian.EDGES_AT_A_TIME", 200)
    np.testing.assert_allclose(calc.get_hessian(atoms), whole, atol=1e-12)


def test_hessian_gives_vibrations():
    """Three translations without a restoring force, in a molecule and in a crystal."""
    atoms = STRUCTURES["crystal"]()
    hessian = calculator().get_hessian(atoms)
    energies = VibrationsData.from_2d(atoms, hessian).get_energies()
    assert np.sort(np.abs(energies))[:3].max() < 1e-5
    sums = hessian.reshape(len(atoms), 3, len(atoms), 3).sum(2)
    np.testing.assert_allclose(sums, 0, atol=1e-10)
