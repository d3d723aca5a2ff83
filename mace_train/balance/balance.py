"""The report of ``mace-train balance``: what the packers and the capacity do on many GPUs.

For every packer the plan of epoch 0 is made as training on that many GPUs would make it (with
sampling ratios of heads: of the samples that epoch 0 holds); its steps,
straggler ratio (see plan.py), distance from the lower bounds (bounds.py), fill, mixing (mixing.py)
and predicted epoch time (simulate.py) are compared; small draws of the structures show how
far our bins are from the optimum (optimality_gap.py). Then the selected packer with
smaller and larger capacities, and predicted strong and weak scaling. No GPU and no model is used.

Writes balance.json (all numbers), balance.png (bins and ranks) and scaling.png into the output
folder, when one is given. Takes as long as its plans do: about one minute for 2.65 M structures.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from mace_train.atomic_files import written_together
from mace_train.balance import plots, tables
from mace_train.balance.bounds import least_steps
from mace_train.balance.cost_model import read_cost_model, with_cost_model
from mace_train.balance.costs import Capacity, Costs, derive_capacity, limit_memory
from mace_train.balance.head_sampling import Heads, head_sampling
from mace_train.balance.mixing import mixing, repetition
from mace_train.balance.optimality_gap import gap_of, instances
from mace_train.balance.packers import PACKERS
from mace_train.balance.plan import Plan, make_plan
from mace_train.balance.simulate import (
    ASSUMED_GPU,
    ASSUMPTIONS,
    FABRICS,
    Cluster,
    Epoch,
    strong_scaling,
    weak_scaling,
)
from mace_train.data.loading.loader import heads_of
from mace_train.data.statistics import open_split
from mace_train.errors import InputError
from mace_train.folders import existing_folder, make_folder
from mace_train.settings import BalanceSettings, BatchingSettings

CAPACITIES = (0.25, 0.5, 0.75, 1.5, 2.0, 4.0)  # times the chosen one
RANKS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
WEAK_STEPS = 4  # of an epoch of weak scaling, about


@dataclass(frozen=True)
class PackerResult:
    """One packer's plans of epochs 0 and 1, the capacity to compare with, and predicted times."""

    packer: str
    plan: Plan
    next_plan: Plan
    capacity: Capacity
    plan_s: float
    """Time to make the plan, s."""
    epoch: Epoch

    def numbers(self) -> dict[str, Any]:
        """What balance.json holds about the packer; shares of the capacity are not in percent."""
        plan, capacity = self.plan, self.capacity
        fill_atoms, fill_edges = plan.fill(capacity)
        per_step = plan.n_structures.sum(axis=1)
        mix = mixing(plan)
        return {
            "steps": plan.n_steps,
            "least_steps": least_steps(plan.costs, capacity, plan.world_size),
            "straggler": plan.straggler,
            "least_straggler": plan.least_straggler,
            "worst_step_imbalance": float(plan.imbalance.max()),
            "fill_atoms": fill_atoms,
            "fill_edges": fill_edges,
            "largest_bin_atoms": int(plan.n_atoms.max()),
            "largest_bin_edges": int(plan.n_edges.max()),
            "bins_over_capacity": plan.n_over(capacity),
            "empty_bins": int((plan.n_structures == 0).sum()),
            "structures_per_step": {
                "min": int(per_step.min()),
                "mean": float(per_step.mean()),
                "max": int(per_step.max()),
            },
            "size_mix_within_bins": mix.within_bins,
            "size_mix_between_steps": mix.between_steps,
            "meet_again_in_a_bin": _or_none(repetition(plan, self.next_plan)),
            "meet_again_in_a_step": _or_none(repetition(plan, self.next_plan, steps=True)),
            "plan_s": self.plan_s,
            "predicted": predicted(self.epoch),
        }


def _or_none(value: float) -> float | None:
    """JSON has no nan."""
    return None if np.isnan(value) else value


def predicted(epoch: Epoch) -> dict[str, float]:
    """A predicted epoch, as written to balance.json."""
    return {**asdict(epoch), "epoch_s": epoch.total_s, "efficiency": epoch.efficiency}


def cluster_of(settings: BalanceSettings) -> Cluster:
    """The cluster that the settings describe, with the measured cost model if there is one."""
    file = settings.batching.cost_model
    model = ASSUMED_GPU if file is None else read_cost_model(file)
    fabric = FABRICS[settings.fabric]
    return Cluster(model, fabric, settings.gradient_mb * 1e6, settings.all_reduce)


def report_capacity(costs: Costs, batching: BatchingSettings) -> Capacity:
    """The capacity that all packers are measured against."""
    capacity = derive_capacity(costs, batching.batch_size, batching.max_atoms, batching.max_edges)
    return limit_memory(costs, capacity, batching.max_memory_gb)


def compare(
    costs: Costs, batching: BatchingSettings, gpus: int, seed: int, cluster: Cluster
) -> list[PackerResult]:
    """The plan of epoch 0 by every packer, fill and overflow measured against one capacity.

    Raises ``InputError`` when a structure is above a given capacity.
    """
    capacity = report_capacity(costs, batching)
    counted = replace(capacity, batch_size=batching.batch_size)
    results = []
    for packer in PACKERS:
        own_capacity = counted if packer == "fixed_count" else capacity
        start = time.perf_counter()
        plan = make_plan(costs, packer, own_capacity, gpus, seed, 0)
        seconds = time.perf_counter() - start
        following = make_plan(costs, packer, own_capacity, gpus, seed, 1)
        results.append(
            PackerResult(packer, plan, following, capacity, seconds, cluster.epoch(plan))
        )
    return results


def other_capacities(
    costs: Costs, packer: str, capacity: Capacity, gpus: int, seed: int, cluster: Cluster
) -> list[dict[str, Any]]:
    """What a smaller or larger capacity would do: steps, balance and predicted epoch."""
    rows = []
    for factor in sorted((1.0, *CAPACITIES)):
        try:
            scaled = _scaled(costs, capacity, factor)
            plan = make_plan(costs, packer, scaled, gpus, seed, 0)
        except InputError:
            continue  # a structure would not fit
        epoch = cluster.epoch(plan)
        rows.append(
            {
                "factor": factor,
                "max_atoms": scaled.max_atoms,
                "max_edges": scaled.max_edges,
                "steps": plan.n_steps,
                "structures_per_step": len(costs) / plan.n_steps,
                "straggler": plan.straggler,
                "least_straggler": plan.least_straggler,
                "epoch_s": epoch.total_s,
                "efficiency": epoch.efficiency,
            }
        )
    return rows


def _scaled(costs: Costs, capacity: Capacity, factor: float) -> Capacity:
    """A capacity of another size, of which every structure leaves room for itself."""
    atoms = max(int(factor * capacity.max_atoms), int(costs.n_atoms.max()))
    edges = max(int(factor * capacity.max_edges), int(costs.n_edges.max()))
    size = capacity.batch_size and max(1, round(factor * capacity.batch_size))
    memory = capacity.max_memory and int(factor * capacity.max_memory)
    return Capacity(atoms, edges, size, memory)


def optimality_gap(costs: Costs, settings: BalanceSettings) -> dict[str, Any] | None:
    """The gap on draws of these structures; None if not asked for."""
    if settings.gap_instances == 0:
        return None
    return gap_of(instances(costs, settings.gap_instances, settings.seed)).numbers()


@dataclass(frozen=True)
class Scaling:
    """Predicted epochs over the number of GPUs, ascending, by packer."""

    strong: dict[str, list[Epoch]]
    """The data set on 8 to 4096 GPUs, at most one per structure."""
    weak: dict[str, list[Epoch]]
    """As many structures per GPU everywhere, on 8 to 4096 GPUs."""

    def numbers(self) -> dict[str, dict[str, list[dict[str, float]]]]:
        """What balance.json holds: "strong" and "weak", by packer, one row per number of GPUs."""
        return {
            name: {packer: [predicted(epoch) for epoch in epochs] for packer, epochs in by_packer}
            for name, by_packer in (("strong", self.strong.items()), ("weak", self.weak.items()))
        }


def scaling(
    costs: Costs,
    results: list[PackerResult],
    batching: BatchingSettings,
    seed: int,
    cluster: Cluster,
) -> Scaling:
    """Strong and weak scaling from 8 to 4096 GPUs for every packer."""
    strong, weak = {}, {}
    ranks = [n for n in RANKS if n <= len(costs)]
    balanced = results[0].plan
    per_rank = max(1, round(WEAK_STEPS * len(costs) / len(balanced.bins)))
    for result in track(results, "scaling", transient=True, disable=len(costs) < 100_000):
        packer = result.packer
        size = batching.batch_size if packer == "fixed_count" else result.capacity.batch_size
        capacity = replace(result.capacity, batch_size=size)
        strong[packer] = strong_scaling(costs, packer, capacity, cluster, ranks, seed)
        weak[packer] = weak_scaling(costs, packer, capacity, cluster, list(RANKS), per_rank, seed)
    return Scaling(strong, weak)


def balance(settings: BalanceSettings) -> dict[str, Any]:
    """Print the report, write it if asked to, and return what balance.json holds.

    Raises ``InputError`` for a folder without shards or a structure above the capacity.
    """
    shards = open_split(existing_folder("data_dir", settings.data_dir), settings.split)
    sizes = Costs(shards.n_atoms.astype(np.int64), shards.n_edges.astype(np.int64))
    if settings.batching.ratios_by_head():
        heads = Heads(shards.heads, heads_of(shards, shards.heads, str(shards.folder)))
        sampling = head_sampling(settings.batching, heads, settings.seed)
        sizes = sizes if sampling is None else sampling.samples(0).costs(sizes)
    costs = with_cost_model(sizes, settings.batching)
    return report_on(costs, settings, Console().print)


def report_on(costs: Costs, settings: BalanceSettings, show: Callable[..., None]) -> dict[str, Any]:
    """The report on given sizes."""
    if settings.output is not None:
        make_folder("output", Path(settings.output))
    batching, cluster = settings.batching, cluster_of(settings)
    results = compare(costs, batching, settings.gpus, settings.seed, cluster)
    capacity = results[0].capacity
    packer = "balanced" if batching.packer == "fixed_count" else batching.packer
    report: dict[str, Any] = {
        "data_dir": str(settings.data_dir),
        "split": settings.split,
        "gpus": settings.gpus,
        "seed": settings.seed,
        "structures": len(costs),
        "atoms": int(costs.n_atoms.sum()),
        "edges": int(costs.n_edges.sum()),
        "cost": f"atoms + edges / {costs.edges_per_atom}",
        "batch_size": batching.batch_size,
        "max_atoms": capacity.max_atoms,
        "max_edges": capacity.max_edges,
        "max_memory_gb": batching.max_memory_gb,
        "selected": batching.packer,
        "cluster": asdict(cluster),
        "assumptions": ASSUMPTIONS,
        "optimality_gap": optimality_gap(costs, settings),
        "packers": {result.packer: result.numbers() for result in results},
        "capacities": other_capacities(
            costs, packer, capacity, settings.gpus, settings.seed, cluster
        ),
    }
    if settings.scaling:
        report["scaling"] = scaling(costs, results, batching, settings.seed, cluster).numbers()
    for table in tables.all_tables(report):
        show(table)
    if settings.output is not None:
        plans = {result.packer: result.plan for result in results}
        with written_together(Path(settings.output)) as new:
            (new / "balance.json").write_text(json.dumps(report, indent=2) + "\n")
            plots.bins_and_ranks(plans, capacity).savefig(new / "balance.png", dpi=150)
            if settings.scaling:
                plots.scaling(report["scaling"]).savefig(new / "scaling.png", dpi=150)
    return report
