"""ShardReader: the arrays of one shard, as views of its mapped file, or through HDF5."""

import os
from functools import cached_property
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mace_train.data.input_values import NO_INPUTS, InputValues
from mace_train.data.neighbors import EdgeList
from mace_train.data.shards.arrays import (
    FLOAT_FIELDS,
    OF_EDGES,
    OWNED,
    Arrays,
    checksums,
    input_columns,
    names_of,
    owned_arrays,
    runs_of,
    with_views,
)
from mace_train.data.shards.batch import ShardRows
from mace_train.data.shards.hdf5 import ShardHeader, damaged, read_arrays
from mace_train.data.structure import Structure
from mace_train.errors import InputError
from mace_train.restricted_hdf5 import own_dataset

CACHE_BYTES = 64 << 20  # of chunks of a compressed shard


class ShardReader:
    """One shard in memory.

    Attributes:
        header: What is known without its structures.
        arrays: Of arrays.LAYOUT, with the fields of ``structures``; what is compressed is an
            ``h5py.Dataset``, which is sliced like an array.
        config_type_names, head_names: Names, by the index that ``structures`` holds.
    """

    def __init__(self, header: ShardHeader) -> None:
        """Map the file.

        Raises:
            InputError: it is gone, or shorter than its header says.
        """
        self.header = header
        arrays = self._views()
        self.process = os.getpid()  # HDF5 handles do not survive a fork
        self._file: h5py.File | None = None
        if header.is_compressed:
            arrays |= self._datasets([name for name in header.layout if name not in arrays])
        self.arrays: dict[str, Any] = with_views(arrays)
        try:
            self.config_type_names = names_of(arrays, "config_type")
            self.head_names = names_of(arrays, "head")
        except ValueError as error:
            raise damaged(header.path, f"names of config_types and heads: {error}") from error
        self._check_inputs()

    def _check_inputs(self) -> None:
        """InputError unless every column of inputs has its name."""
        try:
            columns = input_columns(self.arrays)
        except (ValueError, TypeError) as error:
            raise damaged(self.header.path, f"names of inputs: {error}") from error
        widths = [] if columns is None else [columns.graph.shape[1], columns.atom.shape[1]]
        if columns is not None and widths != list(map(len, columns.names)):
            raise damaged(self.header.path, f"{widths} columns of inputs for {columns.names}")

    def _views(self) -> dict[str, NDArray[Any]]:
        """Views of the contiguous arrays in the mapped file."""
        header = self.header
        try:
            mapped = np.memmap(header.path, dtype=np.uint8, mode="r")
        except (OSError, ValueError) as error:
            raise damaged(header.path, f"cannot be mapped: {error}") from error
        arrays: dict[str, NDArray[Any]] = {}
        for name, (offset, dtype, shape) in header.layout.items():
            size = int(np.prod(shape))
            if offset is None and size:
                continue
            if offset is None:
                arrays[name] = np.zeros(shape, dtype=dtype)
                continue
            if offset + size * dtype.itemsize > len(mapped):
                raise damaged(header.path, f"it ends before its array {name}")
            arrays[name] = np.ndarray(shape, dtype=dtype, buffer=mapped, offset=offset)
        return arrays

    def _datasets(self, names: list[str]) -> dict[str, h5py.Dataset]:
        try:
            self._file = h5py.File(self.header.path, "r", locking=False, rdcc_nbytes=CACHE_BYTES)
            return {name: own_dataset(self._file, name) for name in names}
        except (OSError, RuntimeError, LookupError) as error:
            raise damaged(self.header.path, f"HDF5 cannot read it: {error}") from error

    @property
    def float32(self) -> tuple[str, ...]:
        """The fields that are stored in single precision."""
        rows = self.header.layout["structures"][1]
        types = {name: self.header.layout[name][1] for name in ("positions", "forces")}
        types |= {name: rows[name].base for name in ("cell", "stress")}
        return tuple(name for name in FLOAT_FIELDS if types[name] == np.float32)

    def stored(self) -> Arrays:
        """The arrays of the file in memory, without views."""
        if self.header.is_compressed:
            return read_arrays(self.header)
        return {name: self.arrays[name] for name in self.header.layout}

    def all_arrays(self) -> Arrays:
        """All arrays in memory or mapped, with views."""
        return with_views(self.stored()) if self.header.is_compressed else self.arrays

    def shard_rows(self, rows: NDArray[np.int64], batch_rows: NDArray[np.int64]) -> list[ShardRows]:
        """The structures ``rows`` [n] of the shard, as ``batch_rows`` [n] of a batch.

        Raises:
            InputError: a structure is not what was written.
        """
        if not self.header.is_compressed:
            self._check_mapped(rows)
            return [ShardRows(self.arrays, rows, batch_rows)]
        found, n = [], 0
        for first, last in runs_of(rows):
            every = np.arange(last - first)
            found.append(ShardRows(self.check(first, last), every, batch_rows[n + every]))
            n += len(every)
        return found

    def check(self, first: int, last: int) -> Arrays:
        """The arrays of structures ``first`` to ``last - 1``, with offsets from 0.

        Raises:
            InputError: they are not what was written.
        """
        arrays = self._part(first, last)
        try:
            found = checksums(arrays)
        except (IndexError, ValueError) as error:
            raise damaged(self.header.path, f"structures {first} to {last - 1}: {error}") from error
        wrong = np.flatnonzero(found != arrays["structure_checksums"])
        if len(wrong):
            raise self._changed(first + int(wrong[0]))
        return arrays

    def _check_mapped(self, rows: NDArray[np.int64]) -> None:
        """The same of structures in any order, by compiled loops over the mapped file."""
        from mace_train.data.shards.gather import crc_tables, first_wrong  # numba: 0.5 s

        offsets, owners, widths, arrays = self._bytes
        expected = _read_only(self.arrays["structure_checksums"])
        wrong = first_wrong(rows, expected, offsets, owners, widths, arrays, crc_tables())
        if wrong >= 0:
            raise self._changed(int(rows[wrong]))

    @cached_property
    def _bytes(self) -> tuple[Any, ...]:
        """Offsets, owners, widths and bytes of the arrays of structures, see ``first_wrong``."""
        places = {offsets: i for i, offsets in enumerate(("", *OWNED))}
        owned = [(name, places[offsets]) for name, offsets in owned_arrays(self.arrays)]
        arrays = [self.arrays[name] for name, _ in owned]
        raw = tuple(_read_only(array.reshape(-1).view(np.uint8)) for array in arrays)
        offsets = [np.arange(self.header.n_structures + 1), *(self.arrays[o] for o in OWNED)]
        widths = [array.dtype.itemsize * int(np.prod(array.shape[1:])) for array in arrays]
        owners = np.array([owner for _, owner in owned])
        return tuple(map(_read_only, offsets)), owners, np.array(widths), raw

    def _changed(self, index: int) -> InputError:
        return damaged(self.header.path, f"its structure {index} does not match its checksum")

    def _part(self, first: int, last: int) -> Arrays:
        """The arrays of a run of structures, with offsets from 0."""
        part: dict[str, NDArray[Any]] = {
            "structure_checksums": self.arrays["structure_checksums"][first:last]
        }
        bounds = {offsets: self.arrays[offsets][first : last + 1] for offsets in OWNED}
        for name, offsets in owned_arrays(self.arrays):
            begin, end = bounds[offsets][[0, -1]].tolist() if offsets else (first, last)
            part[name] = self._slice(name, begin, end)
        if "input_names" in self.arrays:
            part["input_names"] = self.arrays["input_names"]
        return {**part, **{offsets: of - of[0] for offsets, of in bounds.items()}}

    def _slice(self, name: str, begin: int, end: int) -> NDArray[Any]:
        try:
            return np.asarray(self.arrays[name][begin:end])
        except (OSError, RuntimeError) as error:
            raise damaged(self.header.path, f"HDF5 cannot read it: {error}") from error

    def heads(self) -> list[str]:
        """The head of every structure."""
        return [self.head_names[i] for i in self.arrays["head"].tolist()]

    def config_types(self) -> list[str]:
        """The config_type of every structure."""
        return [self.config_type_names[i] for i in self.arrays["config_type"].tolist()]

    def structure(self, index: int) -> Structure:
        """Structure ``index``, copied."""
        arrays = self.arrays
        first, last = arrays["atom_offsets"][index : index + 2].tolist()
        text, text_end = arrays["source_offsets"][index : index + 2].tolist()
        row = arrays["structures"][index]
        weight, energy_weight, forces_weight, stress_weight = row["weights"].tolist()
        return Structure(
            numbers=arrays["numbers"][first:last].astype(np.int64),
            positions=arrays["positions"][first:last].astype(np.float64),
            cell=row["cell"].astype(np.float64),
            pbc=row["pbc"].astype(bool),
            energy=float(row["energy"]) if row["has_energy"] else None,
            forces=arrays["forces"][first:last].astype(np.float64) if row["has_forces"] else None,
            stress=row["stress"].astype(np.float64) if row["has_stress"] else None,
            weight=weight,
            energy_weight=energy_weight,
            forces_weight=forces_weight,
            stress_weight=stress_weight,
            config_type=self.config_type_names[row["config_type"]],
            head=self.head_names[row["head"]],
            source=arrays["sources"][text:text_end].tobytes().decode(errors="surrogateescape"),
            inputs=self._inputs(index, first, last),
        )

    def _inputs(self, index: int, first: int, last: int) -> InputValues:
        """Those of structure ``index``, whose atoms are ``first`` to ``last - 1``."""
        columns = input_columns(self.arrays)
        if columns is None:
            return NO_INPUTS
        per_structure, per_atom = columns.names
        of_atoms = columns.atom[first:last].T.astype(np.float64)
        return InputValues(
            dict(zip(per_structure, columns.graph[index].tolist(), strict=True)),
            dict(zip(per_atom, of_atoms, strict=True)),
        )

    def edges(self, index: int) -> EdgeList:
        """The stored edges of structure ``index``, copied."""
        begin, end = self.arrays["edge_offsets"][index : index + 2].tolist()
        return EdgeList(*(self.arrays[name][begin:end].astype(np.int64) for name in OF_EDGES))


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    """A view that cannot be written, so that all arrays are of one type."""
    view = array.view()
    view.flags.writeable = False
    return view
