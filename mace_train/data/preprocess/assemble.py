"""From part files to the shards of a split, and the sums that statistics need of each.

Which structures are in which shard depends on the selection only, so any process may write any
shard. Shards that an earlier run finished are kept.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from mace_train.data.e0s import triangle_of
from mace_train.data.preprocess.selection import SelectedRows, Selection
from mace_train.data.shards.arrays import Arrays, Storage, join
from mace_train.data.shards.hdf5 import read_header, write_arrays
from mace_train.data.shards.reader import ShardReader
from mace_train.data.shards.shard_set import shard_path
from mace_train.data.statistics import SumsByHead, compositions, sums_of_shard
from mace_train.errors import InputError


@dataclass(frozen=True)
class ShardTask:
    """One shard to write."""

    path: Path
    sources: list[SelectedRows]
    r_max: float
    storage: Storage


class ShardTasks(Sequence[ShardTask]):
    """The shards of a split; each task is made when a worker asks for it."""

    def __init__(
        self,
        folder: Path,
        selection: Selection,
        numbers: NDArray[np.int64],
        per_shard: int,
        r_max: float,
        storage: Storage,
    ) -> None:
        self._folder, self._selection, self._numbers = folder, selection, numbers
        self._per_shard, self._r_max, self._storage = per_shard, r_max, storage

    def __len__(self) -> int:
        return -(-len(self._numbers) // self._per_shard)

    @overload
    def __getitem__(self, index: int) -> ShardTask: ...
    @overload
    def __getitem__(self, index: slice) -> list[ShardTask]: ...
    def __getitem__(self, index: int | slice) -> ShardTask | list[ShardTask]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        numbers = self._numbers[index * self._per_shard : (index + 1) * self._per_shard]
        return ShardTask(
            shard_path(self._folder, index),
            self._selection.sources(numbers),
            self._r_max,
            self._storage,
        )


def write_task(task: ShardTask) -> int:
    """Write a shard, unless it exists; returns its number of structures."""
    n_structures = sum(len(source.rows) for source in task.sources)
    if _is_written(task.path, n_structures):
        return n_structures
    parts = list(_parts(task.sources))
    write_arrays(task.path, join(parts), task.r_max, task.storage)
    return n_structures


def _is_written(path: Path, n_structures: int) -> bool:
    try:
        return path.exists() and ShardReader(read_header(path)).header.n_structures == n_structures
    except InputError:
        return False


def _parts(sources: Sequence[SelectedRows]) -> Iterator[tuple[Arrays, NDArray[np.int64]]]:
    for source in sources:
        part = ShardReader(read_header(source.path))
        rows = source.rows.astype(np.int64)
        if len(rows):
            part.check(int(rows[0]), int(rows[-1]) + 1)
        yield part.arrays, rows


@dataclass(frozen=True)
class MeasureTask:
    """One shard to take sums of."""

    path: Path
    E0s: dict[str, dict[int, float]]


def measure_task(task: MeasureTask) -> SumsByHead:
    """What the statistics need of one shard."""
    return sums_of_shard(ShardReader(read_header(task.path)).all_arrays(), task.E0s)


@dataclass(frozen=True)
class FitTask:
    """One shard whose energies take part in a fit of E0s."""

    path: Path
    head: str
    elements: list[int]


def fit_task(task: FitTask) -> tuple[int, NDArray[np.float64]]:
    """(number of structures, triangle [k, n_elements + 1]) of one shard, see e0s.triangle_of."""
    arrays = ShardReader(read_header(task.path)).all_arrays()
    counts, energies = compositions(arrays, task.elements, task.head)
    return len(energies), triangle_of(counts, energies)
