"""How well plans mix: sizes within a bin, sizes of steps, and structures that meet again.

All three are exact over all structures or pairs and are 1 for batches drawn uniformly:

- within: mean variance of atoms within a bin over the variance of all structures. Bins of one size
  only would have 0;
- between steps: variance of the mean atoms of a step over that of random steps; below 1 steps are
  more alike than random ones, above 1 some steps are of large and others of small structures;
- repetition: probability that two structures which share a bin (or step) share one in the next
  epoch again, over that of a random plan.
"""

from dataclasses import dataclass

import numpy as np

from mace_train.balance.bins import Ints
from mace_train.balance.plan import Plan


@dataclass(frozen=True)
class Mixing:
    """Mix of sizes, relative to uniformly random batches, for which both are 1."""

    within_bins: float
    between_steps: float


def mixing(plan: Plan) -> Mixing:
    """Mix of sizes in a plan."""
    atoms = plan.costs.n_atoms.astype(np.float64)
    variance = float(atoms.var())
    if variance == 0:
        return Mixing(1.0, 1.0)
    n = plan.n_structures.ravel().astype(np.float64)
    sums = plan.n_atoms.ravel().astype(np.float64)
    squares = plan.per_bin(plan.costs.n_atoms**2).ravel().astype(np.float64)
    several = n > 1
    inner = (squares - sums**2 / np.maximum(n, 1))[several].sum() / (n - 1)[several].sum()
    n_step, mean = plan.n_structures.sum(axis=1), plan.n_atoms.sum(axis=1)
    deviation = mean / n_step - atoms.mean()
    expected = variance * (1 / n_step - 1 / len(atoms))  # drawn without replacement
    between = (deviation**2).sum() / expected.sum() if plan.n_steps > 1 else 1.0
    return Mixing(float(inner / variance), float(between))


def repetition(first: Plan, second: Plan, *, steps: bool = False) -> float:
    """How much more often than at random two structures of a bin (or step) meet again.

    nan where no two structures share a bin.
    """
    before, after = (_groups(plan, steps) for plan in (first, second))
    both = before * (int(after.max()) + 1) + after
    again = _pairs(np.unique(both, return_counts=True)[1])
    n = len(before)
    together, later = _pairs(np.bincount(before)), _pairs(np.bincount(after))
    if together == 0 or later == 0:
        return float("nan")
    return again / together / (later / (n * (n - 1) / 2))


def _groups(plan: Plan, steps: bool) -> Ints:
    """The bin or step of every structure, [n]."""
    sizes = plan.n_structures.sum(axis=1) if steps else plan.n_structures.ravel()
    groups = np.empty(len(plan.costs), np.int64)
    groups[plan.bins.ids] = np.repeat(np.arange(len(sizes)), sizes)
    return groups


def _pairs(counts: Ints) -> float:
    """Pairs within groups of these sizes."""
    return float((counts * (counts - 1) // 2).sum())
