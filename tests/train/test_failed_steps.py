"""What the message about a step that cannot be made says about its structures."""

import numpy as np

from mace_train.data.shards.shard_set import sample_of
from mace_train.train.failed_steps import _unusable_label
from tests.data.factories import random_structure
from tests.data.shards.samples import R_MAX, write_shards


def test_a_label_that_no_loss_can_hold_is_named(tmp_path):
    """In shards of earlier versions, or of other tools; files are checked when they are read."""
    rng = np.random.default_rng(0)
    two = {"numbers": np.array([1, 8]), "positions": np.array([[0.0, 0, 0], [0, 0, 1.0]])}
    forces = np.array([[0.0, 0, 0], [0, 1e200, 0]])
    structures = [
        random_structure(rng),
        random_structure(rng, **two, forces=forces, source="a.xyz, structure 3"),
    ]
    shards = write_shards(tmp_path, [sample_of(s, R_MAX) for s in structures])
    assert _unusable_label(shards, [0]) == ""
    found = _unusable_label(shards, [0, 1])
    assert found.startswith("; a.xyz, structure 3 (id 1): a force [atom, component] is 1e+200 at ")
    assert "eV/Å" in found
