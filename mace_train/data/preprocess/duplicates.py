"""Structures in train that are in valid or test as well: their errors say nothing about new data.

Files of one data set often share frames, and trajectories repeat them. Two structures are the same
if their atoms, cell and periodicity are, positions and cell to 1e-5 Å.
"""

import hashlib
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mace_train.data.shards.hdf5 import read_header
from mace_train.data.shards.reader import ShardReader
from mace_train.data.shards.shard_set import ShardSet
from mace_train.data.structure import LOGGER
from mace_train.distributed.tasks.task_pool import TaskPool

PRECISION = 1e-5  # Å


def warn_of_duplicates(splits: dict[str, ShardSet], pool: TaskPool) -> None:
    """Log a warning for each split that shares structures with train; 8 bytes per structure."""
    chosen = {name: shards for name, shards in splits.items() if len(shards)}
    if len(chosen) < 2:
        return
    paths = [header.path for shards in chosen.values() for header in shards.headers]
    found = iter(pool.map(geometry_keys, paths, lambda result: None))
    keys = {
        name: np.concatenate([next(found) for _ in shards.headers])
        for name, shards in chosen.items()
    }
    train = keys.pop("train")
    for name, held_out in keys.items():
        shared = np.flatnonzero(np.isin(held_out, train))
        if len(shared):
            original = np.flatnonzero(train == held_out[shared[0]])
            LOGGER.warning(
                "%d of the %d structures of %s are in train, too (%s is %s): errors on them are "
                "those of structures that were trained on; take them out of one of the two",
                len(shared),
                len(held_out),
                name,
                _source(splits[name], int(shared[0])),
                _source(splits["train"], int(original[0])),
            )


def geometry_keys(path: Path) -> NDArray[np.uint64]:
    """[n] a number for the geometry of each structure of a shard."""
    arrays = ShardReader(read_header(path)).all_arrays()
    rows, bounds = arrays["structures"], arrays["atom_offsets"].tolist()
    numbers, positions = arrays["numbers"].astype(np.uint8), _rounded(arrays["positions"])
    boxes = np.column_stack((_rounded(rows["cell"]).reshape(-1, 9), rows["pbc"].reshape(-1, 3)))
    keys = np.empty(len(rows), dtype=np.uint64)
    for i, (begin, end) in enumerate(pairwise(bounds)):
        digest = hashlib.blake2b(boxes[i].tobytes(), digest_size=8)
        digest.update(numbers[begin:end].tobytes())
        digest.update(positions[begin:end].tobytes())
        keys[i] = int.from_bytes(digest.digest(), "little")
    return keys


def _rounded(values: NDArray[np.floating]) -> NDArray[np.int64]:
    return np.rint(values.astype(np.float64) / PRECISION).astype(np.int64)


def _source(shards: ShardSet, index: int) -> str:
    return shards.sample(index).structure.source
