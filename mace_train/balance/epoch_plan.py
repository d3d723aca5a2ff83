"""Part of an epoch: the structures that are still to come, planned for the ranks that are there.

An epoch is one part, unless it is planned anew on the way, because a resumed run has another number
of ranks or because a GPU ran out of memory. The new part holds exactly the structures that no step
has trained on yet, so each is seen once in the epoch whatever happened. Time runs evenly through
the structures: a part that begins when half of them are done begins at half the epoch.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mace_train.balance.bins import StructureIds
from mace_train.balance.plan import Plan
from mace_train.balance.sampler import BinSampler


@dataclass(frozen=True)
class EpochPlan:
    """The bins of an epoch, or of what is left of it.

    The plan counts structures from 0; ``structure_ids`` [n] are their ids in the shards.
    """

    epoch: int
    plan: Plan
    structure_ids: StructureIds | None  # rising; None: all structures
    n_structures: int  # of the whole epoch

    @staticmethod
    def full(sampler: BinSampler, epoch: int) -> "EpochPlan":
        """All of an epoch."""
        return EpochPlan(epoch, sampler.plan(epoch), None, len(sampler.costs))

    @staticmethod
    def remaining(sampler: BinSampler, epoch: int, structure_ids: StructureIds) -> "EpochPlan":
        """The structures ``structure_ids`` of an epoch."""
        return EpochPlan(
            epoch, sampler.plan_rest(epoch, structure_ids), structure_ids, len(sampler.costs)
        )

    @property
    def n_steps(self) -> int:
        """Bins of every rank."""
        return self.plan.n_steps

    def bins(self, rank: int, start_step: int = 0) -> Iterator[StructureIds]:
        """The bins of one rank from a step on, as ids of structures."""
        for ids in self.plan.of_rank(rank, start_step):
            yield ids if self.structure_ids is None else self.structure_ids[ids]

    def remaining_ids(self, step: int) -> StructureIds:
        """Rising ids of the structures that the first ``step`` steps have not trained on."""
        done = np.zeros(len(self.plan.costs), dtype=bool)
        bins = self.plan.bins
        done[bins.ids[: bins.offsets[step * self.plan.world_size]]] = True
        left = np.flatnonzero(~done)
        return left if self.structure_ids is None else self.structure_ids[left]

    def time(self, step: int) -> float:
        """Epochs that are done before ``step``, the last one as a fraction."""
        left = len(self.plan.costs) / self.n_structures
        return self.epoch + (1.0 - left) + left * step / self.n_steps


def as_bits(ids: StructureIds, n: int) -> NDArray[np.uint8]:
    """A set of ids below ``n`` as one bit each."""
    mask = np.zeros(n, dtype=bool)
    mask[ids] = True
    return np.packbits(mask)


def from_bits(bits: NDArray[np.uint8], n: int) -> StructureIds:
    """The rising ids that ``as_bits`` took."""
    return np.flatnonzero(np.unpackbits(bits, count=n))
