"""Batch: many structures as one set of numpy arrays, taken from shards in few slices.

Consecutive structures of one shard are one slice of each array, so a bin that is a run of
structures costs as many copies as there are arrays, and a scattered one a slice per structure
and array (0.2 µs each beside the bytes). Every structure's checksum is compared on the way.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mace_train.data.columns import OF_ATOMS, OF_EDGES, Arrays, Columns, Sample, Storage

Run = tuple[Arrays, int, int]  # structures first to last - 1 of the arrays of a shard


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
        return cls.of_runs([(columns.arrays(), 0, len(samples))])

    @classmethod
    def of_runs(cls, runs: Sequence[Run]) -> "Batch":
        """The structures of all runs, one after the other; at least one run."""

        def cut(name: str, offsets: str) -> NDArray[Any]:
            parts = [a[name][a[offsets][i] : a[offsets][j]] for a, i, j in runs]
            return parts[0] if len(parts) == 1 else np.concatenate(parts)

        def counts(offsets: str) -> NDArray[np.int64]:
            return np.concatenate([np.diff(a[offsets][i : j + 1]) for a, i, j in runs])

        return cls(
            rows=_joined_rows([a["structures"][i:j] for a, i, j in runs]),
            n_atoms=counts("atom_offsets"),
            n_edges=counts("edge_offsets"),
            **{name: cut(name, "atom_offsets") for name in OF_ATOMS},
            **{name: cut(name, "edge_offsets") for name in OF_EDGES},
        )


def _joined_rows(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Rows of one type, as bytes: numpy compares the fields of every part, for 40 µs each."""
    row_type = parts[0].dtype
    return np.concatenate([part.view(f"V{row_type.itemsize}") for part in parts]).view(row_type)
