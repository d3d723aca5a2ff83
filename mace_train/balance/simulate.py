"""Predicted time of an epoch on many GPUs, from a plan, a cost model and a fabric.

A step lasts until its slowest rank has computed, then the gradients are reduced over all ranks:

    T = sum over steps s of ( max over ranks r of t(s, r) + T_reduce )
    t(s, r) = fixed_s + atom_s n_atoms(s, r) + edge_s n_edges(s, r)

with the latency alpha and bandwidth beta of a link, and the bytes B of the gradients, on G ranks:

    ring: T_reduce = 2 (G - 1) (alpha + B / (G beta))
    tree: T_reduce = 2 ceil(log2 G) alpha + 2 (G - 1) / G B / beta

(Thakur, Rabenseifner, Gropp 2005; trees pipelined over chunks as in NCCL). Split of T: compute is
the mean over ranks of t, waiting the rest of max t, communication T_reduce. Assumed: reading is
hidden behind compute, communication is not, ranks do not differ in speed, and there is no noise;
noise of 1 % per bin adds 3 % at 740 GPUs whatever the plan.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from mace_train.balance.cost_model import CostModel
from mace_train.balance.costs import Capacity, Costs
from mace_train.balance.plan import Plan, make_plan

ASSUMPTIONS = (
    "reading is hidden behind compute, communication is not; all ranks are equally fast; no noise"
)
# one full bin of 3072 atoms at 38.4 edges per atom in 0.9 s, half of the time per edge at 30
FULL_BIN_S = 0.9
ASSUMED_GPU = CostModel(
    fixed_s=0.03,
    atom_s=FULL_BIN_S / (3072 * (1 + 38.4 / 30)),
    edge_s=FULL_BIN_S / (3072 * (1 + 38.4 / 30)) / 30,
    source="assumed: 0.9 s for 3072 atoms with 38.4 edges each, 0.03 s per step",
)


@dataclass(frozen=True)
class Fabric:
    """Network between the ranks."""

    name: str
    bandwidth: float
    """Of one rank's link, bytes/s."""
    latency_s: float
    """Of one message, s."""

    def reduce_s(self, n_bytes: float, n_ranks: int, algorithm: str) -> float:
        """Time to sum ``n_bytes`` over all ranks by "ring" or "tree", s."""
        if n_ranks == 1:
            return 0.0
        transfer = 2 * (n_ranks - 1) / n_ranks * n_bytes / self.bandwidth
        n_messages = 2 * (n_ranks - 1) if algorithm == "ring" else 2 * math.ceil(math.log2(n_ranks))
        return n_messages * self.latency_s + transfer


# per rank; nominal link rates, latencies between nodes
FABRICS = {
    fabric.name: fabric
    for fabric in (
        Fabric("slingshot-11", 25e9, 5e-6),
        Fabric("infiniband-hdr", 25e9, 3e-6),
        Fabric("infiniband-ndr", 50e9, 3e-6),
        Fabric("ethernet-100", 12.5e9, 20e-6),
        Fabric("ethernet-10", 1.25e9, 30e-6),
    )
}


@dataclass(frozen=True)
class Epoch:
    """Predicted seconds of one epoch."""

    n_ranks: int
    n_steps: int
    compute_s: float
    waiting_s: float
    communication_s: float

    @property
    def total_s(self) -> float:
        """The epoch."""
        return self.compute_s + self.waiting_s + self.communication_s

    @property
    def efficiency(self) -> float:
        """Share of the time in which a rank computes, on average."""
        return self.compute_s / self.total_s


@dataclass(frozen=True)
class Cluster:
    """Compute and communication cost of the ranks."""

    model: CostModel
    fabric: Fabric
    gradient_bytes: float
    algorithm: str = "ring"

    def epoch(self, plan: Plan) -> Epoch:
        """The predicted epoch of a plan."""
        times = self.model.seconds(plan.n_atoms, plan.n_edges)
        compute, slowest = float(times.mean(axis=1).sum()), float(times.max(axis=1).sum())
        reduce_s = self.fabric.reduce_s(self.gradient_bytes, plan.world_size, self.algorithm)
        return Epoch(
            plan.world_size, plan.n_steps, compute, slowest - compute, plan.n_steps * reduce_s
        )


def strong_scaling(
    costs: Costs, packer: str, capacity: Capacity, cluster: Cluster, ranks: list[int], seed: int
) -> list[Epoch]:
    """The same data set and capacity per rank on increasing numbers of ranks."""
    return [cluster.epoch(make_plan(costs, packer, capacity, n, seed, 0)) for n in ranks]


def weak_scaling(
    costs: Costs,
    packer: str,
    capacity: Capacity,
    cluster: Cluster,
    ranks: list[int],
    per_rank: int,
    seed: int,
) -> list[Epoch]:
    """``per_rank`` structures for every rank: part of the data set, or all of it repeated."""
    return [
        cluster.epoch(make_plan(resized(costs, n * per_rank), packer, capacity, n, seed, 0))
        for n in ranks
    ]


def resized(costs: Costs, n: int) -> Costs:
    """n structures: evenly spaced along the sizes, or all of them again and again."""
    if n <= len(costs):
        chosen = costs.locality_order[np.linspace(0, len(costs) - 1, n).round().astype(np.int64)]
    else:
        chosen = np.resize(np.arange(len(costs)), n)
    memory = None if costs.memory is None else costs.memory[chosen]
    return replace(
        costs, n_atoms=costs.n_atoms[chosen], n_edges=costs.n_edges[chosen], memory=memory
    )
