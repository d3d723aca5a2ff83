"""A batch of four structures with random labels, and random predictions for it."""

import torch

from mace_train.data.graph import Graph
from mace_train.model.derivatives import Prediction

SIZES = (3, 1, 5, 2)


def batch(missing: bool) -> Graph:
    """Random labels for four structures; ``missing`` takes some away and leaves junk behind."""
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    n, n_atoms = len(SIZES), sum(SIZES)
    graph_of_atom = torch.repeat_interleave(torch.arange(n), torch.tensor(SIZES))
    has = torch.tensor([True, not missing, True, not missing])
    other = torch.tensor([not missing, True, True, True])
    none = torch.zeros(0, dtype=torch.int64)
    return Graph(
        positions=random(n_atoms, 3),
        elements=torch.zeros(n_atoms, dtype=torch.int64),
        senders=none,
        receivers=none,
        pairs=none,
        first_of_pair=none,
        shifts=torch.zeros(0, 3, dtype=torch.float64),
        cell=torch.eye(3, dtype=torch.float64) * 4 + 0.1 * random(n, 3, 3),
        pbc=torch.ones(n, 3, dtype=torch.bool),
        graph_of_atom=graph_of_atom,
        graph_of_edge=none,
        n_atoms_of_graph=torch.tensor(SIZES),
        energy=random(n),
        forces=random(n_atoms, 3),
        stress=random(n, 3, 3),
        has_energy=has,
        has_forces=other,
        has_stress=has,
        heads=torch.zeros(n, dtype=torch.int64),
        weight=random(n).abs(),
        energy_weight=random(n).abs(),
        forces_weight=random(n).abs(),
        stress_weight=random(n).abs(),
        ids=torch.arange(n),
        inputs=torch.zeros(n_atoms, 0, dtype=torch.float64),
    )


def prediction_for(graph: Graph) -> Prediction:
    """Random predictions for a batch."""
    generator = torch.Generator().manual_seed(2)
    like = {"generator": generator, "dtype": torch.float64}
    stress = torch.randn(graph.n_graphs, 3, 3, **like)
    volume = torch.linalg.det(graph.cell).abs()[:, None, None]
    return Prediction(
        energy=torch.randn(graph.n_graphs, **like),
        interaction_energy=torch.zeros(graph.n_graphs, dtype=torch.float64),
        forces=torch.randn(graph.n_atoms, 3, **like),
        stress=stress,
        virials=-volume * stress,
        node_energy=torch.zeros(graph.n_atoms, dtype=torch.float64),
    )
