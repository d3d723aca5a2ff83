"""The optimality gap: our bins against the optimum, on small instances of the same structures.

An instance is ``N_STRUCTURES`` structures for ``N_BINS`` bins, with a tenth of room to spare in
atoms and in edges. Both minimise the cost of the most expensive bin, which all ranks wait for: the
packer with its refinement, and CP-SAT (exact.py) within a limit on its work. Larger instances
are easier: differences between structures average out.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mace_train.balance.balanced import pack_window
from mace_train.balance.costs import Capacity, Costs
from mace_train.balance.exact import smallest_largest_bin

N_STRUCTURES, N_BINS, ROOM = 60, 8, 1.1
WORK_S = 0.5  # of CP-SAT, in its deterministic seconds


@dataclass(frozen=True)
class OptimalityGap:
    """Costs of the most expensive bin of some instances, over the least that was found."""

    ratios: tuple[float, ...]
    n_proven: int
    """Instances whose optimum is proven."""
    n_missed: int
    """Instances that CP-SAT packs and we do not."""

    def numbers(self) -> dict[str, Any]:
        """What balance.json holds; gaps are shares of the optimum."""
        gaps = np.array(self.ratios) - 1
        return {
            "instances": len(self.ratios),
            "mean": float(gaps.mean()) if len(gaps) else None,
            "worst": float(gaps.max()) if len(gaps) else None,
            **{name: asdict(self)[name] for name in ("n_proven", "n_missed")},
        }


def instances(costs: Costs, n: int, seed: int) -> list[Costs]:
    """``n`` draws of structures without replacement, as many as ``costs`` has at most."""
    rng = np.random.default_rng(seed)
    size = min(N_STRUCTURES, len(costs))
    return [costs.subset(np.sort(rng.choice(len(costs), size, replace=False))) for _ in range(n)]


def gap_of(drawn: list[Costs]) -> OptimalityGap:
    """The gap on some instances; those for which no packing is known do not count.

    Raises InputError without OR-Tools.
    """
    ratios, n_proven, n_missed = [], 0, 0
    for costs in drawn:
        limits = (ROOM * counts.sum() / N_BINS for counts in (costs.n_atoms, costs.n_edges))
        largest = (int(costs.n_atoms.max()), int(costs.n_edges.max()))
        room = Capacity(*(max(int(a), b) for a, b in zip(limits, largest, strict=True)))
        ids = np.arange(len(costs), dtype=np.int32)
        packed = pack_window(costs, ids, room.limits, N_BINS, 0, 0, 0)
        hint = None if packed.n_left else packed.largest
        optimum = smallest_largest_bin(costs, room, N_BINS, WORK_S, hint)
        if optimum.found is None:
            continue
        n_proven += optimum.proven
        if packed.n_left:
            n_missed += 1
        else:
            ratios.append(packed.largest / optimum.found)
    return OptimalityGap(tuple(ratios), n_proven, n_missed)
