"""Loading: bins of structure ids -> Graphs, in the order of the plan, read ahead by workers.

A bin is gathered from its shards and checked (batch.py) and turned into tensors with every index
array that a step needs (edge_indices.py), all in the worker and in one block of memory (packed.py)
that the training process receives (shared_memory.py). What a Graph holds depends on its bin alone,
so the number of workers changes nothing.
"""

import multiprocessing
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mace_train.checks import did_you_mean
from mace_train.data.graph import Graph
from mace_train.data.input_values import InputOfStructureError, encoded
from mace_train.data.loading.edge_indices import StructureError, index_edges
from mace_train.data.loading.packed import PackedGraph, n_bytes
from mace_train.data.loading.padding import Shape, pad_batch
from mace_train.data.loading.shared_memory import SharedMemoryPool
from mace_train.data.shards.arrays import Sample
from mace_train.data.shards.batch import Batch
from mace_train.errors import InputError
from mace_train.settings.inputs import InputSpec

Inputs = Sequence[InputSpec]
WEIGHTS = ("weight", "energy_weight", "forces_weight", "stress_weight")
_OF_EDGES = ("senders", "receivers", "shifts", "graph_of_edge", "pairs", "first_of_pair")
_OF_ROWS = ("cell", "pbc", "energy", "stress", "has_energy", "has_forces", "has_stress")


class SampleSource(Protocol):
    """Interface that loading needs: a ShardSet, or structures in memory."""

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
    def head_of(self) -> list[str]:
        """[n] head of every structure."""
        ...

    @property
    def has_stress(self) -> NDArray[np.bool_]:
        """[n] whether a structure has a stress label."""
        ...

    def __len__(self) -> int: ...

    def batch(self, ids: NDArray[np.int64]) -> Batch:
        """The structures ``ids`` [n] with their edges."""
        ...

    def sample(self, index: int) -> Sample:
        """One structure with its edges."""
        ...


@dataclass(frozen=True)
class ConfigTypes:
    """The config_types of a source as names and an index per structure."""

    names: list[str]
    index_of: Tensor  # [n] int64


def config_types_of(source: SampleSource) -> ConfigTypes:
    """Sorted distinct config_types, and which one each structure has."""
    names, index = np.unique(np.asarray(source.config_types, dtype=str), return_inverse=True)
    return ConfigTypes(names.tolist(), torch.as_tensor(index.reshape(-1), dtype=torch.int64))


def heads_of(source: SampleSource, names: Sequence[str], what: str) -> NDArray[np.int64]:
    """[n] index in ``names`` of every structure's head; a single name is that of all structures.

    Raises:
        InputError: a structure has none of several heads; ``what`` names the source in it.
    """
    if len(names) == 1:
        return np.zeros(len(source), dtype=np.int64)
    found, index = np.unique(np.asarray(source.head_of, dtype=str), return_inverse=True)
    unknown = sorted(set(found.tolist()) - set(names))
    if unknown:
        raise InputError(
            f"{what}: structures have the head {', '.join(unknown)}"
            f"{did_you_mean(unknown[0], names)}, but the model's heads are {', '.join(names)}; "
            "name one of these per file or per structure"
        )
    index_of_name = np.array([list(names).index(name) for name in found.tolist()], dtype=np.int64)
    return index_of_name[index.reshape(-1)] if len(found) else np.zeros(0, dtype=np.int64)


def batches(
    source: SampleSource,
    bins: Sequence[NDArray[np.int64]],
    *,
    atomic_numbers: tuple[int, ...],
    dtype: torch.dtype,
    heads: NDArray[np.int64] | None = None,
    inputs: Inputs = (),
    shape: Shape | None = None,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[Graph]:
    """One Graph per bin, in order; an empty bin gives an empty Graph.

    ``heads`` [n] are those of all structures of the source (see ``heads_of``); None is 0 for all.
    ``inputs`` are those of the model beside the geometry (``MACE.inputs``).
    With a ``shape`` all Graphs are padded to it (see padding.py).

    >>> from pathlib import Path
    >>> from mace_train.data.shards.shard_set import ShardSet
    >>> shards = ShardSet(Path("prepared/train"))
    >>> bins = [np.array([0, 2]), np.array([1])]
    >>> for graph in batches(
    ...     shards, bins, atomic_numbers=shards.elements, dtype=torch.float32
    ... ):
    ...     print(graph.ids.tolist(), graph.vectors().shape == (graph.n_edges, 3))
    [0, 2] True
    [1] True
    """
    dataset = _Bins(source, bins, atomic_numbers, dtype, heads, shape, inputs)
    if num_workers:
        dataset.prepare_for(num_workers)
    loader: DataLoader[PackedGraph] = DataLoader(
        dataset,
        batch_size=None,
        num_workers=num_workers,
        pin_memory=pin_memory,
    )
    return map(PackedGraph.graph, iter(loader))  # iter: the workers start now


class _Bins(Dataset[PackedGraph]):
    """Item i is the Graph of bin i, packed."""

    def __init__(
        self,
        source: SampleSource,
        bins: Sequence[NDArray[np.int64]],
        atomic_numbers: tuple[int, ...],
        dtype: torch.dtype,
        heads: NDArray[np.int64] | None,
        shape: Shape | None,
        inputs: Inputs,
    ) -> None:
        self.source, self.bins, self.heads, self.shape = source, bins, heads, shape
        self.inputs = inputs
        self.atomic_numbers, self.dtype = atomic_numbers, dtype
        self.pool: SharedMemoryPool | None = None

    def __len__(self) -> int:
        return len(self.bins)

    def __getitem__(self, index: int) -> PackedGraph:
        return self._read(self.bins[index])

    def prepare_for(self, num_workers: int) -> None:
        """Allocate shared memory for the largest bin, and compile before the workers are forked."""
        first = next((ids for ids in self.bins if len(ids)), None)
        if first is None:
            return
        self._read(first[:1])
        if multiprocessing.get_start_method() == "fork":  # by which they are shared
            with suppress(OSError):  # more than the system gives: torch allocates instead
                self.pool = SharedMemoryPool(num_workers, self._most_bytes())

    def _most_bytes(self) -> int:
        return n_bytes(*self._largest(), self.dtype, len(self.inputs))

    def _largest(self) -> tuple[int, int, int]:
        """Structures, atoms and edges, each as many as any bin has."""
        if self.shape is not None:
            return self.shape.n_graphs, self.shape.n_atoms, self.shape.n_edges
        n_graphs = np.array([len(ids) for ids in self.bins])
        bin_of = np.repeat(np.arange(len(self.bins)), n_graphs)
        ids = np.concatenate(self.bins)
        n_atoms, n_edges = (
            np.bincount(bin_of, counts[ids]).max()
            for counts in (self.source.n_atoms, self.source.n_edges)
        )
        return int(n_graphs.max()), int(n_atoms), int(n_edges)

    def _read(self, ids: NDArray[np.int64]) -> PackedGraph:
        batch = self.source.batch(ids)
        heads = None if self.heads is None else self.heads[ids]
        memory = _Memory(self.pool, self.shape)
        numbers = self.atomic_numbers
        try:
            return packed(batch, ids, numbers, self.dtype, heads, memory, self.inputs)
        except (StructureError, InputOfStructureError) as error:
            name = self.source.sample(int(ids[error.structure])).structure.source
            raise InputError(f"{name}: {error}") from None


def collate(
    samples: Sequence[Sample],
    ids: NDArray[np.int64],
    *,
    atomic_numbers: tuple[int, ...],
    dtype: torch.dtype,
    heads: NDArray[np.int64] | None = None,
    inputs: Inputs = (),
) -> Graph:
    """Concatenate structures, whose ``ids`` and ``heads`` are [n_graphs], into one Graph.

    ``inputs`` are those of the model beside the geometry.
    """
    batch = Batch.of_samples(samples)
    try:
        return packed(batch, ids, atomic_numbers, dtype, heads, inputs=inputs).graph()
    except (StructureError, InputOfStructureError) as error:
        raise InputError(f"{samples[error.structure].structure.source}: {error}") from None


@dataclass(frozen=True)
class _Memory:
    """Where Graphs are written: in a pool if there is one, of one shape if it is given."""

    pool: SharedMemoryPool | None = None
    shape: Shape | None = None

    def empty(
        self, n_graphs: int, n_atoms: int, n_edges: int, dtype: torch.dtype, n_inputs: int
    ) -> PackedGraph:
        """Memory with room for so many structures, atoms and edges."""
        sizes = n_graphs, n_atoms, n_edges
        if self.shape is not None:
            self.shape.check(*sizes)
            sizes = self.shape.n_graphs, self.shape.n_atoms, self.shape.n_edges
        make = PackedGraph.empty if self.pool is None else self.pool.empty
        return make(*sizes, dtype, n_inputs)


def packed(
    batch: Batch,
    ids: NDArray[np.int64],
    atomic_numbers: tuple[int, ...],
    dtype: torch.dtype,
    heads: NDArray[np.int64] | None = None,
    memory: _Memory | None = None,
    inputs: Inputs = (),
) -> PackedGraph:
    """The Graph of a batch, whose structures are ``ids`` [n_graphs] of their split.

    ``heads`` [n_graphs] index the model's; None is 0 for all. ``memory`` is where it is written.

    Raises:
        StructureError: an atomic number that is not among ``atomic_numbers``, or an edge without
            its reverse.
        InputOfStructureError: one of the ``inputs`` is not there, or the model does not take it.
        InputError: the batch is larger than the shape that it is to have.
    """
    n_graphs, rows = len(batch.rows), batch.rows
    sizes = n_graphs, len(batch.numbers), len(batch.senders)
    memory = memory or _Memory()
    result = memory.empty(*sizes, dtype, len(inputs))
    arrays = result.arrays(*sizes)
    index_edges(batch, **{name: arrays.pop(name) for name in _OF_EDGES})
    values: dict[str, NDArray[Any]] = {
        "positions": batch.positions,
        "elements": _elements(batch, atomic_numbers),
        "graph_of_atom": np.repeat(np.arange(n_graphs), batch.n_atoms),
        "n_atoms_of_graph": batch.n_atoms,
        "forces": batch.forces,
        "ids": ids,
        "heads": np.zeros(n_graphs, dtype=np.int64) if heads is None else heads,
        "inputs": encoded(inputs, batch.inputs, batch.n_atoms) if inputs else _none(batch),
        **{name: rows[name] for name in _OF_ROWS},
        **{name: rows["weights"][:, i] for i, name in enumerate(WEIGHTS)},
    }
    for name, array in arrays.items():
        array[...] = values[name]
    if memory.shape is not None:
        pad_batch(result, *sizes, memory.shape.r_max)
    return result


def _none(batch: Batch) -> NDArray[np.float64]:
    """Inputs [n_atoms, 0] of a model that has none."""
    return np.zeros((len(batch.numbers), 0))


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
