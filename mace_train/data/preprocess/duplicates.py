"""Copies of a structure: they are told apart by a key, and those on two sides of a split are named.

Files of one data set often share frames, and trajectories repeat them. Two structures are copies
if their atoms, cell and periodicity are the same, in the same order, with positions and cell
rounded to 1e-5 Å; labels do not count, so one geometry at two levels of theory is one geometry.
Structures that are moved, rotated, wrapped into the cell or numbered otherwise are not recognised.
"""

import hashlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from mace_train.data.shards.shard_set import ShardSet
from mace_train.data.structure import LOGGER, Structure

PRECISION = 1e-5  # Å
KEY_BYTES = 8


def geometry_key(structure: Structure) -> bytes:
    """[KEY_BYTES] the same for copies; two of 1e8 others agree with a probability of 3e-4."""
    box = (*_rounded(structure.cell).flat, *structure.pbc)
    digest = hashlib.blake2b(np.array(box, dtype=np.int64).tobytes(), digest_size=KEY_BYTES)
    digest.update(structure.numbers.astype(np.uint8).tobytes())
    digest.update(_rounded(structure.positions).tobytes())
    return digest.digest()


def _rounded(values: NDArray[np.floating]) -> NDArray[np.int64]:
    return np.rint(values.astype(np.float64) / PRECISION).astype(np.int64)


def warn_of_duplicates(
    splits: Mapping[str, ShardSet], keys: Mapping[str, NDArray[np.uint64]]
) -> None:
    """Log a warning for each split that shares structures with train; ``keys`` [n] of each."""
    train = keys["train"]
    for name, held_out in keys.items():
        if name == "train":
            continue
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


def _source(shards: ShardSet, index: int) -> str:
    return shards.sample(index).structure.source
