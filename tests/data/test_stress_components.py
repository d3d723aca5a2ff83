"""Which components of a stress are defined; the calculator's tests compare with energies."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from mace_train.data.loading.loader import collate
from mace_train.data.shards.shard_set import sample_of
from mace_train.data.stress_components import has_stress, projected_stress, stress_mask
from mace_train.data.structure import Structure
from tests.data.factories import crystal

ALL_PBC = [np.array(pbc) for pbc in product([True, False], repeat=3)]


def along_axes(pbc, rng):
    """A cell whose periodic vectors mix with each other and with no other direction."""
    cell = 5 * np.eye(3) + rng.uniform(-1, 1, (3, 3))
    cell[np.outer(pbc, ~pbc)] = 0.0
    return cell


@pytest.mark.parametrize("pbc", ALL_PBC, ids=str)
def test_mask_of_structures_and_of_graphs(pbc):
    cell = along_axes(pbc, np.random.default_rng(0))
    expected = [[bool(pbc[i] and pbc[j]) for j in range(3)] for i in range(3)]
    assert stress_mask(cell, pbc).tolist() == expected
    atoms = crystal()
    atoms.set_cell(cell)
    atoms.pbc = pbc
    sample = sample_of(Structure.unlabelled(atoms), 3.0)
    graph = collate([sample], np.arange(1), atomic_numbers=(29,), dtype=torch.float64)
    assert graph.stress_mask[0].tolist() == expected
    assert has_stress(cell, pbc) == pbc.any()
    cell[~pbc] = 0.0
    assert has_stress(cell, pbc) == pbc.all()
    assert stress_mask(cell, pbc).any() == pbc.all()


@given(pbc=st.sampled_from(ALL_PBC[:-1]), seed=st.integers(0, 10_000))
@settings(deadline=None, max_examples=60)
def test_projection_turns_with_the_cell(pbc, seed):
    """Along axes it is the mask; and a turned structure has a turned stress."""
    rng = np.random.default_rng(seed)
    cell, gradient = along_axes(pbc, rng), rng.normal(size=(3, 3))
    gradient += gradient.T
    stress = projected_stress(gradient, cell, pbc)
    expected = np.where(stress_mask(cell, pbc), gradient, 0.0) / abs(np.linalg.det(cell))
    np.testing.assert_allclose(stress, expected, atol=1e-14)
    turn = Rotation.random(random_state=seed).as_matrix()
    turned = projected_stress(turn @ gradient @ turn.T, cell @ turn.T, pbc)
    np.testing.assert_allclose(turned, turn @ stress @ turn.T, atol=1e-13)
    assert stress_mask(cell @ turn.T, pbc).all() == pbc.all()
