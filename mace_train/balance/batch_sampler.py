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
from mace_train.balance.head_sampling import Heads
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

    With ``heads``, the head of every structure, ``head_sampling_ratios={"new": 4, "old": 0.5}``
    says how often each comes in an epoch instead (head_sampling.py).

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
        heads: Sequence[str] | NDArray[Any] | None = None,
        **batching: Any,
    ) -> None:
        costs = Costs(np.asarray(n_atoms), np.asarray(n_edges))
        self._bins = BinSampler(
            costs, BatchingSettings(**batching), world_size, rank, seed, _heads(heads, len(costs))
        )
        sampling = self._bins.sampling
        least = len(costs) if sampling is None else sampling.bounds[0]
        if least < world_size:
            raise InputError(
                f"{least} structures on {world_size} ranks: some would have an empty batch"
            )

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


def _heads(of_structures: Sequence[str] | NDArray[Any] | None, n: int) -> Heads | None:
    """The heads by name, in alphabetical order."""
    if of_structures is None:
        return None
    names, index_of = np.unique(np.asarray(of_structures, dtype=str), return_inverse=True)
    if index_of.size != n:
        raise InputError(f"heads has {index_of.size} names for {n} structures; give one of each")
    return Heads(names.tolist(), index_of.reshape(-1).astype(np.int64))
