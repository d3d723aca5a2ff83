"""Random samples, and shards of them."""

import numpy as np

from mace_train.data.shards.arrays import Sample
from mace_train.data.shards.shard_set import ShardSet, sample_of, shard_path, write_shard
from tests.data.factories import random_structure

R_MAX = 2.5


def random_samples(n: int, seed: int = 0) -> list[Sample]:
    """Random structures with their neighbours within R_MAX."""
    rng = np.random.default_rng(seed)
    return [sample_of(random_structure(rng), R_MAX) for _ in range(n)]


def write_shards(folder, samples, per_shard=5, r_max=R_MAX) -> ShardSet:
    """The samples in shards of ``per_shard`` below ``folder``, opened."""
    folder.mkdir(exist_ok=True)
    for index, first in enumerate(range(0, len(samples), per_shard)):
        write_shard(shard_path(folder, index), samples[first : first + per_shard], r_max)
    return ShardSet(folder)
