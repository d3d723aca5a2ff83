"""What precision and activation checkpointing cost and save.

Precision: one model of random weights predicts the same structures in float64, in float32, and in
float32 with matrix products in tfloat32 and bfloat16 (matmul_dtype). Printed: RMSE of the forces
against float64, relative to their RMS; the same for the gradient of the loss in the weights; the
time of a step (energies, forces, loss, backward pass) relative to float64, on a CPU its CPU time. A
CPU has no tfloat32: there the factors of every matrix product are rounded to its 10 bits of
mantissa, which gives its error but not its time.

Activation checkpointing: peak memory of a float32 step over the memory before, in a fresh process,
and its time, relative to the plain step, for three models.

    python scripts/bench/precision.py --json precision.json [--channels 128] [--device cuda]
"""

import argparse
import copy
import json
import os
import statistics
import sys
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mace_train._paths import EXAMPLE_DATA
from mace_train.data.graph import Graph
from mace_train.data.loading.loader import collate
from mace_train.data.read import read_structures
from mace_train.data.shards.shard_set import sample_of
from mace_train.data.structure import LabelKeys
from mace_train.distributed.world import World
from mace_train.model.derivatives import predict
from mace_train.model.mace import MACE, Head, ModelData
from mace_train.settings import LossSettings, ModelSettings
from mace_train.train.loss import loss_sums
from mace_train.train.memory import peak, reset_peak

KEYS = LabelKeys("REF_energy", "REF_forces", "REF_stress", "REF_virials")
R_MAX = 5.0
MODES = (
    ("float64", "default"),
    ("float32", "default"),
    ("float32", "tfloat32"),
    ("float32", "bfloat16"),
)
# of forces, relative to their RMS
MOST_ERROR = {"default": 1e-4, "tfloat32": 1e-2, "bfloat16": 3e-2}
MOST_MEMORY = 0.75  # with activation checkpointing, relative to a plain step


def main() -> int:
    """Print the tables; 0 if everything is within its limit."""
    arguments = _arguments()
    torch.set_num_threads(1)
    rows = precisions(arguments) + checkpointing(arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0 if all(row["ratio"] >= row["at_least"] for row in rows) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the rows here")
    return parser.parse_args()


def precisions(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The table of precisions."""
    model = _model(arguments.channels, 1).double()
    found = {mode: measure(model, mode, arguments) for mode in MODES}
    exact = found[MODES[0]]
    is_emulated = arguments.device == "cpu"
    print(f"model {arguments.channels}x0e+{arguments.channels}x1o, {arguments.device}\n")
    print("| default_dtype | matmul_dtype | force error | gradient error | time of a step |")
    print("|---|---|---|---|---|")
    rows = []
    for (dtype, products), result in found.items():
        force = _relative(result["forces"], exact["forces"])
        gradient = _relative(result["gradient"], exact["gradient"])
        share = f"{result['seconds'] / exact['seconds']:.2f}"
        if products == "tfloat32" and is_emulated:
            products, share = "tfloat32 (rounding emulated)", "not measured"
        print(f"| {dtype} | {products} | {force:.1e} | {gradient:.1e} | {share} |")
        limit = MOST_ERROR[products.split(" ")[0]]
        row = {"name": f"force error {dtype} {products}", "ours": force, "peer": limit}
        rows.append(row | {"ratio": limit / max(force, 1e-30), "at_least": 1.0})
    return rows


def measure(model: MACE, mode: tuple[str, str], arguments: argparse.Namespace) -> dict[str, Any]:
    """Forces, gradient in the weights, and median seconds of a step."""
    dtype, products = getattr(torch, mode[0]), mode[1]
    model = copy.deepcopy(model).to(dtype).to(arguments.device)
    model.set_matmul_dtype(torch.bfloat16 if products == "bfloat16" else None)
    graph = _graph(dtype).to(torch.device(arguments.device))
    if products == "tfloat32" and arguments.device == "cpu":
        with RoundedProducts():
            return _step(model, graph) | {"seconds": float("nan")}
    torch.set_float32_matmul_precision("high" if products == "tfloat32" else "highest")
    seconds = []
    for _ in range(arguments.repeats + 1):
        start = _clock(arguments.device)
        result = _step(model, graph)
        seconds.append(_clock(arguments.device) - start)
    torch.set_float32_matmul_precision("highest")
    return result | {"seconds": statistics.median(seconds[1:])}


class RoundedProducts(TorchDispatchMode):
    """Matrix products whose factors have 10 bits of mantissa, rounded to nearest, as on a GPU."""

    PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.bmm.default)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function in self.PRODUCTS:
            args = [_rounded(factor) for factor in args]
        return function(*args, **(kwargs or {}))


def _rounded(x: Tensor) -> Tensor:
    """float32 with the last 13 of 23 bits of mantissa rounded away."""
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


def _step(model: MACE, graph: Graph) -> dict[str, Any]:
    prediction = predict(model, graph, stress=False, create_graph=True)
    loss = loss_sums(prediction, graph).loss(LossSettings())
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    assert prediction.forces is not None
    return {
        "forces": prediction.forces.detach().double().cpu(),
        "gradient": torch.cat([g.flatten().double().cpu() for g in gradients]),
    }


def _clock(device: str) -> float:
    """Seconds of CPU time, or of wall time once the GPU has done all."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def _relative(value: Tensor, exact: Tensor) -> float:
    return float((value - exact).square().mean().sqrt() / exact.square().mean().sqrt())


def checkpointing(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The table of activation checkpointing."""
    print("\n| model | plain, MB | activation checkpointing, MB | memory | time |")
    print("|---|---|---|---|---|")
    rows = []
    for max_L in range(3):
        c = arguments.channels
        name = "+".join(f"{c}x{l}{'eo'[l % 2]}" for l in range(max_L + 1))  # noqa: E741
        plain, saving = (_in_process(c, max_L, on, arguments) for on in (False, True))
        share = saving["bytes"] / plain["bytes"]
        longer = saving["seconds"] / plain["seconds"]
        print(
            f"| {name} | {plain['bytes'] / 1e6:.0f} | {saving['bytes'] / 1e6:.0f} "
            f"| {share:.2f} | {longer:.2f} |"
        )
        row = {"name": f"memory {name}", "ours": share, "peer": MOST_MEMORY}
        rows.append(row | {"ratio": MOST_MEMORY / share, "at_least": 1.0})
    return rows


def _in_process(
    channels: int, max_L: int, on: bool, arguments: argparse.Namespace
) -> dict[str, float]:
    with get_context("spawn").Pool(1) as pool:
        options = (channels, max_L, on, arguments.device, arguments.repeats)
        found: dict[str, float] = pool.apply(memory_and_time, options)
    return found


def memory_and_time(
    channels: int, max_L: int, on: bool, device: str, repeats: int
) -> dict[str, float]:
    """Peak bytes of the second step over those before the first, and median seconds."""
    torch.set_num_threads(1)
    model = _model(channels, max_L).to(device)
    model.checkpoint_activations(on)
    few, graph = (_graph(torch.float32, n).to(torch.device(device)) for n in (1, 10))
    _step(model, few)  # tables are made, kernels loaded
    world = World(device=torch.device(device))
    reset_peak(world)
    before = peak(world)
    _step(model, graph)
    used = peak(world) - before
    seconds = []
    for _ in range(repeats):
        start = _clock(device)
        _step(model, graph)
        seconds.append(_clock(device) - start)
    return {"bytes": used, "seconds": statistics.median(seconds)}


def _model(channels: int, max_L: int) -> MACE:
    torch.manual_seed(0)
    data = ModelData(R_MAX, (1, 6, 7, 8), 20.0, (Head((0.0,) * 4, 1.0, 0.0),))
    return MACE(ModelSettings(num_channels=channels, max_L=max_L), data)


def _graph(dtype: torch.dtype, n: int = 10) -> Graph:
    """Structures of 25 to 30 atoms of the example data."""
    file = EXAMPLE_DATA / "train.extxyz.gz"
    found = [s for s in read_structures([str(file)], KEYS) if 25 <= len(s.numbers) <= 30]
    samples = [sample_of(structure, R_MAX) for structure in found[:n]]
    return collate(samples, torch.arange(n).numpy(), atomic_numbers=(1, 6, 7, 8), dtype=dtype)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
