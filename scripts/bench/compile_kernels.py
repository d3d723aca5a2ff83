"""Time to compile all kernels of the medium model, and to start from a warm cache.

    python scripts/bench/compile_kernels.py [--json compile.json] [--repeats 3] [--device cuda]

Cold: ``compile_kernels`` of a model in a new process with an empty cache: generating, compiling and
loading every kernel of a training step. Warm: the same cache in a new process, from the beginning
of the model's construction to the end of the first step, less the time of a second step: tables of
the model, ``compile_kernels``, loading the libraries, and what PyTorch does at a first step.
Imports of PyTorch and of this package, and the optimizer (which imports torch._dynamo), come before
and are not in it. Seconds of wall time, and beside them CPU time with that of compilers; the median
of the repetitions counts. Exit code 1 beyond a limit.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from mace_train.model.compile_kernels import compile_kernels  # noqa: E402
from mace_train.model.mace import MACE, Head, ModelData  # noqa: E402
from mace_train.settings import ModelSettings  # noqa: E402

LIMITS = {"cold": 20.0, "warm": 1.0}
MEDIUM = ModelSettings(num_channels=128, max_L=1, max_ell=3, correlation=3)
KERNELS = {"cpu": "cpp", "cuda": "cuda"}
ON = {"cpu": "", "cuda": " on a GPU"}
DATA = ModelData(5.0, (1, 6, 8), 9.0, (Head((0.0, 0.0, 0.0), 1.0, 0.0),))


def main() -> int:
    """Measure in new processes, print and compare; 0 if no limit is passed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", choices=KERNELS, default="cpu")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--measure", choices=LIMITS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps({"cold": cold, "warm": warm}[arguments.measure](arguments.device)))
        return 0
    found: dict[str, list[dict[str, float]]] = {name: [] for name in LIMITS}
    for _ in range(arguments.repeats):
        with tempfile.TemporaryDirectory() as cache:
            for name in LIMITS:
                found[name].append(_in_new_process(name, cache, arguments.device))
    rows = [_row(name, found[name], arguments.device) for name in LIMITS]
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0 if all(row["ours"] <= row["at_most"] for row in rows) else 1


def cold(device: str) -> dict[str, float]:
    """Seconds of ``compile_kernels``."""
    model = MACE(MEDIUM, DATA, kernels=KERNELS[device]).to(device)
    start, cpu = time.perf_counter(), _cpu_time()
    n_kernels = compile_kernels(model)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "CPU time": _cpu_time() - cpu, "kernels": n_kernels}


def warm(device: str) -> dict[str, float]:
    """Seconds from the model's construction to the end of the first step, less a second one."""
    torch.manual_seed(0)
    torch.zeros(1, device=device)  # a GPU is made ready by PyTorch, not by us
    marks, cpu = [time.perf_counter()], _cpu_time()
    model = MACE(MEDIUM, DATA, kernels=KERNELS[device]).to(device)
    marks.append(time.perf_counter())
    compile_kernels(model)
    marks.append(time.perf_counter())
    for _ in range(2):
        _step(model)
        marks.append(time.perf_counter())
    construction, compilation, first, second = (
        later - earlier for earlier, later in pairwise(marks)
    )
    return {
        "seconds": construction + compilation + first - second,
        "CPU time of all": _cpu_time() - cpu,
        "construction": construction,
        "compile_kernels": compilation,
        "first step": first,
        "second step": second,
    }


def _cpu_time() -> float:
    """Seconds of this process and of the compilers it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _step(model: MACE) -> None:
    """Energy and forces of 27 atoms on a grid, and what training differentiates by: weights."""
    device = model.E0s.device
    axis = torch.arange(3.0, device=device)
    positions = 1.6 * torch.cartesian_prod(axis, axis, axis)
    distances = torch.cdist(positions, positions)
    receivers, senders = ((distances < DATA.r_max) & (distances > 0)).nonzero(as_tuple=True)
    vectors = (positions[receivers] - positions[senders]).requires_grad_()
    energies = model(vectors, torch.arange(27, device=device) % 3, senders, receivers)
    (forces,) = torch.autograd.grad(energies.sum(), vectors, create_graph=True)
    loss = energies.square().sum() + forces.square().sum()
    torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    if device.type == "cuda":
        torch.cuda.synchronize()


def _in_new_process(name: str, cache: str, device: str) -> dict[str, float]:
    environment = os.environ | {"XDG_CACHE_HOME": cache}
    command = [sys.executable, __file__, "--measure", name, "--device", device]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    values: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return values


def _row(name: str, found: list[dict[str, float]], device: str) -> dict[str, float | str]:
    medians = {key: statistics.median(values[key] for values in found) for key in found[0]}
    parts = ", ".join(f"{key} {value:.3g}" for key, value in medians.items() if key != "seconds")
    print(f"{name}: {medians['seconds']:.3g} s (at most {LIMITS[name]:g} s): {parts}", flush=True)
    return {
        "name": f"kernels of the medium model{ON[device]}, {name}, s",
        "ours": medians["seconds"],
    } | {
        "at_most": LIMITS[name],
        **medians,
    }


if __name__ == "__main__":
    sys.exit(main())
