"""What precision costs and saves: force errors against float64, and step time.

One model of random weights predicts the same structures in float64 and in float32; on a GPU also in
float32 with products in TF32 (high) and bfloat16 (medium), as torch.set_float32_matmul_precision
has them. Printed: RMSE of the forces relative to their RMS, the same for the gradient of the loss
in the weights, and the time of a step (energies, forces, loss, backward pass), relative to float64.

    python scripts/bench/precision.py --json precision.json [--channels 128] [--device cuda]

Sums over atoms, E0s and loss sums are float64 in all of them.
"""

import argparse
import copy
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from mace_train._paths import EXAMPLE_DATA
from mace_train.data.graph import Graph
from mace_train.data.loading import collate
from mace_train.data.read import read_structures
from mace_train.data.shards import sample_of
from mace_train.data.structure import LabelKeys
from mace_train.model.derivatives import predict
from mace_train.model.mace import MACE, ModelData
from mace_train.settings import LossSettings, ModelSettings
from mace_train.train.loss import loss_sums

KEYS = LabelKeys("REF_energy", "REF_forces", "REF_stress", "REF_virials")
R_MAX = 5.0
MODES = (("float64", "highest"), ("float32", "highest"))
MODES_OF_GPUS = (("float32", "high"), ("float32", "medium"))
MOST_ERROR = {"highest": 1e-4, "high": 1e-2, "medium": 1e-1}  # of forces, relative to their RMS


def main() -> int:
    """Print the table; 0 if every mode is within its limit."""
    arguments = _arguments()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = ModelData(R_MAX, (1, 6, 7, 8), (0.0,) * 4, 20.0, 1.0, 0.0)
    model = MACE(ModelSettings(num_channels=arguments.channels), data).double()
    modes = MODES + MODES_OF_GPUS if arguments.device == "cuda" else MODES
    results = {mode: measure(model, mode, arguments) for mode in modes}
    exact = results[MODES[0]]
    print("| type, products | force error | gradient error | time of a step |")
    print("|---|---|---|---|")
    rows: list[dict[str, Any]] = []
    for (dtype, products), result in results.items():
        force = _relative(result["forces"], exact["forces"])
        gradient = _relative(result["gradient"], exact["gradient"])
        share = result["seconds"] / exact["seconds"]
        print(f"| {dtype}, {products} | {force:.1e} | {gradient:.1e} | {share:.2f} |")
        limit = MOST_ERROR[products]
        row = {"name": f"force error {dtype} {products}", "ours": force, "peer": limit}
        rows.append(row | {"ratio": limit / max(force, 1e-30), "at_least": 1.0})
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


def measure(model: MACE, mode: tuple[str, str], arguments: argparse.Namespace) -> dict[str, Any]:
    """Forces, gradient in the weights, and median seconds of a step."""
    dtype = getattr(torch, mode[0])
    torch.set_float32_matmul_precision(mode[1])
    model = copy.deepcopy(model).to(dtype).to(arguments.device)
    graph = _graph(dtype).to(torch.device(arguments.device))
    settings, seconds = LossSettings(), []
    for repeat in range(arguments.repeats + 1):
        start = time.perf_counter()
        prediction = predict(model, graph, stress=False, create_graph=True)
        loss = loss_sums(prediction, graph).loss(settings)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        if arguments.device == "cuda":
            torch.cuda.synchronize()
        if repeat:
            seconds.append(time.perf_counter() - start)
    torch.set_float32_matmul_precision("highest")
    assert prediction.forces is not None
    return {
        "forces": prediction.forces.detach().double().cpu(),
        "gradient": torch.cat([g.flatten().double().cpu() for g in gradients]),
        "seconds": statistics.median(seconds),
    }


def _relative(value: torch.Tensor, exact: torch.Tensor) -> float:
    return float((value - exact).square().mean().sqrt() / exact.square().mean().sqrt())


def _graph(dtype: torch.dtype) -> Graph:
    """Ten structures of 25 to 30 atoms of the example data."""
    file = EXAMPLE_DATA / "train.extxyz.gz"
    found = [s for s in read_structures([str(file)], KEYS) if 25 <= len(s.numbers) <= 30]
    samples = [sample_of(structure, R_MAX) for structure in found[:10]]
    return collate(samples, torch.arange(10).numpy(), atomic_numbers=(1, 6, 7, 8), dtype=dtype)


if __name__ == "__main__":
    sys.exit(main())
