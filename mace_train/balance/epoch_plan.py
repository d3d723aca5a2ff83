"""The plan of an epoch, or of the structures of it that no step has trained on yet.

An epoch has one plan, unless the rest of it is planned again, because a resumed run has another
number of ranks or because a GPU ran out of memory. The new plan holds exactly the samples that no
step has trained on yet, so each is trained on once: every structure once per epoch, or as often as
the sampling ratio of its head says (head_sampling.py). Time is measured in samples: a plan that
begins when half of them are done begins at half the epoch.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mace_train.balance.bins import Samples, StructureIds
from mace_train.balance.plan import Plan
from mace_train.balance.sampler import BinSampler

SampleIds = NDArray[np.int64]


@dataclass(frozen=True)
class EpochPlan:
    """The bins of an epoch, or of the rest of it.

    The plan counts its samples from 0; ``sample_ids`` [n] are their numbers among the ``samples``
    of the epoch, which know their structures. Without sampling ratios sample i is structure i.
    """

    epoch: int
    plan: Plan
    samples: Samples  # of the whole epoch
    sample_ids: SampleIds | None = None  # ascending; None: all of the epoch

    @staticmethod
    def full(sampler: BinSampler, epoch: int) -> "EpochPlan":
        """All of an epoch."""
        samples, plan = sampler.epoch_plan(epoch)
        return EpochPlan(epoch, plan, samples)

    @staticmethod
    def remaining(
        sampler: BinSampler, epoch: int, sample_ids: SampleIds, samples: Samples | None = None
    ) -> "EpochPlan":
        """Those samples of an epoch whose ascending numbers are ``sample_ids`` [n].

        ``samples`` are all of the epoch; None: as the sampler has them.
        """
        samples = samples or sampler.samples(epoch)
        plan = sampler.plan_rest(epoch, samples.structures(sample_ids))
        return EpochPlan(epoch, plan, samples, sample_ids)

    def rest(self, sampler: BinSampler, step: int) -> "EpochPlan":
        """A new plan of what the first ``step`` steps do not hold."""
        return EpochPlan.remaining(sampler, self.epoch, self.remaining_ids(step), self.samples)

    @property
    def n_steps(self) -> int:
        """Bins of every rank."""
        return self.plan.n_steps

    def bins(self, rank: int, start_step: int = 0) -> Iterator[StructureIds]:
        """The bins of one rank from ``start_step`` on, each the ids [n] of its structures."""
        for samples in self.plan.of_rank(rank, start_step):
            ids = samples if self.sample_ids is None else self.sample_ids[samples]
            yield self.samples.structures(ids)

    def remaining_ids(self, step: int) -> SampleIds:
        """Ascending numbers [n] of the samples that the first ``step`` steps do not hold."""
        done = np.zeros(len(self.plan.costs), dtype=bool)
        bins = self.plan.bins
        done[bins.ids[: bins.offsets[step * self.plan.world_size]]] = True
        left = np.flatnonzero(~done)
        return left if self.sample_ids is None else self.sample_ids[left]

    def time(self, step: int) -> float:
        """Epochs that are done before ``step``, the last one as a fraction."""
        left = len(self.plan.costs) / len(self.samples)
        return self.epoch + (1.0 - left) + left * step / self.n_steps


def as_bits(ids: SampleIds, n: int) -> NDArray[np.uint8]:
    """A set of numbers below ``n`` as one bit each, [ceil(n / 8)] bytes."""
    mask = np.zeros(n, dtype=bool)
    mask[ids] = True
    return np.packbits(mask)


def from_bits(bits: NDArray[np.uint8], n: int) -> SampleIds:
    """The ascending numbers that ``as_bits`` took."""
    return np.flatnonzero(np.unpackbits(bits, count=n))
