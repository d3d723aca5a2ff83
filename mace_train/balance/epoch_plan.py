"""The plan of an epoch, or of the structures of it that no step has trained on yet.

An epoch has one plan, unless the rest of it is planned again, because a resumed run has another
number of ranks or because a GPU ran out of memory. The new plan holds exactly the structures that
no step has trained on yet, so each is trained on once per epoch. Time is measured in structures: a
plan that begins when half of them are done begins at half the epoch.
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
    """The bins of an epoch, or of the rest of it.

    The plan counts its structures from 0; ``structure_ids`` [n] are their ids in the shards.
    """

    epoch: int
    plan: Plan
    structure_ids: StructureIds | None  # ascending; None: all structures
    n_structures: int  # of the whole epoch

    @staticmethod
    def full(sampler: BinSampler, epoch: int) -> "EpochPlan":
        """All of an epoch."""
        return EpochPlan(epoch, sampler.plan(epoch), None, len(sampler.costs))

    @staticmethod
    def remaining(sampler: BinSampler, epoch: int, structure_ids: StructureIds) -> "EpochPlan":
        """Those structures of an epoch whose ascending ids are ``structure_ids`` [n]."""
        return EpochPlan(
            epoch, sampler.plan_rest(epoch, structure_ids), structure_ids, len(sampler.costs)
        )

    @property
    def n_steps(self) -> int:
        """Bins of every rank."""
        return self.plan.n_steps

    def bins(self, rank: int, start_step: int = 0) -> Iterator[StructureIds]:
        """The bins of one rank from ``start_step`` on, each the ids [n] of its structures."""
        for ids in self.plan.of_rank(rank, start_step):
            yield ids if self.structure_ids is None else self.structure_ids[ids]

    def remaining_ids(self, step: int) -> StructureIds:
        """Ascending ids [n] of the structures that the first ``step`` steps do not hold."""
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
    """A set of ids below ``n`` as one bit each, [ceil(n / 8)] bytes."""
    mask = np.zeros(n, dtype=bool)
    mask[ids] = True
    return np.packbits(mask)


def from_bits(bits: NDArray[np.uint8], n: int) -> StructureIds:
    """The ascending ids that ``as_bits`` took."""
    return np.flatnonzero(np.unpackbits(bits, count=n))
