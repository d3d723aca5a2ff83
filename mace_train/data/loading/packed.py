"""PackedGraph: a Graph whose tensors lie one after the other in one block of memory.

A worker's Graph reaches the training process as one shared and one pinned block, and a GPU by one
copy, not as one of each for every tensor.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

import torch
from numpy.typing import NDArray
from torch import Tensor

from mace_train.data.graph import Graph

_ALIGNMENT = 64  # bytes
_FLOAT, _INDEX, _TRUTH = None, torch.int64, torch.bool  # None: the type of the Graph
# type and shape of every tensor; sizes are of structures, atoms, edges or pairs
_LAYOUT: dict[str, tuple[torch.dtype | None, tuple[Any, ...]]] = {
    "positions": (_FLOAT, ("atoms", 3)),
    "elements": (_INDEX, ("atoms",)),
    "senders": (_INDEX, ("edges",)),
    "receivers": (_INDEX, ("edges",)),
    "pairs": (_INDEX, ("edges",)),
    "first_of_pair": (_INDEX, ("pairs",)),
    "shifts": (_FLOAT, ("edges", 3)),
    "cell": (_FLOAT, ("graphs", 3, 3)),
    "pbc": (_TRUTH, ("graphs", 3)),
    "graph_of_atom": (_INDEX, ("atoms",)),
    "graph_of_edge": (_INDEX, ("edges",)),
    "n_atoms_of_graph": (_INDEX, ("graphs",)),
    "energy": (torch.float64, ("graphs",)),
    "forces": (_FLOAT, ("atoms", 3)),
    "stress": (_FLOAT, ("graphs", 3, 3)),
    "has_energy": (_TRUTH, ("graphs",)),
    "has_forces": (_TRUTH, ("graphs",)),
    "has_stress": (_TRUTH, ("graphs",)),
    "heads": (_INDEX, ("graphs",)),
    "weight": (_FLOAT, ("graphs",)),
    "energy_weight": (_FLOAT, ("graphs",)),
    "forces_weight": (_FLOAT, ("graphs",)),
    "stress_weight": (_FLOAT, ("graphs",)),
    "ids": (_INDEX, ("graphs",)),
    "inputs": (_FLOAT, ("atoms", "inputs")),
}

_TYPES = (torch.float64, _INDEX, _TRUTH)
# name, dtype, shape, offset of the first element, strides
TensorSpec = tuple[str, torch.dtype, tuple[int, ...], int, tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class PackedGraph:
    """The memory of a Graph, and its sizes."""

    memory: Tensor  # [n] uint8
    n_graphs: int
    n_atoms: int
    n_edges: int
    dtype: torch.dtype
    n_inputs: int = 0

    @classmethod
    def empty(
        cls, n_graphs: int, n_atoms: int, n_edges: int, dtype: torch.dtype, n_inputs: int = 0
    ) -> Self:
        """Memory that has not been written, for a Graph with floats of ``dtype``."""
        sizes = (n_graphs, n_atoms, n_edges, dtype, n_inputs)
        return cls(torch.empty(n_bytes(*sizes), dtype=torch.uint8), *sizes)

    @classmethod
    def of(cls, graph: Graph) -> "PackedGraph":
        """The memory of ``graph`` if it is packed, else of a packed copy; on the host."""
        memory = packed_memory(graph)
        if memory is None:
            sizes = graph.n_graphs, graph.n_atoms, graph.n_edges
            memory = cls.empty(*sizes, graph.positions.dtype, graph.inputs.shape[1])
            for name, array in memory.arrays().items():
                array[...] = getattr(graph, name).numpy()
        return memory

    @property
    def sizes(self) -> tuple[int, int, int, torch.dtype, int]:
        """Structures, atoms, edges, the type of floats and the number of inputs."""
        return self.n_graphs, self.n_atoms, self.n_edges, self.dtype, self.n_inputs

    def graph(self) -> Graph:
        """The Graph, whose tensors are views."""
        views = {
            tensor_dtype: self.memory.view(tensor_dtype) for tensor_dtype in {self.dtype, *_TYPES}
        }
        return Graph(
            **{
                name: views[tensor_dtype].as_strided(shape, strides, first)
                for name, tensor_dtype, shape, first, strides in self._specs()
            }
        )

    def arrays(self, *sizes: int) -> dict[str, NDArray[Any]]:
        """The tensors as writable arrays by name, shapes as in Graph.

        ``sizes``: only the first so many structures, atoms and edges.
        """
        views = {
            tensor_dtype: self.memory.view(tensor_dtype).numpy()
            for tensor_dtype in {self.dtype, *_TYPES}
        }
        lengths = _lengths(*(sizes or self.sizes[:3]))
        return {
            name: views[tensor_dtype][first : first + lengths[name] * step].reshape(
                lengths[name], *shape[1:]
            )
            for name, tensor_dtype, shape, first, (step, *_) in self._specs()
        }

    def to(self, device: torch.device) -> "PackedGraph":
        """The same on another device, by one copy that overlaps with computation if it can."""
        return PackedGraph(self.memory.to(device, non_blocking=True), *self.sizes)

    def _specs(self) -> tuple[TensorSpec, ...]:
        return _specs(*self.sizes)

    def pin_memory(self) -> "PackedGraph":
        """The same in page-locked memory (called by torch's DataLoader)."""
        return PackedGraph(self.memory.pin_memory(), *self.sizes)


def packed_memory(graph: Graph) -> PackedGraph | None:
    """The memory that all tensors of ``graph`` are views of, laid out as a PackedGraph, if so."""
    dtype, storage = graph.positions.dtype, graph.positions.untyped_storage()
    sizes = graph.n_graphs, graph.n_atoms, graph.n_edges, dtype, graph.inputs.shape[1]
    size, begin = n_bytes(*sizes), graph.positions.storage_offset() * dtype.itemsize
    for name, tensor_dtype, shape, first, _ in _specs(*sizes):
        tensor: Tensor = getattr(graph, name)
        is_own = tensor.untyped_storage().data_ptr() == storage.data_ptr()
        is_there = (tensor.storage_offset() - first) * tensor_dtype.itemsize == begin
        is_alike = tensor.dtype == tensor_dtype and tensor.shape == shape and tensor.is_contiguous()
        if not (is_own and is_there and is_alike):
            return None
    memory = torch.empty(0, dtype=torch.uint8, device=graph.positions.device)
    return PackedGraph(memory.set_(storage, begin, (size,), (1,)), *sizes)


def on_device(graph: Graph, device: torch.device) -> Graph:
    """``graph`` on a device; by one copy if it is packed."""
    if graph.positions.device == device:
        return graph
    memory = packed_memory(graph)
    return graph.to(device) if memory is None else memory.to(device).graph()


def names_of(axis: str) -> set[str]:
    """Tensors of a Graph with a row for each of the "graphs", "atoms", "edges" or "pairs"."""
    return {name for name, (_, axes) in _LAYOUT.items() if axes[0] == axis}


def _lengths(n_graphs: int, n_atoms: int, n_edges: int) -> dict[str, int]:
    """Rows of every tensor."""
    sizes = {"graphs": n_graphs, "atoms": n_atoms, "edges": n_edges, "pairs": n_edges // 2}
    return {name: sizes[axes[0]] for name, (_, axes) in _LAYOUT.items()}


@lru_cache(maxsize=16)
def _specs(
    n_graphs: int, n_atoms: int, n_edges: int, dtype: torch.dtype, n_inputs: int
) -> tuple[TensorSpec, ...]:
    """Dtype, shape and offset of every tensor."""
    lengths = _lengths(n_graphs, n_atoms, n_edges)
    end, specs = 0, []
    for name, (own_dtype, axes) in _LAYOUT.items():
        tensor_dtype = own_dtype or dtype
        row = tuple(n_inputs if size == "inputs" else size for size in axes[1:])
        shape = (lengths[name], *row)
        strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
        specs.append((name, tensor_dtype, shape, end // tensor_dtype.itemsize, strides))
        end += -(-math.prod(shape) * tensor_dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
    return tuple(specs)


def n_bytes(
    n_graphs: int, n_atoms: int, n_edges: int, dtype: torch.dtype, n_inputs: int = 0
) -> int:
    """Bytes of all tensors of a Graph."""
    specs = _specs(n_graphs, n_atoms, n_edges, dtype, n_inputs)
    _, tensor_dtype, shape, first, _ = specs[-1]
    end = (first + math.prod(shape)) * tensor_dtype.itemsize
    return -(-end // _ALIGNMENT) * _ALIGNMENT
