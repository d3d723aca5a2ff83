"""ShardSet: random access to the structures in a folder of shards, by memory map.

Opening reads the headers and the offsets (16 bytes per structure); a structure costs one slice per
array, about 20 µs with a warm page cache, and no call into HDF5. A ShardSet pickles as its headers
only and works after fork, so loaders may hand it to their workers.
"""

import hashlib
import json
import re
from bisect import bisect_right
from collections import OrderedDict
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mace_train.data.neighbors import Edges
from mace_train.data.shard_file import (
    Arrays,
    Sample,
    ShardHeader,
    checksum,
    damaged,
    read_header,
    sample_of,
    write_shard,
)
from mace_train.data.structure import Structure
from mace_train.errors import InputError

__all__ = ["Sample", "ShardSet", "sample_of", "shard_path", "write_shard"]

MAX_OPEN = 128  # shards mapped at a time: a map holds a file descriptor
_SHARD_NAME = re.compile(r"shard-(\d+)\.h5")


def shard_path(folder: Path, index: int) -> Path:
    """File of shard number ``index`` (from 0)."""
    return folder / f"shard-{index:05d}.h5"


class ShardSet:
    """All structures of a folder of shards, in the order of the shards.

    Attributes:
        folder: Where the shards are.
        r_max: Cutoff radius of the neighbour lists, Å.
        n_atoms: [n] int32 atoms of every structure.
        n_edges: [n] int32 directed edges of every structure.
        dataset_hash: Hex digest over the checksums of the shards; equal data, equal hash.
    """

    def __init__(self, folder: Path) -> None:
        """Open ``folder``.

        Raises:
            InputError: no folder or shards, a gap in their numbers, a shard that is damaged, of
                another format version or of another r_max.
        """
        self.folder = Path(folder)
        self.headers = [read_header(path) for path in _shard_files(self.folder)]
        self.r_max = self.headers[0].r_max
        for header in self.headers:
            _check_same_r_max(header, self.headers[0])
        self._open: OrderedDict[int, _Mapped] = OrderedDict()
        starts = np.cumsum([0] + [header.n_structures for header in self.headers])
        self._starts: list[int] = starts.tolist()
        self.n_atoms = self._counts("atom_offsets", "numbers")
        self.n_edges = self._counts("edge_offsets", "senders")
        digest = hashlib.sha256("".join(h.checksum for h in self.headers).encode())
        self.dataset_hash = digest.hexdigest()

    def __len__(self) -> int:
        """Number of structures."""
        return self._starts[-1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def sample(self, index: int) -> Sample:
        """Structure ``index`` with its edges, copied out of the file.

        Raises:
            IndexError: not 0 <= index < len(self).
        """
        if not 0 <= index < len(self):
            raise IndexError(f"structure {index} of {len(self)} in {self.folder}")
        shard = bisect_right(self._starts, index) - 1
        return _sample(self._mapped(shard), index - self._starts[shard])

    def arrays(self, shard: int) -> Arrays:
        """The arrays of one shard (see shard_file.LAYOUT), mapped and read-only."""
        return self._mapped(shard).arrays

    def _mapped(self, shard: int) -> "_Mapped":
        mapped = self._open.get(shard)
        if mapped is None:
            mapped = self._open[shard] = _map(self.headers[shard])
            if len(self._open) > MAX_OPEN:
                self._open.popitem(last=False)
        return mapped

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
            mapped = self._mapped(shard)
            types.extend(mapped.names[index] for index in mapped.arrays["config_type"].tolist())
        return types

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
        for shard, header in enumerate(self.headers):
            if checksum(self.arrays(shard), header.r_max) != header.checksum:
                raise damaged(header.path, "its contents do not match its checksum")

    def _joined(self, name: str) -> NDArray[Any]:
        return np.concatenate([self.arrays(shard)[name] for shard in range(self.n_shards)])

    def _counts(self, offsets_name: str, counted: str) -> NDArray[np.int32]:
        """[n] lengths between offsets, which are checked against the array they cut."""
        parts = []
        for shard, header in enumerate(self.headers):
            arrays = self.arrays(shard)
            offsets = arrays[offsets_name]
            counts = np.diff(offsets)
            if offsets[0] != 0 or offsets[-1] != len(arrays[counted]) or (counts < 0).any():
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


class _Mapped(NamedTuple):
    """One shard in memory: views of its file, and the names of its config_types."""

    arrays: Arrays
    names: list[str]


def _map(header: ShardHeader) -> _Mapped:
    """Views of the arrays in the mapped file."""
    try:
        mapped = np.memmap(header.path, dtype=np.uint8, mode="r")
    except (OSError, ValueError) as error:
        raise damaged(header.path, f"cannot be mapped: {error}") from error
    arrays: dict[str, NDArray[Any]] = {}
    for name, (offset, dtype, shape) in header.places.items():
        if offset is None:
            arrays[name] = np.zeros(shape, dtype=dtype)
            continue
        if offset + int(np.prod(shape)) * np.dtype(dtype).itemsize > len(mapped):
            raise damaged(header.path, f"it ends before its array {name}")
        arrays[name] = np.ndarray(shape, dtype=dtype, buffer=mapped, offset=offset)
    try:
        names = json.loads(arrays["config_type_names"].tobytes())
    except ValueError as error:
        raise damaged(header.path, f"names of config_types: {error}") from error
    return _Mapped(arrays, names)


def _sample(mapped: _Mapped, index: int) -> Sample:
    """Structure ``index`` of a shard."""
    arrays = mapped.arrays
    first, last = arrays["atom_offsets"][index : index + 2].tolist()
    begin, end = arrays["edge_offsets"][index : index + 2].tolist()
    text, text_end = arrays["source_offsets"][index : index + 2].tolist()
    has_forces, has_stress = arrays["has_forces"][index], arrays["has_stress"][index]
    weight, energy_weight, forces_weight, stress_weight = arrays["weights"][index].tolist()
    structure = Structure(
        numbers=arrays["numbers"][first:last].astype(np.int64),
        positions=arrays["positions"][first:last].astype(np.float64),
        cell=arrays["cell"][index].astype(np.float64),
        pbc=arrays["pbc"][index].astype(bool),
        energy=float(arrays["energy"][index]) if arrays["has_energy"][index] else None,
        forces=arrays["forces"][first:last].astype(np.float64) if has_forces else None,
        stress=arrays["stress"][index].astype(np.float64) if has_stress else None,
        weight=weight,
        energy_weight=energy_weight,
        forces_weight=forces_weight,
        stress_weight=stress_weight,
        config_type=mapped.names[arrays["config_type"][index]],
        source=arrays["sources"][text:text_end].tobytes().decode(errors="surrogateescape"),
    )
    edges = Edges(
        senders=arrays["senders"][begin:end].astype(np.int64),
        receivers=arrays["receivers"][begin:end].astype(np.int64),
        shifts=arrays["shifts"][begin:end].astype(np.int64),
    )
    return Sample(structure, edges)
