"""What a machine with a GPU has, and the kernels of the benchmarks' models compiled on it.

    python scripts/bench/gpu/facts.py --json facts.json [--device cpu]

Device, driver, versions of Python, PyTorch, CUDA, NVRTC and the packages compared with; one small
contraction, equal to the reference; and the time to compile what MACE medium and large need in both
precisions, side by side on all cores, into the cache that all that runs later uses.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))
sys.path.insert(1, str(Path(__file__).resolve().parents[3]))

import torch
from goals import describe, reaches, row, write

from mace_train.model.compile_kernels import compile_kernels
from mace_train.model.contraction import SymmetricContraction
from mace_train.model.mace import MACE, Head, ModelData
from mace_train.ops.cuda import compiler as cuda_compiler
from mace_train.ops.symmetric_contraction import Chunks
from mace_train.settings import ModelSettings

PACKAGES = (
    "numpy",
    "mace-torch",
    "e3nn",
    "cuequivariance",
    "cuequivariance-torch",
    "cuequivariance-ops-torch-cu13",
    "openequivariance",
    "cuda-core",
    "cuda-bindings",
    "nvidia-cuda-nvrtc",
)
TOLERANCE = 1e-12
MODELS = {"medium": 1, "large": 2}


def main() -> int:
    """Print and check; 1 if the contraction is wrong, 2 without a device."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--json", type=Path, help="write what is found here")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("PyTorch sees no CUDA device; use --device cpu for a rehearsal", file=sys.stderr)
        return 2
    found = facts()
    for name, value in found.items():
        print(f"{name}: {value}", flush=True)
    device = torch.device(arguments.device)
    rows = [row("error of a contraction", max(error(device), 1e-30), {"most": TOLERANCE}, 1.0)]
    print(describe(rows[0]), flush=True)
    write(arguments.json, rows, complete=False, facts=found)
    for name, max_L in MODELS.items():
        for dtype in (torch.float32, torch.float64):
            seconds, n_kernels = compile_time(max_L, arguments.channels, dtype, device)
            label = f"compiling {n_kernels} kernels, {name}, {dtype}, s"
            found[label] = round(seconds, 2)
            print(f"{label}: {seconds:.2f}", flush=True)
    write(arguments.json, rows, facts=found)
    return 0 if all(reaches(row) for row in rows) else 1


def facts() -> dict[str, Any]:
    """Names and versions."""
    found: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "host processors": os.cpu_count(),
        "Python": platform.python_version(),
        "PyTorch": torch.__version__,
        "CUDA": torch.version.cuda,
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found["device"] = properties.name
        found["memory, GiB"] = round(properties.total_memory / 2**30, 1)
        found["multiprocessors"] = properties.multi_processor_count
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm", "--format=csv,noheader"]
        done = subprocess.run(query, capture_output=True, text=True, timeout=60)
        found["driver, highest clock"] = done.stdout.strip()
    missing = cuda_compiler.why_missing()
    found["NVRTC"] = missing or cuda_compiler.version()
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def error(device: torch.device) -> float:
    """Largest difference between compiled kernel and reference, relative to the largest value."""
    torch.manual_seed(0)
    module = SymmetricContraction(3, 1, 3, 3, 32).double().to(device)
    x = torch.randn(50, 16, 32, dtype=torch.float64, device=device)
    elements = torch.randint(0, 3, (50,), device=device)
    with torch.no_grad():
        compiled, reference = module(x, elements, Chunks.of(elements, 3)), module(x, elements)
    return float((compiled - reference).abs().max() / reference.abs().max())


def compile_time(
    max_L: int, channels: int, dtype: torch.dtype, device: torch.device
) -> tuple[float, int]:
    """Seconds, and how many kernels; what is in the cache already takes little time."""
    data = ModelData(5.0, (1, 6, 8), 9.0, (Head((0.0, 0.0, 0.0), 1.0, 0.0),))
    model = MACE(ModelSettings(num_channels=channels, max_L=max_L), data).to(dtype).to(device)
    start = time.perf_counter()
    n_kernels = compile_kernels(model)
    return time.perf_counter() - start, n_kernels


if __name__ == "__main__":
    sys.exit(main())
