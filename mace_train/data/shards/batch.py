"""Batch: many structures as one set of numpy arrays, taken from shards in any order.

Every structure is copied array by array in compiled code; Python runs once per shard and array.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mace_train.data.input_values import InputColumns
from mace_train.data.shards.arrays import (
    OF_ATOMS,
    OF_EDGES,
    Arrays,
    Sample,
    ShardArrays,
    Storage,
    input_columns,
    row_type,
)
from mace_train.errors import InputError


@dataclass(frozen=True, eq=False)
class ShardRows:
    """Structures of one set of arrays, and their indices in a batch."""

    arrays: Arrays
    rows: NDArray[np.int64]  # [n] of the arrays
    batch_rows: NDArray[np.int64]  # [n] of the batch


@dataclass(frozen=True, eq=False)
class Batch:
    """Concatenated structures; indices of atoms count from 0 in each."""

    rows: NDArray[Any]  # [n] see arrays.row_type
    n_atoms: NDArray[np.int64]  # [n]
    n_edges: NDArray[np.int64]  # [n]
    numbers: NDArray[Any]  # [n_atoms]
    positions: NDArray[Any]  # [n_atoms, 3] Å
    forces: NDArray[Any]  # [n_atoms, 3] eV/Å, zeros where missing
    senders: NDArray[Any]  # [n_edges]
    receivers: NDArray[Any]  # [n_edges]
    shifts: NDArray[Any]  # [n_edges, 3]
    inputs: InputColumns | None = None  # beside the geometry, if the structures have any

    @classmethod
    def of_samples(cls, samples: Sequence[Sample]) -> "Batch":
        """The batch of structures in memory."""
        shard = ShardArrays(Storage())
        for sample in samples:
            shard.add(sample)
        every = np.arange(len(samples))
        return cls.of_shard_rows([ShardRows(shard.arrays(), every, every)])

    @classmethod
    def of_shard_rows(cls, parts: Sequence[ShardRows]) -> "Batch":
        """All structures of ``parts`` (at least one), whose batch_rows are 0, 1, ... together."""
        n_atoms, of_atoms = _joined(parts, OF_ATOMS, "atom_offsets")
        n_edges, of_edges = _joined(parts, OF_EDGES, "edge_offsets")
        (numbers, positions, forces), (senders, receivers, shifts) = of_atoms, of_edges
        return cls(
            _rows(parts),
            n_atoms,
            n_edges,
            numbers,
            positions,
            forces,
            senders,
            receivers,
            shifts,
            _inputs(parts, len(n_atoms)),
        )


def _inputs(parts: Sequence[ShardRows], n_structures: int) -> InputColumns | None:
    """Those of all structures; the parts are of one data set, so they have the same."""
    if not any("input_names" in part.arrays for part in parts):
        return None
    of_parts = [input_columns(part.arrays) for part in parts]
    first = of_parts[0] or InputColumns(((), ()), np.zeros((0, 0)), np.zeros((0, 0)))
    graph = np.empty((n_structures, len(first.names[0])))
    for part, columns in zip(parts, of_parts, strict=True):
        if columns is None or columns.names != first.names:
            raise InputError("shards of one data set differ in their inputs; preprocess again")
        graph[part.batch_rows] = columns.graph[part.rows]
    atom = np.zeros((0, 0))
    if first.names[1]:
        _, (atom,) = _joined(parts, ("atom_inputs",), "atom_offsets")
    return InputColumns(first.names, graph, atom)


def _joined(
    parts: Sequence[ShardRows], names: Sequence[str], offsets: str
) -> tuple[NDArray[np.int64], list[NDArray[Any]]]:
    """Atoms or edges of every structure [n], and the arrays ``names`` of the batch, widest type."""
    from mace_train.data.shards.gather import take  # numba: 0.5 s that preprocessing does not need

    counts = np.empty(sum(len(part.rows) for part in parts), dtype=np.int64)
    for part in parts:
        bounds = part.arrays[offsets]
        counts[part.batch_rows] = bounds[part.rows + 1] - bounds[part.rows]
    starts = counts.cumsum() - counts
    n, joined = int(counts.sum()), []
    for name in names:
        sources = [part.arrays[name] for part in parts]
        types = {source.dtype for source in sources}
        dtype = types.pop() if len(types) == 1 else np.result_type(*types)
        target = np.empty((n, *sources[0].shape[1:]), dtype=dtype)
        for part, source in zip(parts, sources, strict=True):
            given, wanted = source.reshape(-1), target.reshape(-1)
            if source.dtype == dtype:  # as bytes: one machine code for all types
                given, wanted = given.view(np.uint8), wanted.view(np.uint8)
            width = len(given) // max(len(source), 1)
            chosen = starts[part.batch_rows]
            take(given, part.arrays[offsets], part.rows, width, wanted, chosen)
        joined.append(target)
    return counts, joined


def _rows(parts: Sequence[ShardRows]) -> NDArray[Any]:
    """``structures`` of the batch, as bytes: numpy compares the fields of every part, for 40 µs."""
    types = {part.arrays["structures"].dtype for part in parts}
    row_of = types.pop() if len(types) == 1 else row_type(Storage())
    joined = np.zeros(sum(len(part.rows) for part in parts), dtype=row_of)
    for part in parts:
        rows = part.arrays["structures"]
        if rows.dtype == row_of:
            raw = f"V{row_of.itemsize}"
            joined.view(raw)[part.batch_rows] = rows.view(raw)[part.rows]
            continue
        for name in set(row_of.names or ()) - {"padding"}:
            joined[name][part.batch_rows] = rows[name][part.rows]
    return joined
