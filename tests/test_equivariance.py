"""The shared comparison finds what is not equivariant."""

import numpy as np
import pytest
import torch
from ase import Atoms

from tests.equivariance import assert_equivariant, assert_model_equivariant, motions

MOLECULE = Atoms("HCNO", np.random.RandomState(1).standard_normal((4, 3)))


def pair_sums(atoms):
    """An energy of all distances, and vectors that sum over neighbours."""
    vectors = atoms.positions[None] - atoms.positions[:, None]
    squares = (vectors**2).sum(-1)
    forces = (vectors * np.exp(-squares)[..., None] * atoms.numbers[None, :, None]).sum(1)
    return {"energy": np.exp(-squares).sum(), "forces": forces}


def test_what_is_equivariant_passes():
    assert_model_equivariant(pair_sums, MOLECULE)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("translation", lambda atoms, forces: forces + 0.01 * atoms.positions),
        ("permutation", lambda atoms, forces: forces * np.arange(len(atoms))[:, None]),
        ("rotation", lambda atoms, forces: forces * [1.0, 1.0, 1.01]),
        ("reflection", lambda atoms, forces: forces + np.cross(forces, forces[:1] + forces[1:2])),
    ],
)
def test_one_symmetry_that_is_broken_is_found(name, change):
    def broken(atoms):
        found = pair_sums(atoms)
        return {**found, "forces": change(atoms, found["forces"])}

    with pytest.raises(AssertionError, match="forces: Tensor-likes are not close"):
        assert_model_equivariant(broken, MOLECULE)


def test_outputs_that_nothing_moves_are_refused():
    with pytest.raises(AssertionError, match="no output depends on the motion"):
        assert_model_equivariant(lambda atoms: {"energy": 1.0}, MOLECULE)


def test_features_of_other_degrees_are_found():
    def assert_moves_as(degrees):
        assert_equivariant(
            lambda x: {"features": 2.0 * x},
            [torch.arange(18.0, dtype=torch.float64).view(1, 9, 2)],
            lambda motion, x: [motion.features(x, (0, 1, 2))],
            lambda motion, out: {"features": motion.features(out["features"], degrees)},
        )

    assert_moves_as((0, 1, 2))
    with pytest.raises(AssertionError, match="features: "):
        assert_moves_as((0, 2, 1))


def test_motions_are_orthogonal_and_some_reflect():
    determinants = []
    for motion in motions(5, n=4):
        np.testing.assert_allclose(motion.rotate @ motion.rotate.T, np.eye(3), atol=1e-14)
        assert sorted(motion.order) == list(range(5))
        determinants.append(round(float(np.linalg.det(motion.rotate))))
    assert determinants == [1, -1, 1, -1]
