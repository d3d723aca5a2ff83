"""Shards: arrays of many structures in one HDF5 file, read in any order by memory map.

``arrays`` -> ``hdf5`` writes a file; ``reader`` -> ``gather`` -> ``batch`` reads it; ``shard_set``
is a folder of files.
"""

from mace_train.data.shards.hdf5 import sample_of
from mace_train.data.shards.shard_set import ShardSet

__all__ = ["ShardSet", "sample_of"]
