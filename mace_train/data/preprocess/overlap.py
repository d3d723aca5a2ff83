"""Structures that are in train and held out as well: their errors say nothing of unknown ones.

Files of one data set often share frames, and trajectories repeat them. Two structures are the same
if their atoms, cell and periodicity are, positions and cell to 1e-5 Å.
"""

import hashlib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mace_train.data.open_shard import OpenShard
from mace_train.data.parallel.crew import Crew
from mace_train.data.shard_file import read_header
from mace_train.data.shards import ShardSet
from mace_train.data.structure import LOGGER

PRECISION = 1e-5  # Å


@dataclass(frozen=True)
class Overlap:
    """What a split shares with train."""

    split: str
    n_shared: int  # structures of the split that are in train, too
    n_structures: int  # of the split
    example: tuple[str, str]  # where one of them was read, in the split and in train


def overlaps(splits: dict[str, ShardSet], crew: Crew) -> list[Overlap]:
    """What valid and test share with train; 8 bytes per structure on the calling process."""
    held_out = [name for name in splits if name != "train" and len(splits[name])]
    if not held_out:
        return []
    paths = {
        name: [header.path for header in splits[name].headers] for name in ("train", *held_out)
    }
    tasks = [path for of_split in paths.values() for path in of_split]
    keys = iter(crew.map(geometry_keys, tasks, lambda result: None))
    of_split = {
        name: np.concatenate([next(keys) for _ in paths[name]]) for name in ("train", *held_out)
    }
    train = of_split["train"]
    found = []
    for name in held_out:
        shared = np.flatnonzero(np.isin(of_split[name], train))
        if len(shared):
            here = int(shared[0])
            there = int(np.flatnonzero(train == of_split[name][here])[0])
            example = (_source(splits[name], here), _source(splits["train"], there))
            found.append(Overlap(name, len(shared), len(splits[name]), example))
    return found


def warn(found: list[Overlap]) -> None:
    """One line for each split that is not wholly held out."""
    for overlap in found:
        LOGGER.warning(
            "%d of the %d structures of %s are in train, too (%s is %s): errors on them are "
            "those of structures that were trained on; take them out of one of the two",
            overlap.n_shared,
            overlap.n_structures,
            overlap.split,
            *overlap.example,
        )


def geometry_keys(path: Path) -> NDArray[np.uint64]:
    """[n] a number for the geometry of each structure of a shard."""
    arrays = OpenShard(read_header(path)).all_arrays()
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
