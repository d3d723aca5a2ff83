"""Batch: many structures as one set of numpy arrays, taken from shards in any order.

A structure costs a compiled copy per array, whether its neighbours in the file are taken as well
or not; what Python does is once per shard and array.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mace_train.data.columns import OF_ATOMS, OF_EDGES, Arrays, Columns, Sample, Storage, row_type


@dataclass(frozen=True, eq=False)
class Piece:
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
        columns = Columns(Storage())
        for sample in samples:
            columns.add(sample)
        every = np.arange(len(samples))
        return cls.of_pieces([Piece(columns.arrays(), every, every)])

    @classmethod
    def of_pieces(cls, pieces: Sequence[Piece]) -> "Batch":
        """All structures of the pieces, whose places are 0, 1, ...; at least one piece."""
        n_atoms, n_edges = _counts(pieces, "atom_offsets"), _counts(pieces, "edge_offsets")
        return cls(
            rows=_rows(pieces),
            n_atoms=n_atoms,
            n_edges=n_edges,
            **{name: _joined(pieces, name, "atom_offsets", n_atoms) for name in OF_ATOMS},
            **{name: _joined(pieces, name, "edge_offsets", n_edges) for name in OF_EDGES},
        )


def _counts(pieces: Sequence[Piece], offsets: str) -> NDArray[np.int64]:
    """[n] atoms or edges of every structure of the batch."""
    counts = np.empty(sum(len(piece.rows) for piece in pieces), dtype=np.int64)
    for piece in pieces:
        bounds = piece.arrays[offsets]
        counts[piece.places] = bounds[piece.rows + 1] - bounds[piece.rows]
    return counts


def _rows(pieces: Sequence[Piece]) -> NDArray[Any]:
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


def _joined(
    pieces: Sequence[Piece], name: str, offsets: str, counts: NDArray[np.int64]
) -> NDArray[Any]:
    """One array of the batch, in the widest type of its pieces."""
    from mace_train.data.gather import take  # numba: 0.5 s that preprocessing does not need

    sources = [piece.arrays[name] for piece in pieces]
    ends = np.cumsum(counts)
    n = int(ends[-1]) if len(ends) else 0
    target = np.empty((n, *sources[0].shape[1:]), dtype=np.result_type(*sources))
    width, starts = int(np.prod(target.shape[1:])), ends - counts
    for piece, source in zip(pieces, sources, strict=True):
        place = starts[piece.places]
        flat = target.reshape(-1)
        take(source.reshape(-1), piece.arrays[offsets], piece.rows, width, flat, place)
    return target
