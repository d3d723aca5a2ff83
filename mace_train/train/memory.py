"""How much a bin may hold: peak memory measured in a few steps, fitted, and solved for a capacity.

    peak = m_0 + m_a * atoms + m_e * edges,   m >= 0        (balance.cost_model.fit_linear_costs)

Bins grow until a probe takes a third of the memory. At every size one bin is of the structures
with the fewest edges per atom and one of those with the most, which separates the two slopes. The
capacity keeps MARGIN free and has EDGE_SLACK more edges per atom than the data have on average; it
is the smallest over all ranks. Memory is what PyTorch allocates on a GPU, or the resident memory of
the process on the CPU (Linux). Cost: some ten forward and backward passes.
"""

import logging
import os
import re
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mace_train.balance.cost_model import LinearCosts, fit_linear_costs
from mace_train.balance.costs import Capacity, ceil_div
from mace_train.data.graph import Graph
from mace_train.distributed.world import World
from mace_train.errors import InputError
from mace_train.train.loss import label_counts
from mace_train.train.run import Run
from mace_train.train.step import backward, out_of_memory
from mace_train.train.timing import StepTimer

LOGGER = logging.getLogger("mace_train")
MARGIN = 0.1
EDGE_SLACK = 1.15
PROBED_SHARE = 1 / 3
FEWEST_PROBES, MOST_PROBES = 6, 24


def calibrate_capacity(run: Run) -> Capacity:
    """The capacity that the memory of the smallest device allows; the same on all ranks."""
    budget = _budget(run)
    probes = _probe(run, budget)
    fit = fit_linear_costs(*probes.T)
    n_atoms, n_edges = map(min, zip(*run.world.gather_all(_solve(run, fit, budget)), strict=True))
    costs = run.train.costs
    if n_atoms < costs.n_atoms.max() or n_edges < costs.n_edges.max():
        raise InputError(
            f"batching.capacity=auto: memory of {budget / 1e9:.2f} GB is enough for {n_atoms} "
            f"atoms and {n_edges} edges, but a structure has {costs.n_atoms.max()} atoms and one "
            f"{costs.n_edges.max()} edges; use a smaller model or remove these structures"
        )
    LOGGER.info(
        "memory: %.0f MB + %.1f kB per atom + %.2f kB per edge (%d probes); with %.0f MB and a "
        "margin of %.0f %% a bin holds at most %d atoms and %d edges",
        fit.fixed / 1e6,
        fit.per_atom / 1e3,
        fit.per_edge / 1e3,
        len(probes),
        budget / 1e6,
        100 * MARGIN,
        n_atoms,
        n_edges,
    )
    return Capacity(n_atoms, n_edges)


def _solve(run: Run, fit: LinearCosts, budget: float) -> tuple[int, int]:
    """(atoms, edges) that fill the budget but for the margin; no more than one step of all data."""
    epoch = run.sampler.mean_epoch
    edges_per_atom = EDGE_SLACK * float(epoch.n_edges / epoch.n_atoms)
    room = (1.0 - MARGIN) * budget - fit.fixed - _optimizer_bytes(run.updater.parameters)
    n_atoms = int(max(room, 0.0) / max(fit.per_atom + fit.per_edge * edges_per_atom, 1e-9))
    most = ceil_div(epoch.n_atoms, run.world.size) + int(run.train.costs.n_atoms.max())
    n_atoms = min(n_atoms, most)
    return n_atoms, int(n_atoms * edges_per_atom)


def _optimizer_bytes(parameters: list[nn.Parameter]) -> float:
    """Bytes that the first step of the optimizer adds: up to three numbers per weight."""
    return 3.0 * sum(p.numel() * p.element_size() for p in parameters)


def _probe(run: Run, budget: float) -> NDArray[np.float64]:
    """Rows [n, 3] of atoms, edges and peak bytes, in the order of growing bins."""
    costs = run.train.costs
    density = costs.n_edges / costs.n_atoms
    orders = np.argsort(density, kind="stable"), np.argsort(-density, kind="stable")
    rows: list[tuple[float, float, float]] = []
    n_atoms = int(costs.n_atoms.max())
    while len(rows) < MOST_PROBES:
        bins = [_bin(costs.n_atoms, order, n_atoms) for order in orders]
        for graph in list(run.graphs(run.train, bins, ahead=False)):
            try:
                peak = _peak(run, graph)
            except RuntimeError as error:
                if not out_of_memory(error) or len(rows) < 3:
                    raise
                return np.array(rows)
            rows.append((graph.n_atoms, graph.n_edges, peak))
        if rows[-1][2] > PROBED_SHARE * budget and len(rows) >= FEWEST_PROBES:
            break
        n_atoms = int(1.7 * n_atoms) + 1
    return np.array(rows)


def _bin(sizes: NDArray[np.int64], order: NDArray[np.int64], n_atoms: int) -> NDArray[np.int64]:
    """Ids of about ``n_atoms`` atoms in that order; structures repeat where there are too few."""
    rounds = -(-n_atoms // int(sizes.sum()))
    ids = np.tile(order, rounds)
    return ids[: max(1, int(np.searchsorted(np.cumsum(sizes[ids]), n_atoms, side="right")))]


def _peak(run: Run, graph: Graph) -> float:
    """Peak memory, in bytes, of the gradient of one bin."""
    loss, updater = run.stage.loss, run.updater
    counts = label_counts(graph, loss.loss)
    weight = run.train.weight_of[graph.ids]
    updater.zero_gradients()
    reset_peak(run.world)
    backward(updater, graph, weight, loss, lambda: counts, StepTimer())
    return peak(run.world)


def reset_peak(world: World) -> None:
    """Measure peaks from here on."""
    if world.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(world.device)
        return
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak becomes what is resident now


def peak(world: World) -> float:
    """Largest memory since ``reset_peak``, in bytes."""
    if world.device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(world.device))
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return 1024.0 * int(found[1])


def _budget(run: Run) -> float:
    """Bytes that a rank may use: those of the settings, or the free memory of its device."""
    given = run.settings.batching.max_memory_gb
    if given is not None:
        return 1e9 * given
    if run.world.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(run.world.device)
        return float(free + torch.cuda.memory_reserved(run.world.device))
    page = os.sysconf("SC_PAGE_SIZE")
    return float(page * os.sysconf("SC_AVPHYS_PAGES")) / run.world.local_size
