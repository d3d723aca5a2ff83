"""Structures on which two models are compared: every element, close pairs, a crystal, an atom."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from ase import Atoms

from mace_train.data.graph import Graph
from mace_train.data.loading.loader import collate
from mace_train.data.shards.shard_set import sample_of
from mace_train.data.structure import Structure
from mace_train.settings.inputs import InputSpec

ATOMS_PER_CLUSTER = 10


def probe_structures(atomic_numbers: list[int], r_max: float) -> list[Atoms]:
    """Clusters of all elements, 0.7 to 1.7 Å apart; a sheared cell; and an isolated atom."""
    random = np.random.RandomState(7)
    corners = np.stack(np.meshgrid(*[np.arange(3)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    structures = []
    n_clusters = -(-len(atomic_numbers) // ATOMS_PER_CLUSTER)
    for numbers in np.array_split(np.array(atomic_numbers), n_clusters):
        filled = np.resize(numbers, max(len(numbers), 5))
        grid = 1.2 * corners[random.permutation(len(corners))[: len(filled)]]
        moved = grid + 0.25 * random.uniform(-1, 1, grid.shape)
        structures.append(Atoms(filled, positions=moved))
    side = max(2.5, 0.6 * r_max)
    cell = side * (np.eye(3) + 0.1 * random.standard_normal((3, 3)))
    inside = np.array([[0.1, 0.1, 0.1], [0.55, 0.6, 0.65], [0.6, 0.1, 0.4]])
    numbers_inside = np.resize(atomic_numbers[::-1], 3)
    structures.append(Atoms(numbers_inside, scaled_positions=inside, cell=cell, pbc=True))
    structures.append(Atoms([atomic_numbers[0]], positions=[[0.0, 0.0, 0.0]]))
    return structures


def graph_of(structures: list[Atoms], atomic_numbers: list[int], r_max: float) -> Graph:
    """One graph of ASE structures without labels, float64."""
    samples = [sample_of(Structure.unlabelled(atoms), r_max) for atoms in structures]
    return collate(
        samples,
        np.arange(len(samples)),
        atomic_numbers=tuple(atomic_numbers),
        dtype=torch.float64,
    )


def probes(atomic_numbers: list[int], r_max: float, specs: Sequence[InputSpec] = ()) -> Graph:
    """The graph of all probe structures, with inputs that differ; the same in every process."""
    graph = graph_of(probe_structures(atomic_numbers, r_max), atomic_numbers, r_max)
    return with_probe_inputs(graph, specs)


def with_probe_inputs(graph: Graph, specs: Sequence[InputSpec]) -> Graph:
    """The graph with other classes, or numbers, for each structure or atom."""
    inputs = graph.positions.new_zeros(graph.n_atoms, len(specs))
    for i, spec in enumerate(specs):
        of = graph.graph_of_atom if spec.per == "graph" else torch.arange(graph.n_atoms)
        number = 3 * of + i + 1
        inputs[:, i] = number % spec.num_classes if spec.is_class else torch.cos(1.0 * number)
    return replace(graph, inputs=inputs)
