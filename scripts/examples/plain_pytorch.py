"""Bins of shards in a training loop of plain PyTorch: no other part of mace-train is used.

    python scripts/examples/plain_pytorch.py DATA_DIR

The model is a sum of pair energies, one for every two elements; forces are its derivative.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mace_train.data.graph import Graph
from mace_train.data.loading import batches
from mace_train.data.shards import ShardSet


class PairEnergy(nn.Module):
    """Energy of interaction, eV, as a sum over edges of a function of the distance."""

    def __init__(self, n_elements: int, n_radial: int = 8) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(n_elements, n_elements, n_radial))
        self.register_buffer("centres", torch.linspace(0.7, 4.0, n_radial))

    def forward(self, graph: Graph) -> Tensor:
        """[n_graphs] eV."""
        distances = graph.vectors().norm(dim=1)
        radial = torch.exp(-4 * (distances[:, None] - self.centres) ** 2)
        weights = self.weights[graph.elements[graph.senders], graph.elements[graph.receivers]]
        of_edge = (weights * radial).sum(dim=1)
        return torch.zeros(graph.n_graphs).index_add(0, graph.graph_of_edge, of_edge)


def main() -> None:
    """Train for a few epochs on forces and print the loss."""
    shards = ShardSet(Path(sys.argv[1]) / "train")
    model = PairEnergy(len(shards.elements))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for epoch in range(5):
        order = np.random.default_rng(epoch).permutation(len(shards))
        bins = np.array_split(order, max(1, len(order) // 8))
        total, n_components = 0.0, 0
        for graph in batches(
            shards, bins, atomic_numbers=shards.elements, dtype=torch.float32, num_workers=1
        ):
            graph.positions.requires_grad_()
            (gradient,) = torch.autograd.grad(
                model(graph).sum(), graph.positions, create_graph=True
            )
            loss = (gradient + graph.forces).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss) * graph.forces.numel()
            n_components += graph.forces.numel()
        print(f"epoch {epoch}: RMSE of forces {(total / n_components) ** 0.5:.4f} eV/Å")


if __name__ == "__main__":
    main()
