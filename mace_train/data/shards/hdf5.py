"""One shard: an HDF5 file with the arrays of ``arrays.LAYOUT``.

Arrays are contiguous and aligned in the file, so readers map it into memory and take slices: no
copy in the library's cache, no lock, safe after fork. With compression, what belongs to atoms and
edges is chunked instead and read through HDF5. Two checksums beside those of the structures:
``checksum``, the SHA-256 of all names, types, shapes and bytes, is the identity of the contents;
``header_checksum`` is over what a reader needs before any structure (attributes, offsets,
names). HDF5 itself checks its own metadata in this version of its format. A file appears under its
name only when it is complete and on the disk. The page for users of the format is README.md.
"""

import hashlib
import io
import os
import secrets
import zlib
from collections.abc import Container, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mace_train import __version__
from mace_train.atomic_files import sync_folder
from mace_train.data.neighbors import neighbor_list
from mace_train.data.shards.arrays import (
    INPUT_LAYOUT,
    LAYOUT,
    OF_ATOMS,
    OF_EDGES,
    Arrays,
    Sample,
    ShardArrays,
    Storage,
    is_allowed,
    without_edges,
)
from mace_train.data.structure import Structure
from mace_train.errors import InputError, system_error
from mace_train.restricted_hdf5 import own_dataset

FORMAT = "mace-train shard"
FORMAT_VERSION = 2
WITH_INPUTS = 3  # the version of shards that have the arrays of INPUT_LAYOUT too
ALIGNMENT = 64  # bytes
CHUNK_BYTES = 1 << 18  # of compressed arrays, see scripts/bench/chunks.py
_HEADER_ARRAYS = (
    "atom_offsets",
    "edge_offsets",
    "source_offsets",
    "config_type_names",
    "head_names",
    "elements",
)
_CHUNKED = (*OF_ATOMS, "atom_inputs", *OF_EDGES)
_ATTRIBUTES = (
    "r_max",
    "n_structures",
    "stores_edges",
    "checksum",
    "header_checksum",
    "complete",
)


def sample_of(structure: Structure, r_max: float) -> Sample:
    """``structure`` with its edges shorter than ``r_max`` (Å); see ``neighbor_list``."""
    edges = neighbor_list(
        structure.positions, structure.cell, structure.pbc, r_max, structure.source or "structure"
    )
    return Sample(structure, edges)


def write_shard(
    path: Path,
    samples: Iterable[Sample],
    r_max: float,
    storage: Storage | None = None,
    *,
    durable: bool = True,
) -> None:
    """Write ``samples`` to the file ``path``; only compact arrays are kept meanwhile.

    Equal samples give equal bytes. See ``write_arrays`` for ``durable``.
    """
    shard = ShardArrays(storage or Storage())
    for sample in samples:
        shard.add(sample)
    write_arrays(path, shard.arrays(), r_max, shard.storage, durable=durable)


def write_arrays(
    path: Path, arrays: Arrays, r_max: float, storage: Storage, *, durable: bool = True
) -> None:
    """Write the arrays of a shard to the file ``path``, which appears only when it is complete.

    ``durable`` waits until it is on the disk, so that it is whole after a loss of power too.
    """
    # a name of its own: two processes may write equal contents for a file that is given twice
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    try:
        image = _image(arrays, float(r_max), storage)
        with open(partial, "wb") as file:
            file.write(image)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(partial, path)
        if durable:
            sync_folder(path.parent)
    except BaseException as error:  # also an interrupt: nothing half-written stays
        partial.unlink(missing_ok=True)
        raise system_error(error, path) or error from None


def _image(arrays: Arrays, r_max: float, storage: Storage) -> memoryview:
    """The bytes of the file, made in memory: on a full disk HDF5 itself crashes the process."""
    image = io.BytesIO()
    with h5py.File(
        image,
        "w",
        libver=("v110", "v110"),
        alignment_threshold=1,
        alignment_interval=ALIGNMENT,
    ) as file:
        _fill(file, arrays, r_max, storage)
    return image.getbuffer()


def _fill(file: h5py.File, arrays: Arrays, r_max: float, storage: Storage) -> None:
    if not storage.stores_edges:
        arrays = without_edges(arrays)
    for name, array in arrays.items():
        chunked = storage.compression and name in _CHUNKED and array.size
        options: dict[str, Any] = {}
        if chunked:
            rows = max(1, CHUNK_BYTES // max(array.nbytes // len(array), 1))
            options = {
                "chunks": (min(rows, len(array)), *array.shape[1:]),
                "compression": storage.compression,
                "shuffle": True,
            }
            if storage.compression == "gzip":
                options["compression_opts"] = 1
        file.create_dataset(name, data=array, **options)
    attributes = {
        "format": np.bytes_(FORMAT),
        "format_version": _version(arrays),
        "r_max": r_max,
        "n_structures": len(arrays["structures"]),
        "stores_edges": storage.stores_edges,
        "checksum": np.bytes_(checksum(arrays, r_max)),
    }
    file.attrs.update(attributes)
    file.attrs["header_checksum"] = _header_checksum(_attributes(file), arrays)
    file.attrs["mace_train_version"] = np.bytes_(__version__)
    file.attrs["complete"] = True


def checksum(arrays: Arrays, r_max: float) -> str:
    """SHA-256 (hex) of the arrays and the cutoff radius they were made with."""
    digest = hashlib.sha256(f"{FORMAT} {_version(arrays)} {float(r_max)!r}".encode())
    for name in (*LAYOUT, *INPUT_LAYOUT):
        if name in arrays:
            array = np.ascontiguousarray(arrays[name])
            digest.update(f"|{name} {array.dtype.descr} {array.shape}|".encode())
            digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _header_checksum(attributes: dict[str, Any], arrays: Arrays) -> int:
    """CRC-32 of what is read before any structure."""
    names = [name for name in _ATTRIBUTES if name not in ("header_checksum", "complete")]
    values = [attributes[name] for name in names]
    plain = [value.item() if isinstance(value, np.generic) else value for value in values]
    crc = zlib.crc32(repr((_version(arrays), plain)).encode())
    for name in _header_arrays(arrays):
        crc = zlib.crc32(np.ascontiguousarray(arrays[name]).view(np.uint8).data, crc)
    return crc


def _version(names: Container[str]) -> int:
    """Format version of a shard that has the arrays ``names``."""
    return WITH_INPUTS if "input_names" in names else FORMAT_VERSION


def _header_arrays(names: Container[str]) -> tuple[str, ...]:
    """What is read before any structure."""
    return (*_HEADER_ARRAYS, "input_names") if "input_names" in names else _HEADER_ARRAYS


_NUMBERS = (h5py.h5t.INTEGER, h5py.h5t.FLOAT, h5py.h5t.ENUM)


@dataclass(frozen=True)
class ShardHeader:
    """Format and array offsets of a shard, without its structures."""

    path: Path
    r_max: float
    n_structures: int
    stores_edges: bool
    checksum: str
    # name -> offset in the file (None: chunked, or without bytes), type, shape
    layout: dict[str, tuple[int | None, np.dtype[Any], tuple[int, ...]]]

    @property
    def is_compressed(self) -> bool:
        """Whether arrays of atoms and edges are read through HDF5."""
        return any(
            offset is None and int(np.prod(shape)) for offset, _, shape in self.layout.values()
        )


def read_header(path: Path) -> ShardHeader:
    """Format, version, completeness and array offsets of a shard, checked.

    Raises:
        InputError: not a shard, truncated, incomplete or of another format version.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            attributes = _attributes(file)
            _check_format(path, attributes)
            header = _header(path, file, attributes)
            arrays = {name: own_dataset(file, name)[()] for name in _header_arrays(header.layout)}
            if _header_checksum(attributes, arrays) != attributes["header_checksum"]:
                raise damaged(path, "its header does not match its checksum")
    except InputError:
        raise
    except (OSError, RuntimeError, LookupError, ValueError, TypeError, MemoryError) as error:
        raise damaged(path, f"HDF5 cannot read it: {error}") from error
    return header


def _attributes(file: h5py.File) -> dict[str, Any]:
    """Numbers and text of fixed length by name; None for others, which shards do not have.

    HDF5 may never return from text of variable length in a damaged file.
    """
    found: dict[str, Any] = {}
    for name in file.attrs:
        hdf5_type = file.attrs.get_id(name).get_type()
        is_text = hdf5_type.get_class() == h5py.h5t.STRING
        if is_text and not hdf5_type.is_variable_str():
            found[name] = bytes(file.attrs[name]).decode(errors="replace")
        else:
            found[name] = file.attrs[name] if hdf5_type.get_class() in _NUMBERS else None
    return found


def _header(path: Path, file: h5py.File, attributes: dict[str, Any]) -> ShardHeader:
    stores_edges = bool(attributes["stores_edges"])
    inputs = INPUT_LAYOUT if attributes["format_version"] == WITH_INPUTS else {}
    stored = [name for name in (*LAYOUT, *inputs) if stores_edges or name not in OF_EDGES]
    header = ShardHeader(
        path=path,
        r_max=float(attributes["r_max"]),
        n_structures=int(attributes["n_structures"]),
        stores_edges=stores_edges,
        checksum=str(attributes["checksum"]),
        layout={name: _array_layout(path, file, name) for name in stored},
    )
    _check_types(header)
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
    if version not in (FORMAT_VERSION, WITH_INPUTS):
        raise InputError(
            f"shard {path} has format version {version}, this mace-train reads version "
            f"{FORMAT_VERSION}, and {WITH_INPUTS} of data with inputs; run preprocess again"
        )
    missing = set(_ATTRIBUTES) - set(attributes)
    if missing:
        raise damaged(path, f"attributes {', '.join(sorted(missing))} are missing")


def _array_layout(
    path: Path, file: h5py.File, name: str
) -> tuple[int | None, np.dtype[Any], tuple[int, ...]]:
    try:
        dataset = own_dataset(file, name)
    except KeyError:
        raise damaged(path, f"array {name} is missing") from None
    offset = dataset.id.get_offset()
    if offset is None and dataset.size and name not in _CHUNKED:
        raise damaged(path, f"array {name} is not contiguous")
    return offset, dataset.dtype, dataset.shape


def _check_types(header: ShardHeader) -> None:
    """InputError unless every array has a type that shards have."""
    for name, (_, dtype, _) in header.layout.items():
        if not is_allowed(name, dtype):
            raise damaged(header.path, f"array {name} has type {dtype}, which no shard has")


def _check_shapes(header: ShardHeader) -> None:
    """InputError unless the shapes of all arrays agree."""
    sizes: dict[str, int] = {"structures": header.n_structures}
    sizes["structures + 1"] = header.n_structures + 1
    for name, (_, _, shape) in header.layout.items():
        axes = (LAYOUT | INPUT_LAYOUT)[name]
        expected = tuple(
            axis if isinstance(axis, int) else sizes.setdefault(axis, length)
            for axis, length in zip(axes, shape, strict=False)
        )
        if len(shape) != len(axes) or shape != expected:
            raise damaged(header.path, f"array {name} has shape {shape}, expected {expected}")


def read_arrays(header: ShardHeader) -> dict[str, NDArray[Any]]:
    """All arrays of a shard in memory, through HDF5 (for any storage)."""
    try:
        with h5py.File(header.path, "r", locking=False) as file:
            return {name: own_dataset(file, name)[()] for name in header.layout}
    except (OSError, RuntimeError, LookupError, ValueError, MemoryError) as error:
        raise damaged(header.path, f"HDF5 cannot read it: {error}") from error
