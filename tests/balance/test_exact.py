"""The exact solver against brute force, and the packers against the exact solver."""

import subprocess
import sys
from itertools import product

import numpy as np
import pytest

from mace_train.balance.costs import Capacity, Costs
from mace_train.balance.exact import smallest_largest_bin
from mace_train.balance.optimality_gap import N_STRUCTURES, gap_of, instances
from tests.balance.sizes import paper_like


def roomy(costs: Costs, n_bins: int, percent: int = 110) -> Capacity:
    """So much more room than the mean bin needs."""

    def limit(counts: np.ndarray) -> int:
        return max(percent * int(counts.sum()) // (100 * n_bins), int(counts.max()))

    return Capacity(limit(costs.n_atoms), limit(costs.n_edges))


@pytest.mark.parametrize("seed", range(4))
def test_the_optimum_is_that_of_brute_force(seed):
    random = np.random.default_rng(seed)
    costs = Costs(random.integers(1, 30, 8), random.integers(0, 900, 8))
    capacity = roomy(costs, 3, 120)
    best = None
    for way in product(range(3), repeat=8):
        loads = [np.bincount(way, counts, 3) for counts in (costs.n_atoms, costs.n_edges)]
        if loads[0].max() <= capacity.max_atoms and loads[1].max() <= capacity.max_edges:
            largest = int(np.bincount(way, costs.scaled, 3).max())
            best = largest if best is None else min(best, largest)
    optimum = smallest_largest_bin(costs, capacity, 3, 20.0)
    assert optimum.found == best
    assert best is None or optimum.proven


def test_ctrl_c_still_arrives_after_a_search():
    code = """
import signal
import numpy as np
from mace_train.balance.costs import Capacity, Costs
from mace_train.balance.exact import smallest_largest_bin
smallest_largest_bin(Costs(np.array([2, 1]), np.array([5, 0])), Capacity(9, 9), 1, 1.0)
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("arrived")
"""
    begin = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    command = [sys.executable, "-c", begin + code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "arrived\n"


def test_balanced_is_near_the_optimum_of_small_instances():
    gap = gap_of([paper_like(60, seed) for seed in range(6)])
    assert len(gap.ratios) >= 4
    assert gap.n_missed == 0
    assert min(gap.ratios) >= 1.0
    assert gap.numbers()["worst"] < 0.05
    assert gap.numbers()["mean"] < 0.015


def test_instances_are_draws_of_the_structures():
    costs = paper_like(100, 0)
    first, second = instances(costs, 2, seed=1)
    assert len(first) == N_STRUCTURES
    assert not np.array_equal(first.n_atoms, second.n_atoms)
    sizes = set(zip(costs.n_atoms.tolist(), costs.n_edges.tolist(), strict=True))
    assert set(zip(first.n_atoms.tolist(), first.n_edges.tolist(), strict=True)) <= sizes
    assert gap_of([Costs(np.array([9, 1]), np.array([5, 0]))]).numbers()["mean"] == 0.0
