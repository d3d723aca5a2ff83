"""Balanced batches for any PyTorch ``DataLoader``: pass it as ``batch_sampler``.

    sampler = BalancedBatchSampler(n_atoms, n_edges, max_atoms=3072, world_size=8, rank=0, seed=1)
    loader = DataLoader(dataset, batch_sampler=sampler)
    for epoch in range(100):
        sampler.set_epoch(epoch)
        for step, batch in enumerate(loader):
            ...

Also for the loaders of PyTorch Geometric and mace-torch. Needs no process group: every rank makes
the same plan. Nothing here imports PyTorch.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mace_train.balance.costs import Costs
from mace_train.balance.sampler import BinSampler
from mace_train.errors import InputError
from mace_train.settings import BatchingSettings


class BalancedBatchSampler:
    """Lists of structure ids, one per step: those of one rank, in the current epoch.

    Every structure comes exactly once per epoch on exactly one rank, all ranks have equally many
    steps, and every bin is within ``max_atoms`` and ``max_edges``. Give either ``max_atoms`` or
    ``batch_size``, the mean number of structures per rank and step; options are those of
    ``BatchingSettings``. Raises ``InputError`` for a structure that is above the capacity, and for
    fewer structures than ranks.

    Losses: DDP averages gradients over ranks, but bins hold different numbers of structures. To
    train on the mean over the global batch, scale a rank's *sum* by world_size over the number of
    structures of all ranks, ``totals(epoch, step)``, which needs no communication.

    >>> from torch.utils.data import DataLoader
    >>> n_atoms, n_edges = [3, 9, 5, 6, 4, 9], [6, 72, 20, 30, 12, 72]
    >>> sampler = BalancedBatchSampler(n_atoms, n_edges, max_atoms=18, world_size=2, rank=0, seed=1)
    >>> loader = DataLoader(range(6), batch_sampler=sampler)
    >>> [sum(n_atoms[i] for i in batch.tolist()) for batch in loader]  # 36 atoms on two ranks
    [18]
    """

    def __init__(
        self,
        n_atoms: Sequence[int] | NDArray[Any],
        n_edges: Sequence[int] | NDArray[Any],
        *,
        world_size: int,
        rank: int,
        seed: int = 0,
        **batching: Any,
    ) -> None:
        costs = Costs(np.asarray(n_atoms), np.asarray(n_edges))
        if len(costs) < world_size:
            raise InputError(
                f"{len(costs)} structures on {world_size} ranks: some would have an empty batch"
            )
        self._bins = BinSampler(costs, BatchingSettings(**batching), world_size, rank, seed)

    def set_epoch(self, epoch: int, step: int = 0) -> None:
        """Go to an epoch (and step, to continue in the middle); the next one is planned ahead."""
        self._bins.epoch, self._bins.step = epoch, step

    def __iter__(self) -> Iterator[list[int]]:
        """The structures of this rank, step by step."""
        epoch = self._bins.epoch
        for i, ids in enumerate(self._bins):
            yield ids.tolist()
            if i == 0:
                self._bins.prepare(epoch)
                self._bins.prepare(epoch + 1)

    def __len__(self) -> int:
        """Steps that remain of the epoch, equal on all ranks."""
        return len(self._bins)

    def totals(self, epoch: int, step: int) -> tuple[int, int]:
        """(structures, atoms) of a step on all ranks together."""
        plan = self._bins.plan(epoch)
        return int(plan.n_structures[step].sum()), int(plan.n_atoms[step].sum())

    def state_dict(self) -> dict[str, Any]:
        """Where the sampler stands, and what its plans depend on."""
        return self._bins.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved position; ``InputError`` if plans are not what they were."""
        self._bins.load_state_dict(state)
