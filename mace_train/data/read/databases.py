"""Files with random access: ASE trajectories and databases, LMDB, and mace-torch's HDF5."""

import itertools
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import ase.db
import h5py
import numpy as np
from ase import Atoms
from ase.db.core import Database
from ase.db.row import AtomsRow
from ase.io.trajectory import Trajectory

from mace_train.data.raw_structure import ParseFn, RawStructure, Results, already_parsed
from mace_train.data.read.file_range import ChunkLimit, FileRange
from mace_train.errors import InputError
from mace_train.restricted_hdf5 import own_dataset, own_group

_MACE_BATCH, _MACE_CONFIG = "config_batch_", "config_"
_MACE_WEIGHTS = ("energy", "forces", "stress")


def equal_ranges(n_structures: int, limit: ChunkLimit, size: int) -> list[FileRange]:
    """Ranges of at most ``limit`` over the ``n_structures`` of a file of ``size`` bytes."""
    per_range = max(1, min(limit.structures, limit.size * n_structures // max(size, 1)))
    counts = [min(per_range, n_structures - i) for i in range(0, n_structures, per_range)]
    return [
        FileRange(i * per_range, count, size=size * count // n_structures)
        for i, count in enumerate(counts)
    ]


def count_trajectory(path: str) -> int:
    """Structures of a .traj file."""
    with Trajectory(path) as trajectory:
        return len(trajectory)


def trajectory(path: str, file_range: FileRange) -> Iterator[ParseFn]:
    """The structures of a range of a .traj file."""
    with Trajectory(path) as opened:
        for index in _range(file_range):
            yield already_parsed(opened[index])


def count_database(path: str) -> int:
    """Rows of an ASE database: sqlite or JSON."""
    with ase.db.connect(path, use_lock_file=False) as database:
        return int(database.count())


def database(path: str, file_range: FileRange) -> Iterator[ParseFn]:
    """The rows of a range of an ASE database, in the order of their ids."""
    with ase.db.connect(path, use_lock_file=False) as opened:
        for row in opened.select(sort="id", limit=file_range.count, offset=file_range.first):
            yield partial(_atoms_of_row, row)


def count_lmdb(path: str) -> int:
    """Rows of an ASE-LMDB."""
    with _lmdb_errors():
        return len(_open_lmdb(path).ids)


def lmdb(path: str, file_range: FileRange) -> Iterator[ParseFn]:
    """The rows of a range of an ASE-LMDB."""
    with _lmdb_errors():
        opened = _open_lmdb(path)
    for index in _range(file_range):
        with _lmdb_errors():
            row = opened._get_row(opened.ids[index])
        yield partial(_atoms_of_row, row)


def _open_lmdb(path: str) -> Database:
    """An ASE-LMDB, read-only, by the reader that is installed."""
    try:
        from ase_db_backends.aselmdb import LMDBDatabase
    except ImportError:
        try:
            from mace.tools.fairchem_dataset.lmdb_dataset_tools import LMDBDatabase
        except ImportError:
            raise InputError(
                f"{path}: ASE-LMDB files need a reader that is not installed; pip install "
                "ase-db-backends (fairchem-core brings it)"
            ) from None
    import lmdb

    with lmdb.open(path, subdir=False, readonly=True, lock=False) as file:
        size = (file.info()["last_pgno"] + 1) * file.stat()["psize"]
    if os.path.getsize(path) < size:  # to read behind its end would end the process
        raise InputError(
            f"{path}: {os.path.getsize(path)} bytes where its header says {size}; it is truncated, "
            "copy it again (if it is whole, `mdb_copy -c` makes one that says so)"
        )
    opened: Database = LMDBDatabase(path, readonly=True, use_lock_file=False)
    return opened


@contextmanager
def _lmdb_errors() -> Iterator[None]:
    """Turn the errors of LMDB, which have a base of their own, into OSError."""
    try:
        yield
    except Exception as error:
        if type(error).__module__.partition(".")[0] != "lmdb":
            raise
        raise OSError(f"not a whole ASE-LMDB: {error}") from error


def _atoms_of_row(row: AtomsRow) -> Atoms:
    """A row with all that it holds; ``__arrays__`` and ``__info__`` are mace-torch's."""
    atoms: Atoms = row.toatoms()
    data = dict(row.get("data") or {})
    for name, array in (data.pop("__arrays__", None) or {}).items():
        atoms.arrays[name] = np.asarray(_plain(array))
    for content in (data, data.pop("__info__", None) or {}, row.key_value_pairs):
        atoms.info.update({key: _plain(value) for key, value in content.items()})
    return atoms


def _plain(value: Any) -> Any:
    """mace-torch writes arrays as {"__ndarray__": [shape, dtype, values]}."""
    if isinstance(value, Mapping) and set(value) == {"__ndarray__"}:
        shape, dtype, values = value["__ndarray__"]
        return np.array(values, dtype=dtype).reshape(shape)
    return value


def count_mace_hdf5(path: str) -> int:
    """Configurations of a file written by mace_prepare_data."""
    with h5py.File(path, "r", locking=False) as file:
        return sum(len(own_group(file, batch)) for batch in _mace_batches(file, path))


def mace_hdf5(path: str, file_range: FileRange) -> Iterator[ParseFn]:
    """The configurations of a range of a file written by mace_prepare_data."""
    with h5py.File(path, "r", locking=False) as file:
        names = itertools.chain.from_iterable(
            (own_group(batch, f"{_MACE_CONFIG}{i}") for i in range(len(batch)))
            for batch in (own_group(file, name) for name in _mace_batches(file, path))
        )
        for group in itertools.islice(names, file_range.first, _range(file_range).stop):
            yield already_parsed(_mace_structure(group))


def _mace_batches(file: h5py.File, path: str) -> list[str]:
    """The groups of configurations in their order."""
    batches = [name for name in file if name.startswith(_MACE_BATCH)]
    if not batches or len(batches) < len(file):
        what = "a shard of mace-train" if "format" in file.attrs else "not of mace_prepare_data"
        raise InputError(
            f"{path} is HDF5, but {what}; shards are used with data_dir, HDF5 of mace-torch and "
            "files that ASE reads with data.train_file"
        )
    return sorted(batches, key=lambda name: int(name.removeprefix(_MACE_BATCH)))


def _mace_structure(group: h5py.Group) -> RawStructure:
    """One configuration; labels of weight 0 are missing ones."""
    properties, weights = (
        {key: _mace_value(part, key) for key in part}
        for part in (own_group(group, name) for name in ("properties", "property_weights"))
    )
    results = {
        key: value
        for key, value in properties.items()
        if value is not None and weights.get(key) != 0
    }
    info = {f"config_{key}_weight": weights[key] for key in _MACE_WEIGHTS if weights.get(key)} | {
        "config_weight": _mace_value(group, "weight")
    }
    config_type, head = (
        _mace_value(group, k) if k in group else None for k in ("config_type", "head")
    )
    if config_type is not None:
        info["config_type"] = config_type
    if head is not None:
        info["head"] = head
    cell, pbc = _mace_value(group, "cell"), _mace_value(group, "pbc")
    numbers = own_dataset(group, "atomic_numbers")[()]
    return RawStructure(
        numbers=numbers,
        positions=np.asarray(own_dataset(group, "positions")[()], dtype=np.float64),
        cell=np.zeros((3, 3)) if cell is None else np.asarray(cell, dtype=np.float64),
        pbc=np.zeros(3, dtype=bool) if pbc is None else np.asarray(pbc, dtype=bool),
        info={key: value for key, value in info.items() if value is not None},
        calc=Results(results),
    )


def _mace_value(group: h5py.Group, name: str) -> Any:
    """mace-torch writes what is missing as the text "None"."""
    value = own_dataset(group, name)[()]
    value = value.decode() if isinstance(value, bytes) else value
    return None if isinstance(value, str) and value == "None" else value


def _range(file_range: FileRange) -> range:
    assert file_range.count is not None
    return range(file_range.first, file_range.first + file_range.count)
