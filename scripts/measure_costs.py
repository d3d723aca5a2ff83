"""Measure what a training step costs on this device, and write the file for batching.cost_model.

    python scripts/measure_costs.py --data prepared --model medium --output costs.json
    mace-train balance data_dir=prepared gpus=64 batching.cost_model=costs.json

Bins of random structures, from one to as many as --max-atoms allows, are trained on in turn with a
model of configs/model; time per step (the median over repeats) and, on CUDA, peak memory are
fitted by linear functions of atoms and edges. Prints the residual: where it is above 1 %, time is
not linear in this range, and balance cannot be better than that.
"""

import argparse
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
import yaml  # noqa: E402

from mace_train._paths import CONFIGS  # noqa: E402
from mace_train.balance.cost_model import fit_memory, fit_times, write_cost_model  # noqa: E402
from mace_train.data.graph import Graph  # noqa: E402
from mace_train.data.loading.loader import batches  # noqa: E402
from mace_train.distributed.world import open_world  # noqa: E402
from mace_train.settings import ModelSettings, TrainSettings  # noqa: E402
from mace_train.train.setup import set_up  # noqa: E402
from mace_train.train.step import train_step  # noqa: E402


def main() -> None:
    """Measure, fit, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of mace-train preprocess")
    parser.add_argument("--model", default="medium", help="name of a file in configs/model")
    parser.add_argument("--max-atoms", type=int, default=500)
    parser.add_argument("--sizes", type=int, default=12, help="number of bins to measure")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    model = yaml.safe_load((CONFIGS / "model" / f"{arguments.model}.yaml").read_text()) or {}
    settings = TrainSettings(
        data_dir=str(arguments.data),
        output=str(arguments.output.with_suffix("")),
        model=ModelSettings(**model),
    )
    with open_world(settings.cluster) as world:
        run = set_up(settings, world)
        cuda = world.device.type == "cuda"
        source = run.train.shards
        order = np.random.default_rng(0).permutation(len(source))
        ends = np.cumsum(source.n_atoms[order])
        goals = np.linspace(
            arguments.max_atoms / arguments.sizes, arguments.max_atoms, arguments.sizes
        )
        counts = [max(1, int(np.searchsorted(ends, goal, side="right"))) for goal in goals]
        bins = [np.sort(order[:count]).astype(np.int64) for count in counts]
        numbers = run.model.data.atomic_numbers
        options = {"dtype": run.dtype, "inputs": run.model.inputs}
        graphs = list(batches(source, bins, atomic_numbers=numbers, **options))
        times: list[list[float]] = [[] for _ in graphs]
        peaks = [0.0] * len(graphs)

        def step(graph: Graph) -> tuple[float, float]:
            if cuda:
                torch.cuda.reset_peak_memory_stats()
                torch.cuda.synchronize()
            start = time.perf_counter()
            train_step(run, [graph], lr=0.0)
            if cuda:
                torch.cuda.synchronize()
            seconds = time.perf_counter() - start
            return seconds, float(torch.cuda.max_memory_allocated()) if cuda else 0.0

        for repeat in range(arguments.repeats + 1):  # the first is warm-up
            for i, graph in enumerate(graphs):
                seconds, peaks[i] = step(graph)
                if repeat:
                    times[i].append(seconds)
    n_atoms = [graph.n_atoms for graph in graphs]
    n_edges = [len(graph.senders) for graph in graphs]
    fitted = fit_times(n_atoms, n_edges, [statistics.median(of_bin) for of_bin in times])
    if cuda:
        fitted = fit_memory(fitted, n_atoms, n_edges, peaks)
    device = torch.cuda.get_device_name() if cuda else "CPU"
    fitted = replace(fitted, source=f"measured: model {arguments.model}, {device}")
    write_cost_model(arguments.output, fitted)
    print(
        f"{fitted.fixed_s * 1e3:.2f} ms + {fitted.atom_s * 1e6:.2f} us per atom + "
        f"{fitted.edge_s * 1e6:.3f} us per edge (an atom is {fitted.edges_per_atom} edges); "
        f"residual {fitted.residual:.1%}"
    )


if __name__ == "__main__":
    main()
