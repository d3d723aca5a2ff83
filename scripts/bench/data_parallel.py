"""What data parallelism costs: a step of two ranks against the same step without communication.

Two gloo ranks hold one bin each. In turns they make steps alone (no sums over ranks), with this
package's gradients, and with torch's DistributedDataParallel; the medians of the wall time of a
step (loss, backward pass, sums) are compared. Also printed: the share of the gradient that is on
its way before the backward pass has ended.

    python scripts/bench/data_parallel.py --json data_parallel.json [--channels 64] [--steps 15]
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import nn  # noqa: E402

from mace_train._paths import EXAMPLE_DATA  # noqa: E402
from mace_train.data.graph import Graph  # noqa: E402
from mace_train.data.loading import collate  # noqa: E402
from mace_train.data.read import read_structures  # noqa: E402
from mace_train.data.shards import sample_of  # noqa: E402
from mace_train.data.structure import LabelKeys  # noqa: E402
from mace_train.model.derivatives import predict  # noqa: E402
from mace_train.model.mace import MACE, ModelData  # noqa: E402
from mace_train.settings import LossSettings, ModelSettings  # noqa: E402
from mace_train.train.gradients import Gradients  # noqa: E402
from mace_train.train.loss import loss_sums  # noqa: E402
from mace_train.world import World  # noqa: E402
from tests.train.ranks import run_ranks  # noqa: E402

KEYS = LabelKeys("REF_energy", "REF_forces", "REF_stress", "REF_virials")
R_MAX = 5.0


def main() -> int:
    """Time the three kinds of steps, print the table; 0 if ours is no slower than torch's."""
    arguments = _arguments()
    arguments.work.mkdir(parents=True, exist_ok=True)
    results = run_ranks(2, times, arguments.work, vars(arguments))
    medians = {
        name: statistics.median(max(pair) for pair in zip(*(r[name] for r in results), strict=True))
        for name in ("alone", "mace-train", "DDP")
    }
    print(f"{results[0]['n_weights']} weights, {results[0]['n_atoms']} atoms per rank")
    for name, seconds in medians.items():
        share = seconds / medians["alone"] - 1
        print(f"{name}: {1000 * seconds:.1f} ms per step, {100 * share:+.1f} % over a step alone")
    print(f"sent before the end of the backward pass: {100 * results[0]['sent_early']:.0f} %")
    ratio = medians["DDP"] / medians["mace-train"]
    row = {"name": "step of 2 ranks", "ours": medians["mace-train"], "peer": medians["DDP"]}
    rows: list[dict[str, Any]] = [row | {"ratio": ratio, "at_least": 0.95}]
    over = medians["mace-train"] / medians["alone"]
    row = {"name": "step of 2 ranks over one alone", "ours": over, "peer": 1.0}
    rows.append(row | {"ratio": 1.0 / over, "at_least": 0.8})
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0 if all(row["ratio"] >= row["at_least"] for row in rows) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--steps", type=int, default=15)
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
    """Seconds of every step on this rank, by kind, in turns."""
    torch.manual_seed(0)
    graph = _graph(world.rank)
    settings = ModelSettings(num_channels=options["channels"])
    data = ModelData(R_MAX, (1, 6, 7, 8), (0.0,) * 4, 20.0, 1.0, 0.0)
    models = [MACE(settings, data) for _ in range(3)]
    for model in models[1:]:
        model.load_state_dict(models[0].state_dict())
    alone = Gradients(list(models[0].parameters()), World())
    ours = Gradients(list(models[1].parameters()), world)
    wrapped = nn.parallel.DistributedDataParallel(ForceField(models[2]))
    sent_early: list[float] = []

    def with_gradients(gradients: Gradients, model: MACE) -> None:
        gradients.begin()
        gradients.send_when_done()
        loss = ForceField(model)(graph)
        torch.autograd.backward(loss, inputs=list(model.parameters()))
        sent = sum(gradients._flat[b].numel() for b in gradients._buckets[: len(gradients._works)])
        sent_early.append(sent / gradients._flat.numel())
        gradients.finish()

    def with_ddp() -> None:
        for parameter in wrapped.parameters():
            parameter.grad = None
        torch.autograd.backward(wrapped(graph), inputs=list(models[2].parameters()))

    kinds: dict[str, Callable[[], None]] = {
        "alone": lambda: with_gradients(alone, models[0]),
        "DDP": with_ddp,
        "mace-train": lambda: with_gradients(ours, models[1]),
    }
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for repeat in range(options["steps"] + 2):
        for name, step in kinds.items():
            world.barrier()
            start = time.perf_counter()
            step()
            if repeat >= 2:
                seconds[name].append(time.perf_counter() - start)
    n_weights = sum(parameter.numel() for parameter in models[0].parameters())
    facts = {"n_weights": n_weights, "n_atoms": graph.n_atoms, "sent_early": sent_early[-1]}
    return {**seconds, **facts}


def _graph(rank: int) -> Graph:
    """Eight structures of 25 to 30 atoms of the example data, others for each rank."""
    file = EXAMPLE_DATA / "train.extxyz.gz"
    found = [s for s in read_structures([str(file)], KEYS) if 25 <= len(s.numbers) <= 30]
    samples = [sample_of(structure, R_MAX) for structure in found[rank : 16 + rank : 2]]
    ids = torch.arange(len(samples)).numpy()
    return collate(samples, ids, atomic_numbers=(1, 6, 7, 8), dtype=torch.float32)


if __name__ == "__main__":
    os.environ["PYTHONPATH"] = str(ROOT)
    sys.exit(main())
