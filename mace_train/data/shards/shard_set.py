"""ShardSet: random access to the structures in a folder of shards, by memory map.

Opening reads the headers and the offsets (24 bytes per structure); a structure costs one slice per
array and a check of its CRC-32, and no call into HDF5 unless the shard is compressed. A ShardSet
pickles as its headers only and works after fork, so loaders may hand it to their workers.
"""

import hashlib
import os
import re
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mace_train.data.input_values import InputOfStructureError, encoded
from mace_train.data.shards.arrays import Arrays, Sample, ShardArrays, Storage, input_columns
from mace_train.data.shards.batch import Batch, ShardRows
from mace_train.data.shards.hdf5 import (
    ShardHeader,
    checksum,
    damaged,
    read_header,
    sample_of,
    write_shard,
)
from mace_train.data.shards.reader import ShardReader
from mace_train.errors import InputError
from mace_train.settings.inputs import InputSpec

__all__ = ["Sample", "ShardSet", "sample_of", "shard_path", "write_shard"]

MAX_OPEN = 512  # shards mapped at a time: a map holds a file descriptor
_SHARD_NAME = re.compile(r"shard-(\d+)\.h5")


def shard_path(folder: Path, index: int) -> Path:
    """File of shard number ``index`` (from 0)."""
    return folder / f"shard-{index:05d}.h5"


class ShardSet:
    """All structures of a folder of shards, in the order of the shards.

    >>> shards = ShardSet(Path("prepared/train"))
    >>> sample = shards.sample(0)
    >>> sizes = [len(sample.structure.numbers), len(sample.edges.senders)]
    >>> sizes == [shards.n_atoms[0], shards.n_edges[0]]
    True

    Attributes:
        folder: Where the shards are.
        r_max: Cutoff radius of the neighbour lists, Å.
        n_atoms: [n] int32 atoms of every structure.
        n_edges: [n] int32 directed edges of every structure.
        dataset_hash: Hex digest over the checksums of the shards; equal data, equal hash.
    """

    def __init__(self, folder: Path, *, files: Sequence[Path] | None = None) -> None:
        """Open ``folder``, or just the ``files`` in it.

        Raises:
            InputError: no folder or shards, a gap in their numbers, a shard that is damaged, of
                another format version or of another r_max.
        """
        self.folder = Path(folder)
        self.headers = [read_header(path) for path in files or _shard_files(self.folder)]
        self.r_max = self.headers[0].r_max
        for header in self.headers:
            _check_same_r_max(header, self.headers[0])
        self._open: OrderedDict[int, ShardReader] = OrderedDict()
        starts = np.cumsum([0] + [header.n_structures for header in self.headers])
        self._starts: NDArray[np.int64] = starts
        self.n_atoms = self._counts("atom_offsets", "numbers")
        self.n_edges = self._counts("edge_offsets", "senders")
        self._counts("source_offsets", "sources")
        digest = hashlib.sha256("".join(h.checksum for h in self.headers).encode())
        self.dataset_hash = digest.hexdigest()

    def __len__(self) -> int:
        """Number of structures."""
        return int(self._starts[-1])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def sample(self, index: int) -> Sample:
        """Structure ``index`` with its edges, copied out of the file.

        Raises:
            IndexError: not 0 <= index < len(self).
            InputError: the structure is not what was written.
        """
        shard, row = self._locate(np.array([index]))
        opened = self._shard(int(shard[0]))
        opened.shard_rows(row, row)  # compares it with its checksum
        return self._sample(opened, int(row[0]))

    def batch(self, ids: NDArray[np.int64]) -> Batch:
        """The structures ``ids`` [n], in that order, as one set of arrays.

        Raises:
            IndexError: not 0 <= id < len(self).
            InputError: a structure is not what was written.
        """
        shard_of, rows = self._locate(np.asarray(ids, dtype=np.int64))
        parts: list[ShardRows] = []
        for shard in np.unique(shard_of).tolist():
            batch_rows = np.flatnonzero(shard_of == shard)
            parts += self._shard_rows(self._shard(shard), rows[batch_rows], batch_rows)
        return Batch.of_shard_rows(parts) if parts else Batch.of_samples([])

    def arrays(self, shard: int) -> Arrays:
        """All arrays of one shard (see arrays.LAYOUT), with the fields of ``structures``."""
        return self._shard(shard).all_arrays()

    def rows(self, shard: int) -> Arrays:
        """The per-structure arrays of one shard; those of atoms and edges may not be in memory."""
        return self._shard(shard).arrays

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs beside the geometry that are stored."""
        columns = input_columns(self._shard(0).arrays)
        return () if columns is None else (*columns.names[0], *columns.names[1])

    def check_inputs(self, specs: Sequence[InputSpec]) -> None:
        """InputError, which names a structure, for an input that a model does not take."""
        n = 0
        for k in range(self.n_shards if specs else 0):
            arrays = self._shard(k).arrays
            n_atoms = np.diff(arrays["atom_offsets"])
            try:
                encoded(specs, input_columns(arrays), n_atoms)
            except InputOfStructureError as error:
                source = self.sample(n + error.structure).structure.source
                raise InputError(f"{self.folder}: {source}: {error}") from None
            n += len(n_atoms)

    def _locate(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
        """The shard [n] and the row in it [n] of every structure."""
        outside = (ids < 0) | (ids >= len(self))
        if outside.any():
            raise IndexError(f"structure {ids[outside][0]} of {len(self)} in {self.folder}")
        shard_of = np.searchsorted(self._starts, ids, side="right") - 1
        return shard_of, ids - self._starts[shard_of]

    def _shard_rows(
        self, shard: ShardReader, rows: NDArray[np.int64], batch_rows: NDArray[np.int64]
    ) -> list[ShardRows]:
        """Structures of one shard; without edges in the file, with neighbour lists made now."""
        parts = shard.shard_rows(rows, batch_rows)
        if shard.header.stores_edges:
            return parts
        computed = ShardArrays(Storage(float32=shard.float32))
        for row in rows.tolist():
            computed.add(self._sample(shard, row))
        return [ShardRows(computed.arrays(), np.arange(len(rows)), batch_rows)]

    def _sample(self, shard: ShardReader, row: int) -> Sample:
        structure = shard.structure(row)
        if shard.header.stores_edges:
            return Sample(structure, shard.edges(row))
        return sample_of(structure, self.r_max)

    def _shard(self, shard: int) -> ShardReader:
        opened = self._open.get(shard)
        if opened is None or (opened.process != os.getpid() and opened.header.is_compressed):
            opened = self._open[shard] = ShardReader(self.headers[shard])
            if len(self._open) > MAX_OPEN:
                self._open.popitem(last=False)
        else:
            self._open.move_to_end(shard)
        return opened

    @property
    def n_shards(self) -> int:
        """Number of files."""
        return len(self.headers)

    @cached_property
    def elements(self) -> tuple[int, ...]:
        """Sorted atomic numbers that occur."""
        return tuple(np.unique(self._joined("elements")).tolist())

    @cached_property
    def config_types(self) -> list[str]:
        """[n] config_type of every structure."""
        types: list[str] = []
        for shard in range(self.n_shards):
            types.extend(self._shard(shard).config_types())
        return types

    @cached_property
    def head_of(self) -> list[str]:
        """[n] head of every structure."""
        heads: list[str] = []
        for shard in range(self.n_shards):
            heads.extend(self._shard(shard).heads())
        return heads

    @cached_property
    def heads(self) -> list[str]:
        """Sorted names of the heads that occur."""
        names = {name for k in range(self.n_shards) for name in self._shard(k).head_names}
        return sorted(names)

    @cached_property
    def weights(self) -> NDArray[np.float64]:
        """[n, 4] weights of every structure, its energy, its forces and its stress."""
        return self._joined("weights")

    @cached_property
    def has_energy(self) -> NDArray[np.bool_]:
        """[n] whether a structure has an energy."""
        return self._joined("has_energy").astype(bool)

    @cached_property
    def has_forces(self) -> NDArray[np.bool_]:
        """[n] whether a structure has forces."""
        return self._joined("has_forces").astype(bool)

    @cached_property
    def has_stress(self) -> NDArray[np.bool_]:
        """[n] whether a structure has a stress."""
        return self._joined("has_stress").astype(bool)

    def verify(self) -> None:
        """Read everything and compare with the checksums.

        Raises:
            InputError: a shard whose contents changed since it was written.
        """
        for shard in range(self.n_shards):
            self.verify_shard(shard)

    def verify_shard(self, shard: int) -> None:
        """Read all of one shard and compare with its checksum; see ``verify``."""
        header = self.headers[shard]
        if checksum(self._shard(shard).stored(), header.r_max) != header.checksum:
            raise damaged(header.path, "its contents do not match its checksum")

    def _joined(self, name: str) -> NDArray[Any]:
        return np.concatenate([self._shard(k).arrays[name] for k in range(self.n_shards)])

    def _counts(self, offsets_name: str, counted: str) -> NDArray[np.int32]:
        """[n] lengths between offsets, which are checked against the array they cut."""
        parts = []
        for shard, header in enumerate(self.headers):
            offsets = self._shard(shard).arrays[offsets_name]
            counts = np.diff(offsets)
            length = header.layout[counted][2][0] if counted in header.layout else offsets[-1]
            if offsets[0] != 0 or offsets[-1] != length or (counts < 0).any():
                raise damaged(header.path, f"{offsets_name} do not fit {counted}")
            parts.append(counts.astype(np.int32))
        return np.concatenate(parts)


def _shard_files(folder: Path) -> list[Path]:
    """The shards of ``folder`` in order, without a gap."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; run `mace-train preprocess` first")
    numbers = sorted(
        int(match[1]) for path in folder.iterdir() if (match := _SHARD_NAME.fullmatch(path.name))
    )
    if not numbers:
        raise InputError(f"{folder} holds no shards; run `mace-train preprocess` first")
    for expected, number in enumerate(numbers):
        if number != expected:
            raise InputError(
                f"{shard_path(folder, expected)} is missing, though {len(numbers)} other shards "
                "are there; copy it again or run preprocess again"
            )
    return [shard_path(folder, number) for number in numbers]


def _check_same_r_max(header: ShardHeader, first: ShardHeader) -> None:
    if header.r_max != first.r_max:
        raise InputError(
            f"{header.path} was made with r_max={header.r_max} Å but {first.path} with "
            f"r_max={first.r_max} Å; run preprocess again for all of them"
        )
