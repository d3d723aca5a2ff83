"""Balanced batches in a plain PyTorch DDP training, without the rest of mace-train.

    torchrun --nproc-per-node 2 scripts/examples/plain_ddp.py

Learns a per-atom energy of random structures of 1 to 200 atoms. The gradient is that of the mean
over the global batch, although ranks hold different numbers of structures: see ``loss``.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from mace_train.balance.batch_sampler import BalancedBatchSampler


class Structures(Dataset):
    """Features [n_atoms, 4] of the atoms of a structure, and its energy."""

    def __init__(self, n: int = 400) -> None:
        generator = torch.Generator().manual_seed(0)
        self.n_atoms = torch.randint(1, 200, (n,), generator=generator)
        self.features = [torch.randn(int(k), 4, generator=generator) for k in self.n_atoms]

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.features[i], self.features[i].sum() / 10


def collate(items: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """(features [n_atoms, 4], structure of every atom [n_atoms], energies [n_structures])."""
    features, energies = zip(*items, strict=True)
    index = torch.repeat_interleave(torch.tensor([len(x) for x in features]))
    return torch.cat(features), index, torch.stack(energies)


def main(epochs: int = 5) -> list[float]:
    """Mean squared error of every epoch."""
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    data = Structures()
    sampler = BalancedBatchSampler(
        data.n_atoms, 30 * data.n_atoms, max_atoms=2000, world_size=size, rank=rank, seed=1
    )
    loader = DataLoader(data, batch_sampler=sampler, collate_fn=collate)
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Linear(4, 1, bias=False))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    history = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        squares = torch.zeros(1)
        for step, (features, index, energies) in enumerate(loader):
            atoms = model(features).squeeze(1)
            predicted = torch.zeros_like(energies).index_add(0, index, atoms)
            n_structures, _ = sampler.totals(epoch, step)  # of all ranks: from the plan
            error = (predicted - energies).square().sum()
            optimizer.zero_grad()
            (error * size / n_structures).backward()  # DDP divides by size
            optimizer.step()
            squares += error.detach()
        dist.all_reduce(squares)
        history.append(float(squares) / len(data))
        if rank == 0:
            print(f"epoch {epoch}: mean squared error {history[-1]:.4f}")
    dist.destroy_process_group()
    return history


if __name__ == "__main__":
    main()
