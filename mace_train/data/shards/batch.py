"""Batch: many structures as one set of numpy arrays, taken from shards in any order.

A structure costs a compiled copy per array, whether its neighbours in the file are taken as well
or not; what Python does is once per shard and array.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mace_train.data.shards.arrays import (
    OF_ATOMS,
    OF_EDGES,
    Arrays,
    Sample,
    ShardArrays,
    Storage,
    row_type,
)


@dataclass(frozen=True, eq=False)
class ShardRows:
    """Structures of one set of arrays, and where a batch has them."""

    arrays: Arrays
    rows: NDArray[np.int64]  # [n] of the arrays
    places: NDArray[np.int64]  # [n] of the batch


@dataclass(frozen=True, eq=False)
class Batch:
    """Concatenated structures; indices of atoms count from 0 in each."""

    rows: NDArray[Any]  # [n] see columns.row_type
    n_atoms: NDArray[np.int64]  # [n]
    n_edges: NDArray[np.int64]  # [n]
    numbers: NDArray[Any]  # [n_atoms]
    positions: NDArray[Any]  # [n_atoms, 3] Å
    forces: NDArray[Any]  # [n_atoms, 3] eV/Å, zeros where missing
    senders: NDArray[Any]  # [n_edges]
    receivers: NDArray[Any]  # [n_edges]
    shifts: NDArray[Any]  # [n_edges, 3]

    @classmethod
    def of_samples(cls, samples: Sequence[Sample]) -> "Batch":
        """The batch of structures in memory."""
        columns = ShardArrays(Storage())
        for sample in samples:
            columns.add(sample)
        every = np.arange(len(samples))
        return cls.of_shard_rows([ShardRows(columns.arrays(), every, every)])

    @classmethod
    def of_shard_rows(cls, pieces: Sequence[ShardRows]) -> "Batch":
        """All structures of the pieces, whose places are 0, 1, ...; at least one piece."""
        n_atoms, of_atoms = _joined(pieces, OF_ATOMS, "atom_offsets")
        n_edges, of_edges = _joined(pieces, OF_EDGES, "edge_offsets")
        return cls(_rows(pieces), n_atoms, n_edges, *of_atoms, *of_edges)


def _joined(
    pieces: Sequence[ShardRows], names: Sequence[str], offsets: str
) -> tuple[NDArray[np.int64], list[NDArray[Any]]]:
    """Elements of every structure [n], and the arrays of the batch in the widest type."""
    from mace_train.data.shards.gather import take  # numba: 0.5 s that preprocessing does not need

    counts = np.empty(sum(len(piece.rows) for piece in pieces), dtype=np.int64)
    for piece in pieces:
        bounds = piece.arrays[offsets]
        counts[piece.places] = bounds[piece.rows + 1] - bounds[piece.rows]
    starts = counts.cumsum() - counts
    n, joined = int(counts.sum()), []
    for name in names:
        sources = [piece.arrays[name] for piece in pieces]
        types = {source.dtype for source in sources}
        dtype = types.pop() if len(types) == 1 else np.result_type(*types)
        target = np.empty((n, *sources[0].shape[1:]), dtype=dtype)
        for piece, source in zip(pieces, sources, strict=True):
            given, wanted = source.reshape(-1), target.reshape(-1)
            if source.dtype == dtype:  # as bytes: one machine code for all types
                given, wanted = given.view(np.uint8), wanted.view(np.uint8)
            width = len(given) // max(len(source), 1)
            chosen = starts[piece.places]
            take(given, piece.arrays[offsets], piece.rows, width, wanted, chosen)
        joined.append(target)
    return counts, joined


def _rows(pieces: Sequence[ShardRows]) -> NDArray[Any]:
    """``structures`` of the batch, as bytes: numpy compares the fields of every part, for 40 µs."""
    types = {piece.arrays["structures"].dtype for piece in pieces}
    row_of = types.pop() if len(types) == 1 else row_type(Storage())
    joined = np.zeros(sum(len(piece.rows) for piece in pieces), dtype=row_of)
    for piece in pieces:
        rows = piece.arrays["structures"]
        if rows.dtype == row_of:
            raw = f"V{row_of.itemsize}"
            joined.view(raw)[piece.places] = rows.view(raw)[piece.rows]
            continue
        for name in set(row_of.names or ()) - {"padding"}:
            joined[name][piece.places] = rows[name][piece.rows]
    return joined
