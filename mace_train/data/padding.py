"""Batches of one shape: filled up with atoms, edges and structures that change no result.

One more structure takes all atoms that are added, and further ones are empty. The added atoms have
edges only to themselves, twice the cutoff long, forth and back in pairs, so their messages and all
derivatives are exactly zero; the added structures have no label and weight 0, and their id is -1.
With every bin of one shape, a step can be captured once (CUDA graphs) or compiled without dynamic
shapes.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mace_train.data.graph import Graph
from mace_train.errors import InputError


@dataclass(frozen=True)
class Shape:
    """Sizes of every batch; the number of edges is even, as edges come in pairs."""

    n_graphs: int
    n_atoms: int
    n_edges: int


def padded(graph: Graph, shape: Shape, r_max: float) -> Graph:
    """``graph`` filled up to ``shape``; InputError if it is larger.

    At least one structure is added, and one atom.
    """
    n_graphs = shape.n_graphs - graph.n_graphs
    n_atoms, n_edges = shape.n_atoms - graph.n_atoms, shape.n_edges - graph.n_edges
    if n_graphs < 1 or n_atoms < 1 or n_edges < 0 or n_edges % 2:
        raise InputError(
            f"a batch of {graph.n_graphs} structures, {graph.n_atoms} atoms and {graph.n_edges} "
            f"edges leaves no room in {shape}; one structure and one atom are added at least, and "
            "edges in pairs"
        )
    new_atoms = torch.arange(graph.n_atoms, shape.n_atoms)
    n_pairs = n_edges // 2
    ends = new_atoms[torch.from_numpy(np.arange(n_pairs) * n_atoms // max(n_pairs, 1))]
    ends = ends.repeat_interleave(2)
    forth_and_back = graph.shifts.new_tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])
    new_pairs = torch.arange(n_pairs)
    cell = 2.0 * r_max * torch.eye(3, dtype=graph.cell.dtype).expand(n_graphs, 3, 3)
    n_atoms_of_graph = torch.ones(n_graphs, dtype=torch.int64)  # of an empty one: it divides
    n_atoms_of_graph[0] = n_atoms
    first = graph.n_graphs

    def zeros(like: Tensor, n: int) -> Tensor:
        return torch.cat((like, like.new_zeros(n, *like.shape[1:])))

    return Graph(
        positions=zeros(graph.positions, n_atoms),
        elements=zeros(graph.elements, n_atoms),
        senders=torch.cat((graph.senders, ends)),
        receivers=torch.cat((graph.receivers, ends)),
        pairs=torch.cat((graph.pairs, len(graph.first_of_pair) + new_pairs.repeat_interleave(2))),
        first_of_pair=torch.cat((graph.first_of_pair, graph.n_edges + 2 * new_pairs)),
        shifts=torch.cat((graph.shifts, forth_and_back.repeat(n_pairs, 1))),
        cell=torch.cat((graph.cell, cell)),
        pbc=zeros(graph.pbc, n_graphs),
        graph_of_atom=torch.cat((graph.graph_of_atom, torch.full((n_atoms,), first))),
        graph_of_edge=torch.cat((graph.graph_of_edge, torch.full((n_edges,), first))),
        n_atoms_of_graph=torch.cat((graph.n_atoms_of_graph, n_atoms_of_graph)),
        energy=zeros(graph.energy, n_graphs),
        forces=zeros(graph.forces, n_atoms),
        stress=zeros(graph.stress, n_graphs),
        has_energy=zeros(graph.has_energy, n_graphs),
        has_forces=zeros(graph.has_forces, n_graphs),
        has_stress=zeros(graph.has_stress, n_graphs),
        heads=zeros(graph.heads, n_graphs),
        weight=zeros(graph.weight, n_graphs),
        energy_weight=zeros(graph.energy_weight, n_graphs),
        forces_weight=zeros(graph.forces_weight, n_graphs),
        stress_weight=zeros(graph.stress_weight, n_graphs),
        ids=torch.cat((graph.ids, torch.full((n_graphs,), -1))),
    )
