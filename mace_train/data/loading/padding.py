"""Batches of one shape: padded with atoms, edges and structures that change no result.

One more structure takes all atoms that are added, and further ones are empty. The added atoms have
edges only to themselves, twice the cutoff long, in pairs of opposite sign: their messages and all
derivatives are exactly zero; the added structures have no label and weight 0, and their id is -1.
With every bin of one shape, a step can be captured once (CUDA graphs) or compiled without dynamic
shapes. Loading pads where it packs (loader.py), ``padded`` does it with a Graph.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from mace_train.data.graph import Graph
from mace_train.data.loading.packed import PackedGraph, names_of
from mace_train.errors import InputError

_NOT_ZERO = {"cell", "n_atoms_of_graph", "ids", "graph_of_atom"}


@dataclass(frozen=True)
class Shape:
    """Sizes of every batch; the number of edges is even, as edges come in pairs."""

    n_graphs: int
    n_atoms: int
    n_edges: int
    r_max: float  # the model's cutoff, Å

    def check(self, n_graphs: int, n_atoms: int, n_edges: int) -> None:
        """InputError if a batch leaves no room for one structure and one atom more."""
        more_edges = self.n_edges - n_edges
        fits = n_graphs < self.n_graphs and n_atoms < self.n_atoms and more_edges >= 0
        if not fits or more_edges % 2:
            raise InputError(
                f"a batch of {n_graphs} structures, {n_atoms} atoms and {n_edges} "
                f"edges leaves no room in {self}; one structure and one atom are added at least, "
                "and edges in pairs"
            )


def padded(graph: Graph, shape: Shape) -> Graph:
    """``graph``, on the host, padded to ``shape`` in memory of its own, packed.

    Raises:
        InputError: at least one structure is added, and one atom, and there is no room for them.
    """
    sizes = graph.n_graphs, graph.n_atoms, graph.n_edges
    shape.check(*sizes)
    room = shape.n_graphs, shape.n_atoms, shape.n_edges
    memory = PackedGraph.empty(*room, graph.positions.dtype, graph.inputs.shape[1])
    for name, array in memory.arrays(*sizes).items():
        array[...] = getattr(graph, name).numpy()
    pad_batch(memory, *sizes, shape.r_max)
    return memory.graph()


def pad_batch(memory: PackedGraph, n_graphs: int, n_atoms: int, n_edges: int, r_max: float) -> None:
    """Write the padding of a batch of so many structures, atoms and edges into ``memory``."""
    arrays = memory.arrays()
    more_atoms, more_pairs = memory.n_atoms - n_atoms, (memory.n_edges - n_edges) // 2
    pairs = np.arange(more_pairs)
    ends = np.repeat(n_atoms + pairs * more_atoms // max(more_pairs, 1), 2)
    of_edges: dict[str, Any] = {
        "senders": ends,
        "receivers": ends,
        "pairs": np.repeat(n_edges // 2 + pairs, 2),
        "shifts": np.tile([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]], (more_pairs, 1)),
        "graph_of_edge": n_graphs,
    }
    for name, values in of_edges.items():
        arrays[name][n_edges:] = values
    arrays["first_of_pair"][n_edges // 2 :] = n_edges + 2 * pairs
    for axis, first in (("atoms", n_atoms), ("graphs", n_graphs)):
        for name in names_of(axis) - _NOT_ZERO:
            arrays[name][first:] = 0
    arrays["graph_of_atom"][n_atoms:] = n_graphs
    arrays["cell"][n_graphs:] = 2.0 * r_max * np.eye(3)
    arrays["n_atoms_of_graph"][n_graphs:] = 1  # of an empty one: it divides
    arrays["n_atoms_of_graph"][n_graphs] = more_atoms
    arrays["ids"][n_graphs:] = -1
