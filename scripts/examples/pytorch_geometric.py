"""Shards as a data set of PyTorch Geometric, with its loader and its message passing.

pip install torch-geometric
python scripts/examples/pytorch_geometric.py DATA_DIR
"""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torch_geometric.nn import MessagePassing, global_add_pool

from mace_train.data.adapters.pyg import PyGDataset
from mace_train.data.shards import ShardSet


class Layer(MessagePassing):
    """Sums what the neighbours send, weighted by a function of the distance."""

    def __init__(self, n_channels: int) -> None:
        super().__init__(aggr="sum")
        self.radial = nn.Sequential(nn.Linear(8, n_channels), nn.SiLU())
        self.linear = nn.Linear(n_channels, n_channels)

    def forward(self, x: Tensor, edge_index: Tensor, distances: Tensor) -> Tensor:
        """[n_atoms, n_channels] features."""
        centres = torch.linspace(0.7, 4.0, 8)
        radial = self.radial(torch.exp(-4 * (distances[:, None] - centres) ** 2))
        return x + self.propagate(edge_index, x=self.linear(x), radial=radial)

    def message(self, x_j: Tensor, radial: Tensor) -> Tensor:
        """What one neighbour sends."""
        return x_j * radial


class Energy(nn.Module):
    """Total energies, eV."""

    def __init__(self, n_channels: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Embedding(119, n_channels)
        self.layers = nn.ModuleList([Layer(n_channels) for _ in range(2)])
        self.readout = nn.Linear(n_channels, 1)

    def forward(self, data: Data) -> Tensor:
        """[n_graphs] eV."""
        senders, receivers = data.edge_index
        images = torch.einsum("es,esc->ec", data.shifts, data.cell[data.batch[senders]])
        distances = (data.pos[receivers] - data.pos[senders] + images).norm(dim=1)
        x = self.embedding(data.z)
        for layer in self.layers:
            x = layer(x, data.edge_index, distances)
        return global_add_pool(self.readout(x), data.batch).squeeze(1)


def main() -> None:
    """Train on energies per atom for a few epochs and print the loss."""
    shards = ShardSet(Path(sys.argv[1]) / "train")
    loader = DataLoader(PyGDataset(shards), batch_size=8, shuffle=True)
    torch.manual_seed(0)
    model = Energy()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for epoch in range(3):
        total, n_edges = 0.0, 0
        for batch in loader:
            n_atoms = torch.bincount(batch.batch)
            errors = (model(batch) - batch.energy.to(torch.float32)) / n_atoms
            optimizer.zero_grad()
            errors.square().mean().backward()
            optimizer.step()
            total += float(errors.detach().square().sum())
            n_edges += batch.num_edges
        assert n_edges == int(shards.n_edges.sum())
        print(f"epoch {epoch}: RMSE of energies {(total / len(shards)) ** 0.5:.4f} eV/atom")


if __name__ == "__main__":
    main()
