"""What data parallelism costs: a step of two ranks, and the same work on one.

Two gloo ranks hold half of the structures each. In turns they make a step (loss, backward, sums)

    whole       all structures on rank 0, while rank 1 waits
    alone       each its half, without communication: what two processes on this machine cost
    mace-train  each its half, with this package's gradients
    DDP         each its half, with torch's DistributedDataParallel

The time of a step is that of the slower rank. All kinds are timed in every round, and the median
over rounds of the ratio within a round is what counts, as others use this machine. CPU time is that
of all threads of both ranks. Also printed: the share of the gradient whose all-reduce has started
before the backward pass has ended.

    python scripts/bench/data_parallel.py --json data_parallel.json [--channels 64] [--steps 15]
                                          [--device cuda]

With --device cuda both ranks use the same GPU, which training refuses: that says nothing of speed,
and the row is the gradient that two ranks sum against that of all structures on one.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from torch import nn  # noqa: E402

from mace_train._paths import EXAMPLE_DATA  # noqa: E402
from mace_train.data.graph import Graph  # noqa: E402
from mace_train.data.loading.loader import collate  # noqa: E402
from mace_train.data.read import read_structures  # noqa: E402
from mace_train.data.shards.shard_set import sample_of  # noqa: E402
from mace_train.data.structure import LabelKeys  # noqa: E402
from mace_train.distributed.world import World  # noqa: E402
from mace_train.model.derivatives import predict  # noqa: E402
from mace_train.model.mace import MACE, Head, ModelData  # noqa: E402
from mace_train.settings import LossSettings, ModelSettings  # noqa: E402
from mace_train.train.gradients import Gradients  # noqa: E402
from mace_train.train.loss import label_counts, loss_sums  # noqa: E402
from tests.train.ranks import run_ranks  # noqa: E402

KEYS = LabelKeys("REF_energy", "REF_forces", "REF_stress", "REF_virials")
R_MAX = 5.0
KINDS = ("whole", "alone", "mace-train", "DDP")
MOST_ERROR = 1e-5  # of a gradient in float32


def main() -> int:
    """Time the kinds of steps, print the table; 0 if ours is no slower than torch's."""
    arguments = _arguments()
    arguments.work.mkdir(parents=True, exist_ok=True)
    results = run_ranks(2, times, arguments.work, vars(arguments))
    wall = {name: np.max([r["wall"][name] for r in results], axis=0) for name in KINDS}
    cpu = {name: np.sum([r["cpu"][name] for r in results], axis=0) for name in KINDS}
    print(f"{results[0]['n_weights']} weights, {results[0]['n_atoms']} atoms per rank")
    print("| step | ms | over alone | CPU time of both, ms | over alone |")
    print("|---|---|---|---|---|")
    for name in KINDS:
        cells = []
        for times_of in (wall, cpu):
            share = _ratio(times_of[name], times_of["alone"]) - 1
            cells.append(f"{1000 * np.median(times_of[name]):.1f} | {100 * share:+.1f} %")
        print(f"| {name} | {' | '.join(cells)} |")
    faster = _ratio(wall["whole"], wall["mace-train"])
    print(f"\ntwo ranks are {faster:.2f} times as fast as one; without any communication they")
    print(f"would be {_ratio(wall['whole'], wall['alone']):.2f} times as fast on this machine")
    print(f"sent before the end of the backward pass: {100 * results[0]['sent_early']:.0f} %")
    error = results[0]["error"]
    print(f"gradient of two ranks against that of one: relative difference {error:.1e}")
    rows = [
        _row("step of 2 ranks over DDP's", _ratio(wall["mace-train"], wall["DDP"]), 1 / 0.95),
        _row("step of 2 ranks over one alone", _ratio(wall["mace-train"], wall["alone"]), 1.25),
        _row("its CPU time over one alone", _ratio(cpu["mace-train"], cpu["alone"]), 1.25),
    ]
    if arguments.device == "cuda":
        rows = [_row("gradient of 2 ranks on a GPU, relative error", max(error, 1e-30), MOST_ERROR)]
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0 if all(row["ratio"] >= row["at_least"] for row in rows) else 1


def _ratio(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """The median over rounds."""
    return float(np.median(one / other))


def _row(name: str, ours: float, at_most: float) -> dict[str, Any]:
    return {"name": name, "ours": ours, "peer": 1.0, "ratio": 1 / ours, "at_least": 1 / at_most}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--work", type=Path, default=Path("runs/data_parallel"))
    parser.add_argument("--json", type=Path, help="write the rows here")
    return parser.parse_args()


class ForceField(nn.Module):
    """Model and derivatives as one module, which is what DDP wraps."""

    def __init__(self, model: MACE) -> None:
        super().__init__()
        self.model = model

    def forward(self, graph: Graph) -> torch.Tensor:
        """The loss of a batch."""
        prediction = predict(self.model, graph, stress=False, create_graph=True)
        return loss_sums(prediction, graph).loss(LossSettings())


def times(world: World, options: dict[str, Any]) -> dict[str, Any]:
    """Wall and CPU seconds of every step on this rank, by kind, in turns."""
    torch.manual_seed(0)
    world = replace(world, device=torch.device(options["device"]))
    graph, everything = (_graph(rank).to(world.device) for rank in (world.rank, None))
    settings = ModelSettings(num_channels=options["channels"])
    data = ModelData(R_MAX, (1, 6, 7, 8), 20.0, (Head((0.0,) * 4, 1.0, 0.0),))
    models = [MACE(settings, data).to(world.device) for _ in range(3)]
    for model in models[1:]:
        model.load_state_dict(models[0].state_dict())
    alone = Gradients(list(models[0].parameters()), World(device=world.device))
    ours = Gradients(list(models[1].parameters()), world)
    wrapped = nn.parallel.DistributedDataParallel(ForceField(models[2]))
    sent_early: list[float] = []

    def with_gradients(gradients: Gradients, model: MACE, graph: Graph) -> None:
        gradients.begin()
        gradients.send_when_done()
        loss = ForceField(model)(graph)
        torch.autograd.backward(loss, inputs=list(model.parameters()))
        sent = sum(gradients.flat[b].numel() for b in gradients._buckets[: len(gradients._works)])
        sent_early.append(sent / gradients.flat.numel())
        gradients.finish()

    def with_ddp() -> None:
        for parameter in wrapped.parameters():
            parameter.grad = None
        torch.autograd.backward(wrapped(graph), inputs=list(models[2].parameters()))

    def whole() -> None:
        if world.is_main:
            with_gradients(alone, models[0], everything)

    steps: dict[str, Callable[[], None]] = {
        "whole": whole,
        "alone": lambda: with_gradients(alone, models[0], graph),
        "DDP": with_ddp,
        "mace-train": lambda: with_gradients(ours, models[1], graph),
    }
    wall: dict[str, list[float]] = {name: [] for name in steps}
    cpu: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(options["steps"] + 2):
        for turn in range(len(KINDS)):  # in another order from round to round
            name = KINDS[(repeat + turn * (1 + repeat % 2 * 2)) % len(KINDS)]
            world.barrier()
            start, start_of_cpu = time.perf_counter(), time.process_time()
            steps[name]()
            if world.device.type == "cuda":
                torch.cuda.synchronize()
            if repeat >= 2:
                wall[name].append(time.perf_counter() - start)
                cpu[name].append(time.process_time() - start_of_cpu)
    two = gradient_of(ours, models[1], graph, everything)
    one = gradient_of(alone, models[0], everything, everything)
    n_weights = sum(parameter.numel() for parameter in models[0].parameters())
    facts = {"error": float((two - one).norm() / one.norm()), "n_weights": n_weights}
    facts |= {"n_atoms": graph.n_atoms, "sent_early": sent_early[-1]}
    return {"wall": wall, "cpu": cpu, **facts}


def gradient_of(gradients: Gradients, model: MACE, graph: Graph, everything: Graph) -> torch.Tensor:
    """The gradient of the mean loss of all structures, summed over the ranks of ``gradients``."""
    gradients.begin()
    gradients.send_when_done()
    sums = loss_sums(predict(model, graph, stress=False, create_graph=True), graph)
    loss = sums.loss(LossSettings(), label_counts(everything).to(sums.numerators))
    torch.autograd.backward(loss, inputs=list(model.parameters()))
    gradients.finish()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def _graph(rank: int | None) -> Graph:
    """Eight structures of 25 to 30 atoms of the example data for each rank; None: all of them."""
    file = EXAMPLE_DATA / "train.extxyz.gz"
    found = [s for s in read_structures([str(file)], KEYS) if 25 <= len(s.numbers) <= 30][:16]
    chosen = found if rank is None else found[rank::2]
    samples = [sample_of(structure, R_MAX) for structure in chosen]
    ids = torch.arange(len(samples)).numpy()
    return collate(samples, ids, atomic_numbers=(1, 6, 7, 8), dtype=torch.float32)


if __name__ == "__main__":
    os.environ["PYTHONPATH"] = str(ROOT)
    sys.exit(main())
