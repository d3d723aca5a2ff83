"""Loading: bins of structure ids -> Graphs, in the order of the plan, read ahead by workers.

A bin is read as runs of neighbouring structures (batch.py), checked, and turned into tensors with
every index array that a step needs, all in the worker; the process that trains only receives. What
a Graph holds depends on its bin alone, so the number of workers changes nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mace_train.data.batch import Batch
from mace_train.data.columns import Sample
from mace_train.data.graph import Graph
from mace_train.data.neighbors import Edges
from mace_train.data.pairs import pair_edges
from mace_train.errors import InputError

WEIGHTS = ("weight", "energy_weight", "forces_weight", "stress_weight")


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

    def batch(self, ids: NDArray[np.int64]) -> Batch:
        """The structures ``ids`` with their edges."""
        ...

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
        batch = self.source.batch(ids)
        try:
            return graph_of(batch, ids, atomic_numbers=self.atomic_numbers, dtype=self.dtype)
        except StructureError as error:
            name = self.source.sample(int(ids[error.structure])).structure.source
            raise InputError(f"{name}: {error}") from None


def collate(
    samples: Sequence[Sample],
    ids: NDArray[np.int64],
    *,
    atomic_numbers: tuple[int, ...],
    dtype: torch.dtype,
) -> Graph:
    """Concatenate structures into one Graph; ``ids`` [n_graphs] names them in messages."""
    batch = Batch.of_samples(samples)
    try:
        return graph_of(batch, ids, atomic_numbers=atomic_numbers, dtype=dtype)
    except StructureError as error:
        raise InputError(f"{samples[error.structure].structure.source}: {error}") from None


class StructureError(ValueError):
    """A structure of a batch cannot be used."""

    def __init__(self, structure: int, message: str) -> None:
        super().__init__(message)
        self.structure = structure  # number in the batch


def graph_of(
    batch: Batch,
    ids: NDArray[np.int64],
    *,
    atomic_numbers: tuple[int, ...],
    dtype: torch.dtype,
) -> Graph:
    """The Graph of a batch, whose structures are ``ids`` [n_graphs] of their split.

    Raises:
        StructureError: an atomic number that is not among ``atomic_numbers``, or an edge without
            its reverse.
    """
    n_graphs, rows = len(batch.rows), batch.rows
    first_atom = np.cumsum(batch.n_atoms) - batch.n_atoms
    first_of_edge = np.repeat(first_atom, batch.n_edges)
    edges = Edges(
        batch.senders + first_of_edge,
        batch.receivers + first_of_edge,
        batch.shifts.astype(np.int64),
    )
    pairs, first_of_pair = _pairs(batch, edges)
    precision = np.float64 if dtype == torch.float64 else np.float32

    def floats(array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array.astype(precision)).to(dtype)

    def truth(array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array.astype(bool))

    def integers(array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array.astype(np.int64))

    return Graph(
        positions=floats(batch.positions),
        elements=torch.from_numpy(_elements(batch, atomic_numbers)),
        senders=torch.from_numpy(edges.senders),
        receivers=torch.from_numpy(edges.receivers),
        pairs=torch.from_numpy(pairs),
        first_of_pair=torch.from_numpy(first_of_pair),
        shifts=floats(batch.shifts),
        cell=floats(rows["cell"]),
        pbc=truth(rows["pbc"]),
        graph_of_atom=torch.from_numpy(np.repeat(np.arange(n_graphs), batch.n_atoms)),
        graph_of_edge=torch.from_numpy(np.repeat(np.arange(n_graphs), batch.n_edges)),
        n_atoms_of_graph=integers(batch.n_atoms),
        energy=torch.from_numpy(rows["energy"].astype(np.float64)),
        forces=floats(batch.forces),
        stress=floats(rows["stress"]),
        has_energy=truth(rows["has_energy"]),
        has_forces=truth(rows["has_forces"]),
        has_stress=truth(rows["has_stress"]),
        **{name: floats(rows["weights"][:, i]) for i, name in enumerate(WEIGHTS)},
        ids=integers(np.asarray(ids)),
    )


def _pairs(batch: Batch, edges: Edges) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of edges (see ``pair_edges``) of all structures at once: no edge joins two of them."""
    try:
        return pair_edges(edges, "batch")
    except InputError:
        ends = np.cumsum(batch.n_edges)
        for structure, (begin, end) in enumerate(zip(ends - batch.n_edges, ends, strict=True)):
            part = Edges(*(array[begin:end] for array in vars(edges).values()))
            try:
                pair_edges(part, "structure")
            except InputError as error:
                raise StructureError(structure, str(error)) from None
        raise


def _elements(batch: Batch, atomic_numbers: tuple[int, ...]) -> NDArray[np.int64]:
    """[n_atoms] index of every atom's element."""
    index_of = np.full(256, -1, dtype=np.int64)
    index_of[list(atomic_numbers)] = np.arange(len(atomic_numbers))
    elements = index_of[batch.numbers]
    if len(elements) and elements.min() < 0:
        atom = int(np.argmin(elements))
        structure = int(np.searchsorted(np.cumsum(batch.n_atoms), atom, side="right"))
        unknown = sorted(set(batch.numbers[elements < 0].tolist()))
        raise StructureError(
            structure,
            f"atomic numbers {unknown} are not among those of the model "
            f"({list(atomic_numbers)}); train on data that has them",
        )
    return elements
