"""The plan of one epoch: which structures every rank trains on in every step.

    (step, rank) -> ids of structures

A plan follows from (costs, packer, capacity, world_size, seed, epoch) alone, so every rank makes
its own and all are the same; ``Plan.fingerprint`` is there to be compared. All ranks have the same
number of steps, some of them with an empty bin only where there are fewer structures than bins.

Numbers about a plan, with c[s, r] the cost of the bin of rank r in step s (see costs.py):

    straggler ratio = sum over s of max over r of c[s, r] / (sum of c / world_size)  >= 1,

the time of the epoch, if time is proportional to cost, over the time of a perfect balance; and
imbalance[s] = max over r of c[s, r] / mean over r of c[s, r]. A step takes at least the cost of its
most expensive structure, so for the structures that the plan assigns to its steps

    straggler ratio >= sum over s of max(mean_s, largest structure_s) / sum over s of mean_s.

O(n) to check.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mace_train.balance.bins import Bins, StructureIds
from mace_train.balance.costs import Capacity, Costs
from mace_train.balance.packers import PACKERS
from mace_train.checks import check_choice
from mace_train.errors import InputError


@dataclass(frozen=True, eq=False)
class Plan:
    """The bins of one epoch; made by ``make_plan``."""

    costs: Costs
    world_size: int
    bins: Bins  # bin (s, r) has the number s * world_size + r

    def __post_init__(self) -> None:
        """Check that every structure is in exactly one bin, and that ranks have equal steps."""
        assert len(self.bins) % self.world_size == 0, "ranks would differ in their number of steps"
        counts = np.bincount(self.bins.ids, minlength=len(self.costs))
        assert len(counts) == len(self.costs), "a bin holds an id that is no structure"
        assert (counts == 1).all(), "a structure is lost or doubled"

    @property
    def n_steps(self) -> int:
        """Steps of the epoch, the same on every rank."""
        return len(self.bins) // self.world_size

    def bin(self, step: int, rank: int) -> StructureIds:
        """Ids [n] of the structures that a rank takes in a step, ascending; may be empty."""
        if not (0 <= step < self.n_steps and 0 <= rank < self.world_size):
            raise IndexError(
                f"step {step}, rank {rank} of a plan of {self.n_steps} steps, "
                f"{self.world_size} ranks"
            )
        return self.bins[step * self.world_size + rank]

    def of_rank(self, rank: int, start_step: int = 0) -> Iterator[StructureIds]:
        """The bins of one rank, ids [n] each, step by step, from a step on."""
        for step in range(start_step, self.n_steps):
            yield self.bin(step, rank)

    def per_bin(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """Sums of ``values`` [n_structures] over every bin, [n_steps, world_size]."""
        sums = np.concatenate([[0], np.cumsum(values[self.bins.ids])])[self.bins.offsets]
        return np.diff(sums).reshape(self.n_steps, self.world_size)

    @cached_property
    def n_structures(self) -> NDArray[np.int64]:
        """Structures of every bin, [n_steps, world_size]."""
        return np.diff(self.bins.offsets).reshape(self.n_steps, self.world_size)

    @cached_property
    def n_atoms(self) -> NDArray[np.int64]:
        """Atoms of every bin, [n_steps, world_size]."""
        return self.per_bin(self.costs.n_atoms)

    @cached_property
    def n_edges(self) -> NDArray[np.int64]:
        """Edges of every bin, [n_steps, world_size]."""
        return self.per_bin(self.costs.n_edges)

    @property
    def bin_costs(self) -> NDArray[np.float64]:
        """Cost of every bin, atoms + edges / edges_per_atom, [n_steps, world_size]."""
        return self.n_atoms + self.n_edges / self.costs.edges_per_atom

    @property
    def straggler(self) -> float:
        """Time of the epoch over that of a perfect balance, when time is proportional to cost."""
        costs = self.bin_costs
        return float(costs.max(axis=1).sum() * self.world_size / costs.sum())

    @property
    def imbalance(self) -> NDArray[np.float64]:
        """Largest over mean cost of the ranks, for every step, [n_steps]."""
        costs = self.bin_costs
        return np.asarray(costs.max(axis=1) / costs.mean(axis=1))

    @cached_property
    def least_straggler(self) -> float:
        """The lower bound of the straggler ratio of any plan with the same steps."""
        cost, offsets = self.costs.scaled, self.bins.offsets
        padded = np.append(cost[self.bins.ids], 0)  # empty bins at the end have a start, too
        largest = np.maximum.reduceat(padded, offsets[:-1])
        largest[np.diff(offsets) == 0] = 0
        largest = largest.reshape(self.n_steps, self.world_size).max(axis=1)
        mean = self.per_bin(cost).mean(axis=1)
        return float(np.maximum(mean, largest).sum() / mean.sum())

    def fill(self, capacity: Capacity) -> tuple[float, float]:
        """Mean atoms and edges of a bin, as shares of the capacity."""
        atoms = float(self.n_atoms.mean()) / capacity.max_atoms
        return atoms, float(self.n_edges.mean()) / max(capacity.max_edges, 1)

    def n_over(self, capacity: Capacity) -> int:
        """Bins above the capacity in atoms, edges or memory."""
        over = np.zeros((self.n_steps, self.world_size), bool)
        for counts, limit in zip(self.costs.dimensions, capacity.limits, strict=True):
            over |= self.per_bin(counts) > limit
        return int(over.sum())

    @cached_property
    def fingerprint(self) -> int:
        """A 63-bit number that two ranks share only if their plans are the same."""
        digest = hashlib.blake2b(digest_size=8)
        for array in (np.array([self.world_size]), self.bins.ids, self.bins.offsets):
            digest.update(array.astype("<i8", copy=False).data)
        return int.from_bytes(digest.digest(), "little") >> 1


def make_plan(
    costs: Costs, packer: str, capacity: Capacity, world_size: int, seed: int, epoch: int
) -> Plan:
    """The plan of an epoch by one of ``PACKERS``.

    Raises ``InputError`` for an unknown packer or when a structure is above the capacity.
    """
    check_choice("packer", packer, PACKERS)
    if world_size < 1:
        raise InputError(f"world_size={world_size} must be at least 1")
    plan = Plan(costs, world_size, PACKERS[packer](costs, capacity, world_size, seed, epoch))
    if packer != "fixed_count":
        assert plan.n_over(capacity) == 0, "a bin is above the capacity"
    return plan
