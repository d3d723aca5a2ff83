"""Batches of shards that store their arrays in different types."""

import numpy as np

from mace_train.data.shards.arrays import Storage
from mace_train.data.shards.batch import Batch
from mace_train.data.shards.shard_set import ShardSet, sample_of, shard_path, write_shard
from tests.data.factories import random_structure


def test_structures_of_shards_with_other_types(tmp_path):
    """Indices of one byte and of two, cells of single and of double precision, with and without
    edges, in one batch."""
    rng = np.random.default_rng(0)
    small = [sample_of(random_structure(rng), 2.5) for _ in range(6)]
    large = random_structure(
        rng,
        numbers=np.full(300, 8),
        positions=rng.uniform(0, 25, (300, 3)),
        cell=np.eye(3) * 25,
        pbc=np.full(3, True),
        forces=None,
    )
    write_shard(shard_path(tmp_path, 0), small, 2.5, Storage(float32=("cell", "forces")))
    write_shard(shard_path(tmp_path, 1), [*small, sample_of(large, 2.5)], 2.5)
    write_shard(shard_path(tmp_path, 2), small, 2.5, Storage(stores_edges=False))
    shards = ShardSet(tmp_path)
    ids = np.array([18, 12, 0, 5, 7, 1, 13])
    mixed = shards.batch(ids)
    expected = Batch.of_samples([shards.sample(i) for i in ids])
    assert mixed.senders.dtype == np.uint16
    assert mixed.positions.dtype == mixed.rows["cell"].dtype == np.float64
    for name, array in vars(expected).items():
        if name == "rows":
            for field in ("energy", "weights", "cell", "stress", "pbc", "has_forces"):
                np.testing.assert_array_equal(mixed.rows[field], array[field])
        else:
            np.testing.assert_array_equal(getattr(mixed, name), array)
