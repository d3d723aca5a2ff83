"""Loading: bins of structure ids -> Graphs, in the order of the plan, read ahead by workers.

A structure costs one slice per field from its shard; a batch is one concatenation per field.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mace_train.data.graph import Graph
from mace_train.data.pairs import pair_edges
from mace_train.data.shards import Sample
from mace_train.errors import InputError


class SampleSource(Protocol):
    """What loading needs: a ShardSet, or structures in memory."""

    @property
    def n_atoms(self) -> NDArray[Any]:
        """[n] atoms of every structure."""
        ...

    @property
    def n_edges(self) -> NDArray[Any]:
        """[n] edges of every structure."""
        ...

    @property
    def config_types(self) -> list[str]:
        """[n] config_type of every structure."""
        ...

    @property
    def has_stress(self) -> NDArray[np.bool_]:
        """[n] whether a structure has a stress label."""
        ...

    def __len__(self) -> int: ...

    def sample(self, index: int) -> Sample:
        """One structure with its edges."""
        ...


@dataclass(frozen=True)
class Kinds:
    """The config_types of a source as names and an index per structure."""

    names: list[str]
    index_of: Tensor  # [n] int64


def kinds_of(source: SampleSource) -> Kinds:
    """Sorted distinct config_types, and which one each structure has."""
    names, index = np.unique(np.asarray(source.config_types, dtype=str), return_inverse=True)
    return Kinds(names.tolist(), torch.as_tensor(index.reshape(-1), dtype=torch.int64))


def batches(
    source: SampleSource,
    bins: Sequence[NDArray[np.int64]],
    *,
    atomic_numbers: tuple[int, ...],
    dtype: torch.dtype,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[Graph]:
    """One Graph per bin, in order; an empty bin gives an empty Graph."""
    loader: DataLoader[Graph] = DataLoader(
        _Bins(source, bins, atomic_numbers, dtype),
        batch_size=None,
        num_workers=num_workers,
        pin_memory=pin_memory,
    )
    return iter(loader)


class _Bins(Dataset[Graph]):
    """Item i is the Graph of bin i."""

    def __init__(
        self,
        source: SampleSource,
        bins: Sequence[NDArray[np.int64]],
        atomic_numbers: tuple[int, ...],
        dtype: torch.dtype,
    ) -> None:
        self.source, self.bins = source, bins
        self.atomic_numbers, self.dtype = atomic_numbers, dtype

    def __len__(self) -> int:
        return len(self.bins)

    def __getitem__(self, index: int) -> Graph:
        ids = self.bins[index]
        samples = [self.source.sample(int(i)) for i in ids]
        return collate(samples, ids, atomic_numbers=self.atomic_numbers, dtype=self.dtype)


def collate(
    samples: Sequence[Sample],
    ids: NDArray[np.int64],
    *,
    atomic_numbers: tuple[int, ...],
    dtype: torch.dtype,
) -> Graph:
    """Concatenate structures into one Graph; ``ids`` [n_graphs] names them in messages."""
    structures = [sample.structure for sample in samples]
    n_atoms = np.array([len(s.numbers) for s in structures], dtype=np.int64)
    n_edges = np.array([len(sample.edges.senders) for sample in samples], dtype=np.int64)
    first_atom = np.cumsum(n_atoms) - n_atoms
    graphs = np.arange(len(samples))

    def floats(arrays: list[Any], *shape: int) -> Tensor:
        joined = np.concatenate([np.zeros((0, *shape)), *arrays])
        return torch.as_tensor(joined).to(dtype)

    def scalars(values: list[Any], kind: torch.dtype = dtype) -> Tensor:
        return torch.tensor(values, dtype=kind)

    def integers(arrays: list[Any]) -> Tensor:
        return torch.as_tensor(np.concatenate([np.zeros(0, dtype=np.int64), *arrays]))

    zero = np.zeros((3, 3))
    pairs = [pair_edges(x.edges, x.structure.source) for x in samples]
    n_pairs = np.array([len(first) for _, first in pairs], dtype=np.int64)
    first_pair, first_edge = np.cumsum(n_pairs) - n_pairs, np.cumsum(n_edges) - n_edges
    return Graph(
        positions=floats([s.positions for s in structures], 3),
        elements=_elements(samples, atomic_numbers),
        senders=integers(
            [x.edges.senders + first for x, first in zip(samples, first_atom, strict=True)]
        ),
        receivers=integers(
            [x.edges.receivers + first for x, first in zip(samples, first_atom, strict=True)]
        ),
        pairs=integers([own + start for (own, _), start in zip(pairs, first_pair, strict=True)]),
        first_of_pair=integers(
            [first + start for (_, first), start in zip(pairs, first_edge, strict=True)]
        ),
        shifts=floats([x.edges.shifts for x in samples], 3),
        cell=floats([s.cell[None] for s in structures], 3, 3),
        pbc=torch.as_tensor(np.array([s.pbc for s in structures], dtype=bool).reshape(-1, 3)),
        graph_of_atom=torch.as_tensor(np.repeat(graphs, n_atoms)),
        graph_of_edge=torch.as_tensor(np.repeat(graphs, n_edges)),
        n_atoms_of_graph=torch.as_tensor(n_atoms),
        energy=scalars([s.energy or 0.0 for s in structures], torch.float64),
        forces=floats(
            [np.zeros_like(s.positions) if s.forces is None else s.forces for s in structures], 3
        ),
        stress=floats([(zero if s.stress is None else s.stress)[None] for s in structures], 3, 3),
        has_energy=scalars([s.energy is not None for s in structures], torch.bool),
        has_forces=scalars([s.forces is not None for s in structures], torch.bool),
        has_stress=scalars([s.stress is not None for s in structures], torch.bool),
        weight=scalars([s.weight for s in structures]),
        energy_weight=scalars([s.energy_weight for s in structures]),
        forces_weight=scalars([s.forces_weight for s in structures]),
        stress_weight=scalars([s.stress_weight for s in structures]),
        ids=torch.as_tensor(np.asarray(ids, dtype=np.int64)),
    )


def _elements(samples: Sequence[Sample], atomic_numbers: tuple[int, ...]) -> Tensor:
    """[n_atoms] index of every atom's element; InputError for one the model does not know."""
    index_of = np.full(max((*atomic_numbers, 118)) + 1, -1, dtype=np.int64)
    index_of[list(atomic_numbers)] = np.arange(len(atomic_numbers))
    parts = [np.zeros(0, dtype=np.int64)]
    for sample in samples:
        elements = index_of[sample.structure.numbers]
        if (elements < 0).any():
            unknown = sorted(set(sample.structure.numbers[elements < 0].tolist()))
            raise InputError(
                f"{sample.structure.source}: atomic numbers {unknown} are not among those of the "
                f"model ({list(atomic_numbers)}); train on data that has them"
            )
        parts.append(elements)
    return torch.as_tensor(np.concatenate(parts))
