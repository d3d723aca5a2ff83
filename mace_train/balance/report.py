"""The report of ``mace-train balance``: all packers, compared on the sizes of a data set.

For every packer the plan of epoch 0 is made as training on that many GPUs would make it, and its
steps, straggler ratio (see plan.py), fill, largest bin and structures per step are set side by
side. No GPU and no model is used; the cost of a structure is atoms + edges / 30.

Writes balance.json (all numbers) and balance.png (bin loads, and the cost of the ranks over the
steps) into the output folder, when one is given. Takes as long as the plans do.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from mace_train.balance.costs import EDGES_PER_ATOM, Capacity, Costs, derive_capacity
from mace_train.balance.packers import PACKERS
from mace_train.balance.plan import Plan, make_plan
from mace_train.checks import existing_folder, make_folder
from mace_train.data.statistics import open_split
from mace_train.settings import BalanceSettings, BatchingSettings


@dataclass(frozen=True)
class Entry:
    """One packer's plan of epoch 0."""

    packer: str
    plan: Plan
    capacity: Capacity
    plan_s: float
    """Time to make the plan, s."""

    def numbers(self) -> dict[str, Any]:
        """What balance.json holds about the packer; shares of the capacity are not in percent."""
        plan = self.plan
        fill_atoms, fill_edges = plan.fill(self.capacity)
        per_step = plan.n_structures.sum(axis=1)
        return {
            "steps": plan.n_steps,
            "straggler": plan.straggler,
            "worst_step_imbalance": float(plan.imbalance.max()),
            "fill_atoms": fill_atoms,
            "fill_edges": fill_edges,
            "largest_bin_atoms": int(plan.n_atoms.max()),
            "largest_bin_edges": int(plan.n_edges.max()),
            "bins_over_capacity": plan.n_over(self.capacity),
            "empty_bins": int((plan.n_structures == 0).sum()),
            "structures_per_step": {
                "min": int(per_step.min()),
                "mean": float(per_step.mean()),
                "max": int(per_step.max()),
            },
            "plan_s": self.plan_s,
        }


def compare(costs: Costs, batching: BatchingSettings, gpus: int, seed: int) -> list[Entry]:
    """The plan of epoch 0 by every packer, fill and overflow measured against one capacity.

    Raises ``InputError`` when a structure is above a given capacity.
    """
    capacity = derive_capacity(costs, batching.batch_size, batching.max_atoms, batching.max_edges)
    counted = Capacity(capacity.max_atoms, capacity.max_edges, batching.batch_size)
    entries = []
    for packer in PACKERS:
        asked = counted if packer == "fixed_count" else capacity
        start = time.perf_counter()
        plan = make_plan(costs, packer, asked, gpus, seed, 0)
        entries.append(Entry(packer, plan, capacity, time.perf_counter() - start))
    return entries


def balance(settings: BalanceSettings) -> dict[str, Any]:
    """Print the comparison, write it if asked to, and return what balance.json holds.

    Raises ``InputError`` for a folder without shards or a structure above the capacity.
    """
    shards = open_split(existing_folder("data_dir", settings.data_dir), settings.split)
    costs = Costs(shards.n_atoms.astype(np.int64), shards.n_edges.astype(np.int64))
    entries = compare(costs, settings.batching, settings.gpus, settings.seed)
    report = _as_dict(costs, entries, settings)
    Console().print(_table(costs, entries, settings))
    if settings.output is not None:
        output = Path(settings.output)
        make_folder("output", output)
        (output / "balance.json").write_text(json.dumps(report, indent=2) + "\n")
        _figure(entries).savefig(output / "balance.png", dpi=150)
    return report


def _as_dict(costs: Costs, entries: list[Entry], settings: BalanceSettings) -> dict[str, Any]:
    capacity = entries[0].capacity
    return {
        "data_dir": str(settings.data_dir),
        "split": settings.split,
        "gpus": settings.gpus,
        "seed": settings.seed,
        "structures": len(costs),
        "atoms": int(costs.n_atoms.sum()),
        "edges": int(costs.n_edges.sum()),
        "cost": f"atoms + edges / {EDGES_PER_ATOM}",
        "batch_size": settings.batching.batch_size,
        "max_atoms": capacity.max_atoms,
        "max_edges": capacity.max_edges,
        "selected": settings.batching.packer,
        "packers": {entry.packer: entry.numbers() for entry in entries},
    }


def _table(costs: Costs, entries: list[Entry], settings: BalanceSettings) -> Table:
    """One column per packer, the selected one marked."""
    capacity = entries[0].capacity
    table = Table(
        title=f"{len(costs)} structures of {settings.split} on {settings.gpus} GPUs, one epoch",
        caption=(
            f"Capacity of one GPU and step: {capacity.max_atoms} atoms, {capacity.max_edges} edges."
            f" Straggler ratio: time of an epoch over that of a perfect balance, at a cost of "
            f"atoms + edges / {EDGES_PER_ATOM} per structure. *: batching.packer"
        ),
    )
    table.add_column("")
    for entry in entries:
        mark = " *" if entry.packer == settings.batching.packer else ""
        table.add_column(entry.packer + mark, justify="right")
    columns = [_cells(entry.numbers()) for entry in entries]
    for name in columns[0]:
        table.add_row(name, *(cells[name] for cells in columns))
    return table


def _cells(numbers: dict[str, Any]) -> dict[str, str]:
    """The rows of the table for one packer."""
    per_step = numbers["structures_per_step"]
    return {
        "steps per epoch": str(numbers["steps"]),
        "straggler ratio": f"{numbers['straggler']:.3f}",
        "worst step, max / mean": f"{numbers['worst_step_imbalance']:.3f}",
        "mean fill, atoms": f"{numbers['fill_atoms']:.1%}",
        "mean fill, edges": f"{numbers['fill_edges']:.1%}",
        "largest bin, atoms": str(numbers["largest_bin_atoms"]),
        "largest bin, edges": str(numbers["largest_bin_edges"]),
        "bins over capacity": str(numbers["bins_over_capacity"]),
        "structures per step": f"{per_step['min']} / {per_step['mean']:.1f} / {per_step['max']}",
        "time to plan, s": f"{numbers['plan_s']:.3f}",
    }


def _figure(entries: list[Entry]) -> Figure:
    """Bin loads of all packers, and the cost of the ranks over the steps of each."""
    figure = Figure(figsize=(4.5 * (len(entries) + 1), 4.0), layout="constrained")
    loads, *bands = figure.subplots(1, len(entries) + 1)
    _, edges = np.histogram(np.concatenate([e.plan.bin_costs.ravel() for e in entries]), bins=60)
    largest = max(float(entry.plan.bin_costs.max()) for entry in entries)
    for entry in entries:
        costs = entry.plan.bin_costs.ravel()
        loads.hist(
            costs,
            bins=edges,
            weights=np.full(costs.size, 1 / costs.size),
            alpha=0.6,
            label=entry.packer,
        )
    loads.set(xlabel="cost of a bin (atoms + edges / 30)", ylabel="share of bins")
    loads.legend()
    for axes, entry in zip(bands, entries, strict=True):
        low, mean, high = _bands(entry.plan.bin_costs)
        steps = np.linspace(0, entry.plan.n_steps - 1, len(mean))
        axes.fill_between(steps, low, high, alpha=0.3, label="least to most of the ranks")
        axes.plot(steps, mean, label="mean of the ranks")
        axes.set(xlabel="step", ylabel="cost of a rank", ylim=(0, 1.05 * largest))
        axes.set_title(f"{entry.packer}: straggler ratio {entry.plan.straggler:.3f}")
        axes.legend(loc="best")
    return figure


def _bands(
    costs: NDArray[np.float64], n_points: int = 1000
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Least, mean and most cost of the ranks; neighbouring steps share a point beyond n_points."""
    starts = np.unique(np.linspace(0, len(costs), n_points, endpoint=False).astype(np.int64))
    counts = np.diff(np.append(starts, len(costs)))
    return (
        np.minimum.reduceat(costs.min(axis=1), starts),
        np.add.reduceat(costs.mean(axis=1), starts) / counts,
        np.maximum.reduceat(costs.max(axis=1), starts),
    )
