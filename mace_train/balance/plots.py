"""Figures of the balance report."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from mace_train.balance.costs import Capacity
from mace_train.balance.plan import Plan

Floats = NDArray[np.float64]


def bins_and_ranks(plans: Mapping[str, Plan], capacity: Capacity) -> Figure:
    """Fill and cost of bins, straggler ratio of steps; cost of the ranks over the steps of each."""
    n_columns = max(3, len(plans))
    figure = Figure(figsize=(4.2 * n_columns, 7.5), layout="constrained")
    top, bottom = figure.subplots(2, n_columns)
    first = next(iter(plans.values()))
    unit = f"atoms + edges / {first.costs.edges_per_atom}"
    _histogram(top[0], {name: plan.bin_costs.ravel() for name, plan in plans.items()})
    top[0].set(xlabel=f"cost of a bin ({unit})", ylabel="share of bins")
    fills = {
        name: plan.n_edges.ravel() / max(capacity.max_edges, 1) for name, plan in plans.items()
    }
    for (name, plan), colour in zip(plans.items(), _COLOURS, strict=False):
        atoms = plan.n_atoms.ravel() / capacity.max_atoms
        some = np.linspace(0, len(atoms) - 1, min(len(atoms), 4000)).astype(np.int64)
        top[1].plot(atoms[some], fills[name][some], ".", ms=2, color=colour, label=name)
    top[1].axhline(1, color="black", lw=0.8)
    top[1].axvline(1, color="black", lw=0.8)
    top[1].set(xlabel="atoms of a bin / capacity", ylabel="edges of a bin / capacity")
    for (name, plan), colour in zip(plans.items(), _COLOURS, strict=False):
        ordered = np.sort(plan.imbalance)[::-1]
        top[2].plot(np.linspace(0, 1, len(ordered)), ordered, color=colour, label=name)
    top[2].set(xlabel="share of steps", ylabel="slowest rank / mean")
    for axes in top[:3]:
        axes.legend(fontsize=8)
    for axes in (*top[3:], *bottom[len(plans) :]):
        axes.set_visible(False)
    largest = max(float(plan.bin_costs.max()) for plan in plans.values())
    for axes, (name, plan), colour in zip(bottom, plans.items(), _COLOURS, strict=False):
        low, mean, high = _bands(plan.bin_costs)
        steps = np.linspace(0, plan.n_steps - 1, len(mean))
        axes.fill_between(steps, low, high, alpha=0.3, color=colour, label="all ranks")
        axes.plot(steps, mean, color=colour, label="mean of the ranks")
        axes.set(xlabel="step", ylabel=f"cost of a rank ({unit})", ylim=(0, 1.05 * largest))
        axes.set_title(f"{name}: straggler ratio {plan.straggler:.4f}", fontsize=10)
        axes.legend(fontsize=8)
    return figure


def scaling(predicted: Mapping[str, Mapping[str, list[dict[str, Any]]]]) -> Figure:
    """Epoch time and efficiency under strong scaling, efficiency under weak scaling."""
    figure = Figure(figsize=(13.0, 4.0), layout="constrained")
    time, strong, weak = figure.subplots(1, 3)
    for i, (packer, epochs) in enumerate(predicted["strong"].items()):
        ranks = [epoch["n_ranks"] for epoch in epochs]
        seconds = [epoch["epoch_s"] for epoch in epochs]
        time.loglog(ranks, seconds, "o-", ms=3, color=_COLOURS[i], label=packer)
        share = [epoch["efficiency"] for epoch in epochs]
        strong.semilogx(ranks, share, "o-", ms=3, color=_COLOURS[i], label=packer)
    for i, (packer, epochs) in enumerate(predicted["weak"].items()):
        ranks = [epoch["n_ranks"] for epoch in epochs]
        share = [epoch["efficiency"] for epoch in epochs]
        weak.semilogx(ranks, share, "o-", ms=3, color=_COLOURS[i], label=packer)
    time.set(xlabel="GPUs", ylabel="predicted epoch, s", title="strong scaling")
    strong.set(xlabel="GPUs", ylabel="efficiency", ylim=(0, 1.02), title="strong scaling")
    weak.set(xlabel="GPUs", ylabel="efficiency", ylim=(0, 1.02), title="weak scaling")
    for axes in (time, strong, weak):
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    return figure


_COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple")


def _histogram(axes: Any, values: Mapping[str, Floats]) -> None:
    """Shares of bins; steps, so that several can be seen."""
    _, edges = np.histogram(np.concatenate(list(values.values())), bins=80)
    for (name, of_bins), colour in zip(values.items(), _COLOURS, strict=False):
        weights = np.full(len(of_bins), 1 / len(of_bins))
        axes.hist(of_bins, bins=edges, weights=weights, histtype="step", color=colour, label=name)


def _bands(costs: Floats, n_points: int = 1000) -> tuple[Floats, Floats, Floats]:
    """Least, mean and most cost of the ranks; neighbouring steps share a point beyond n_points."""
    starts = np.unique(np.linspace(0, len(costs), n_points, endpoint=False).astype(np.int64))
    counts = np.diff(np.append(starts, len(costs)))
    return (
        np.minimum.reduceat(costs.min(axis=1), starts),
        np.add.reduceat(costs.mean(axis=1), starts) / counts,
        np.maximum.reduceat(costs.max(axis=1), starts),
    )
