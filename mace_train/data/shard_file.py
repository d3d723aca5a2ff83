"""One shard: an HDF5 file that holds structures with their edges as concatenated arrays.

Array ``x`` of structure i is ``x[offsets[i] : offsets[i + 1]]``, with ``atom_offsets`` for atoms
and ``edge_offsets`` for edges; indices of atoms count from 0 in each structure, in the smallest
integer type that fits. All arrays are contiguous and aligned in the file, so readers map the file
into memory and take slices: no copy of the library's cache, no lock, safe after fork. A missing
label is stored as zeros with ``has_... = 0``. The checksum is the SHA-256 of all names, types,
shapes and bytes.

Writing costs one concatenation per array, about 7 bytes per edge and 60 per atom.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mace_train import __version__
from mace_train.data.neighbors import Edges, neighbor_list
from mace_train.data.structure import Structure
from mace_train.errors import InputError

FORMAT = "mace-train shard"
FORMAT_VERSION = 1
ALIGNMENT = 64  # bytes

Arrays = Mapping[str, NDArray[Any]]

# arrays of a shard and the sizes of their axes: structures, atoms, edges of the shard, or numbers
LAYOUT: dict[str, tuple[str | int, ...]] = {
    "atom_offsets": ("structures + 1",),
    "edge_offsets": ("structures + 1",),
    "source_offsets": ("structures + 1",),
    "numbers": ("atoms",),
    "positions": ("atoms", 3),
    "forces": ("atoms", 3),
    "senders": ("edges",),
    "receivers": ("edges",),
    "shifts": ("edges", 3),
    "cell": ("structures", 3, 3),
    "pbc": ("structures", 3),
    "energy": ("structures",),
    "stress": ("structures", 3, 3),
    "has_energy": ("structures",),
    "has_forces": ("structures",),
    "has_stress": ("structures",),
    "weights": ("structures", 4),  # of the structure, its energy, forces, stress
    "config_type": ("structures",),  # index into config_type_names
    "config_type_names": ("bytes of names",),  # JSON list
    "sources": ("bytes of sources",),  # UTF-8, split by source_offsets
    "elements": ("elements",),  # sorted atomic numbers that occur
}


@dataclass(frozen=True, eq=False)
class Sample:
    """One structure with its neighbour list."""

    structure: Structure
    edges: Edges


def sample_of(structure: Structure, r_max: float) -> Sample:
    """``structure`` with its edges shorter than ``r_max`` (Å); see ``neighbor_list``."""
    edges = neighbor_list(
        structure.positions, structure.cell, structure.pbc, r_max, structure.source or "structure"
    )
    return Sample(structure, edges)


def write_shard(path: Path, samples: Iterable[Sample], r_max: float) -> None:
    """Write ``samples`` to the file ``path``, which appears only when it is complete.

    Only the compact arrays are kept while ``samples`` is consumed. Equal samples give equal bytes.
    """
    arrays = _concatenate(samples)
    partial = path.with_name(f"{path.name}.partial")
    try:
        _write_arrays(partial, arrays, r_max)
        os.replace(partial, path)
    except BaseException:  # also an interrupt: nothing half-written stays
        partial.unlink(missing_ok=True)
        raise


def _write_arrays(path: Path, arrays: Arrays, r_max: float) -> None:
    with h5py.File(
        path, "w", libver=("v110", "v110"), alignment_threshold=1, alignment_interval=ALIGNMENT
    ) as file:
        for name in LAYOUT:
            file.create_dataset(name, data=arrays[name])
        file.attrs["format"] = FORMAT
        file.attrs["format_version"] = FORMAT_VERSION
        file.attrs["r_max"] = float(r_max)
        file.attrs["n_structures"] = len(arrays["energy"])
        file.attrs["checksum"] = checksum(arrays, r_max)
        file.attrs["mace_train_version"] = __version__
        file.attrs["complete"] = True


def checksum(arrays: Arrays, r_max: float) -> str:
    """SHA-256 (hex) of the arrays and the cutoff radius they were made with."""
    digest = hashlib.sha256(f"{FORMAT} {FORMAT_VERSION} {float(r_max)!r}".encode())
    for name in LAYOUT:
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"|{name} {array.dtype.str} {array.shape}|".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _concatenate(samples: Iterable[Sample]) -> Arrays:
    """The arrays of a shard; every array of edges is made compact as its sample arrives."""
    columns = _Columns()
    for sample in samples:
        columns.add(sample)
    return columns.arrays()


class _Columns:
    """The arrays of a shard while structures are added."""

    def __init__(self) -> None:
        self.structures: list[Structure] = []
        self.edges: list[Edges] = []

    def add(self, sample: Sample) -> None:
        edges, n_atoms = sample.edges, sample.structure.n_atoms
        index_type = np.min_scalar_type(n_atoms - 1)
        self.structures.append(sample.structure)
        self.edges.append(
            Edges(
                edges.senders.astype(index_type),
                edges.receivers.astype(index_type),
                edges.shifts.astype(_signed_type(edges.shifts)),
            )
        )

    def arrays(self) -> Arrays:
        """All arrays of LAYOUT."""
        structures, edges = self.structures, self.edges
        zero_stress = np.zeros((3, 3))
        numbers = _joined([s.numbers.astype(np.uint8) for s in structures], "u1")
        names, config_type = np.unique(
            np.array([s.config_type for s in structures], dtype=str), return_inverse=True
        )
        sources = [s.source.encode(errors="surrogateescape") for s in structures]
        return {
            "atom_offsets": _offsets([s.n_atoms for s in structures]),
            "edge_offsets": _offsets([e.n_edges for e in edges]),
            "source_offsets": _offsets([len(source) for source in sources]),
            "numbers": numbers,
            "positions": _joined([s.positions for s in structures], "<f8", 3),
            "forces": _joined(
                [np.zeros((s.n_atoms, 3)) if s.forces is None else s.forces for s in structures],
                "<f8",
                3,
            ),
            "senders": _joined([e.senders for e in edges], "u1"),
            "receivers": _joined([e.receivers for e in edges], "u1"),
            "shifts": _joined([e.shifts for e in edges], "i1", 3),
            "cell": _joined([s.cell for s in structures], "<f8", 3).reshape(-1, 3, 3),
            "pbc": np.array([s.pbc for s in structures], dtype="u1").reshape(-1, 3),
            "energy": np.array([s.energy or 0.0 for s in structures], dtype="<f8"),
            "stress": _joined(
                [zero_stress if s.stress is None else s.stress for s in structures], "<f8", 3
            ).reshape(-1, 3, 3),
            "has_energy": np.array([s.energy is not None for s in structures], dtype="u1"),
            "has_forces": np.array([s.forces is not None for s in structures], dtype="u1"),
            "has_stress": np.array([s.stress is not None for s in structures], dtype="u1"),
            "weights": np.array(
                [(s.weight, s.energy_weight, s.forces_weight, s.stress_weight) for s in structures],
                dtype="<f8",
            ).reshape(-1, 4),
            "config_type": config_type.reshape(-1).astype("<u4"),
            "config_type_names": _bytes(json.dumps(names.tolist()).encode()),
            "sources": _bytes(b"".join(sources)),
            "elements": np.unique(numbers),
        }


def _joined(parts: list[NDArray[Any]], dtype: str, *shape: int) -> NDArray[Any]:
    """One little-endian array; integers take the widest type among the parts."""
    joined = np.concatenate([np.zeros((0, *shape), dtype=dtype), *parts])
    return joined.astype(joined.dtype.newbyteorder("<"), copy=False)


def _offsets(counts: list[int]) -> NDArray[np.int64]:
    """[n + 1] where each part begins, and the end."""
    return np.concatenate([[0], np.cumsum(counts)]).astype("<i8")


def _bytes(text: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(text, dtype=np.uint8)


def _signed_type(values: NDArray[np.int64]) -> np.dtype[Any]:
    """The smallest signed integer type that holds all of ``values``."""
    largest = int(np.abs(values).max(initial=0))
    return np.min_scalar_type(-largest - 1)


@dataclass(frozen=True)
class ShardHeader:
    """What is known of a shard without reading its arrays."""

    path: Path
    r_max: float
    n_structures: int
    checksum: str
    places: dict[str, tuple[int | None, str, tuple[int, ...]]]  # offset in the file, type, shape


def read_header(path: Path) -> ShardHeader:
    """Format, version, completeness and array places of a shard, checked.

    Raises:
        InputError: not a shard, truncated, incomplete or of another format version.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            attributes = dict(file.attrs)
            _check_format(path, attributes)
            places = {name: _place(path, file, name) for name in LAYOUT}
    except InputError:
        raise
    except (OSError, RuntimeError, LookupError, ValueError) as error:
        raise damaged(path, f"HDF5 cannot read it: {error}") from error
    header = ShardHeader(
        path=path,
        r_max=float(attributes["r_max"]),
        n_structures=int(attributes["n_structures"]),
        checksum=str(attributes["checksum"]),
        places=places,
    )
    _check_shapes(header)
    return header


def damaged(path: Path, what: str) -> InputError:
    """The error for a shard that cannot be trusted."""
    return InputError(f"shard {path} is damaged ({what}); copy it again or run preprocess again")


def _check_format(path: Path, attributes: dict[str, Any]) -> None:
    if attributes.get("format") != FORMAT:
        raise InputError(
            f"{path} is HDF5 but not a shard of mace-train; point data_dir to a folder written by "
            "`mace-train preprocess`"
        )
    version = attributes.get("format_version")
    if version != FORMAT_VERSION:
        raise InputError(
            f"shard {path} has format version {version}, this mace-train reads version "
            f"{FORMAT_VERSION}; run preprocess again"
        )
    missing = {"r_max", "n_structures", "checksum", "complete"} - set(attributes)
    if missing:
        raise damaged(path, f"attributes {', '.join(sorted(missing))} are missing")


def _place(path: Path, file: h5py.File, name: str) -> tuple[int | None, str, tuple[int, ...]]:
    dataset = file.get(name)
    if not isinstance(dataset, h5py.Dataset):
        raise damaged(path, f"array {name} is missing")
    offset = dataset.id.get_offset()
    if offset is None and dataset.size:
        raise damaged(path, f"array {name} is not contiguous")
    return offset, dataset.dtype.str, dataset.shape


def _check_shapes(header: ShardHeader) -> None:
    """InputError unless the shapes of all arrays agree."""
    sizes: dict[str, int] = {"structures": header.n_structures}
    sizes["structures + 1"] = header.n_structures + 1
    for name, axes in LAYOUT.items():
        shape = header.places[name][2]
        expected = tuple(
            axis if isinstance(axis, int) else sizes.setdefault(axis, length)
            for axis, length in zip(axes, shape, strict=False)
        )
        if len(shape) != len(axes) or shape != expected:
            raise damaged(header.path, f"array {name} has shape {shape}, expected {expected}")
