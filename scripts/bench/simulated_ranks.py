"""Predicted against measured epochs: real processes, real gloo all-reduce, emulated computing.

    python scripts/bench/simulated_ranks.py --json simulated_ranks.json [--figure FILE]

2, 4, 8 and 16 ranks on this machine share few cores, so computing is emulated: a rank sleeps for
the time that the cost model gives its bin, then all ranks sum gradients of the given size through
gloo. Sleeping ranks take no core from each other; the all-reduce is real. Its latency and bandwidth
are measured as one does on a cluster, by all-reduces of two sizes between ranks that do nothing
else, here for each number of ranks, since they share this machine's cores; neither size is that of
the gradients. How the epochs come out of it is predicted by simulate.py. Every epoch is measured
three times and the fastest counts, because others use this machine. Batches of a fixed number of
structures (long waits) and balanced ones are both run. Exit code 1 if a prediction is more than
15 % off.
"""

import argparse
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import numpy as np  # noqa: E402
import size_sets  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from torch import multiprocessing  # noqa: E402

from mace_train.balance.cost_model import CostModel  # noqa: E402
from mace_train.balance.costs import Capacity  # noqa: E402
from mace_train.balance.plan import Plan, make_plan  # noqa: E402
from mace_train.balance.simulate import Cluster, Fabric  # noqa: E402

RANKS = (2, 4, 8, 16)
GRADIENT_BYTES = 2_000_000
MODEL = CostModel(0.002, 1.2e-5, 4e-7, source="emulated: 80 ms for 3072 atoms, 38 edges each")
LIMIT = 0.15
STEPS = 16
REPEATS = 3


def plan_for(packer: str, ranks: int) -> Plan:
    """About STEPS steps; both packers have the same mean number of structures per bin."""
    per_bin = 26
    costs = size_sets.paper(ranks * STEPS * per_bin)
    capacity = Capacity(3072, 200_000, per_bin if packer == "fixed_count" else None)
    return make_plan(costs, packer, capacity, ranks, 0, 0)


def run(ranks: int, jobs: list[tuple[list[list[float]], int]]) -> list[float]:
    """Wall seconds of every job: ([steps][ranks] seconds of computing, bytes to sum)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    multiprocessing.start_processes(
        _rank, args=(ranks, port, jobs, results), nprocs=ranks, start_method="fork"
    )
    return results.get()


def _rank(rank: int, ranks: int, port: int, jobs: list[Any], results: Any) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    seconds = []
    for computing, n_bytes in jobs:
        gradient = torch.ones(n_bytes // 4)
        dist.all_reduce(gradient)  # connections are made
        dist.barrier()
        start = time.perf_counter()
        for step in computing:
            if step[rank] > 0:
                time.sleep(step[rank])
            dist.all_reduce(gradient)
        dist.barrier()
        seconds.append(time.perf_counter() - start)
    if rank == 0:
        results.put(seconds)
    dist.destroy_process_group()


def measured_fabric(ranks: int) -> Fabric:
    """Latency and bandwidth of a link, from ring all-reduces of two sizes."""
    small, large, n = 4096, 8_000_000, 20
    idle = [[0.0] * ranks] * n
    times = run(ranks, [(idle, small), (idle, large)] * REPEATS)
    at_small, at_large = (min(times[i::2]) / n for i in (0, 1))
    hops = 2 * (ranks - 1)  # each: alpha + B / (G beta)
    bandwidth = hops * (large - small) / ranks / max(at_large - at_small, 1e-9)
    latency = max(0.0, at_small / hops - small / (ranks * bandwidth))
    return Fabric(f"gloo, {ranks} ranks", bandwidth, latency)


def main() -> int:
    """Measure and compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    arguments = parser.parse_args()
    rows = []
    for ranks in RANKS:
        fabric = measured_fabric(ranks)
        print(
            f"{fabric.name} on {os.cpu_count()} cores: {fabric.latency_s * 1e6:.0f} us, "
            f"{fabric.bandwidth / 1e9:.2f} GB/s"
        )
        cluster = Cluster(MODEL, fabric, GRADIENT_BYTES)
        plans = {packer: plan_for(packer, ranks) for packer in ("fixed_count", "balanced")}
        jobs = [
            (MODEL.seconds(plan.n_atoms, plan.n_edges).tolist(), GRADIENT_BYTES)
            for plan in plans.values()
        ]
        times = run(ranks, jobs * REPEATS)
        for i, (packer, plan) in enumerate(plans.items()):
            measured = min(times[i :: len(plans)])
            epoch = cluster.epoch(plan)
            off = abs(epoch.total_s / measured - 1)
            rows.append(
                {
                    "name": f"{packer}, {ranks} ranks",
                    "ours": epoch.total_s,
                    "peer": measured,
                    "ratio": LIMIT / max(off, 1e-9),
                    "at_least": 1.0,
                    "compute_s": epoch.compute_s,
                    "waiting_s": epoch.waiting_s,
                    "communication_s": epoch.communication_s,
                }
            )
            print(
                f"{packer:<12} {ranks:>2} ranks, {plan.n_steps} steps: predicted "
                f"{epoch.total_s:.3f} s (compute {epoch.compute_s:.3f}, waiting "
                f"{epoch.waiting_s:.3f}, communication {epoch.communication_s:.3f}), measured "
                f"{measured:.3f} s, {epoch.total_s / measured - 1:+.1%}",
                flush=True,
            )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    if arguments.figure is not None:
        _figure(rows, arguments.figure)
    return int(any(row["ratio"] < 1 for row in rows))


def _figure(rows: list[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    places, bottom = np.arange(len(rows)), np.zeros(len(rows))
    for part in ("compute_s", "waiting_s", "communication_s"):
        values = np.array([row[part] for row in rows])
        axes.bar(places, values, bottom=bottom, label=f"predicted {part[:-2]}")
        bottom += values
    axes.plot(places, [row["peer"] for row in rows], "k_", ms=22, mew=2, label="measured")
    axes.set_xticks(places, [row["name"].replace(", ", "\n") for row in rows], fontsize=7)
    axes.set(ylabel="epoch, s")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
