"""A whole training step against mace-torch's own: same weights, structures and loss, one process.

A step is zero_grad, energies and forces, loss, backward, clipping, and AMSGrad. Both programs take
turns; the median of the CPU time of the process is compared (machines are noisy, ratios are not),
after checking that both losses are equal. Peak memory is that of a fresh process over its
memory before the first step (Linux: /proc). Then our step alone: how its time divides over
stages and passes, and how near its compiled kernels come to the machine's limits.

    python scripts/bench/step.py --json step.json [--data train.xyz] [--models S M L D N H]
                                 [--repeats 5] [--allocator keep]

For a GPU there is training_step.py.

Structures: ten of --data (any file that ASE reads), or ten of 25 to 30 atoms of the embedded
example data. Needs the extra "interop". One thread, unless --threads says otherwise.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
warnings.simplefilter("ignore")  # mace-torch and e3nn 0.4.4 under a recent PyTorch

import stages  # noqa: E402
import torch  # noqa: E402
from kernel_limits import limits_of_kernels  # noqa: E402
from machine import KEEP, add_allocator, use_allocator  # noqa: E402
from step_batches import R_MAX, batch_of, ten_structures  # noqa: E402
from step_programs import Step, our_step, peer_model, peer_step, seconds_of  # noqa: E402
from torch import nn  # noqa: E402

from mace_train._paths import EXAMPLE_DATA  # noqa: E402
from mace_train.data.graph import Graph  # noqa: E402


@dataclass(frozen=True)
class Case:
    """One architecture and precision, with what this project wants to reach."""

    label: str
    channels: int
    max_degree: int
    dtype: torch.dtype
    speed_at_least: float
    memory_at_least: float = 2.0
    changes: dict[str, Any] = field(default_factory=dict)
    """Of mace-torch's model."""


DENSITY = {  # blocks, transform and repulsion of MACE-MPA-0 and MACE-OMAT-0
    "first": "RealAgnosticDensity",
    "interaction": "RealAgnosticDensityResidual",
    "distance_transform": "Agnesi",
    "pair_repulsion": True,
}
NONLINEAR = {  # blocks and product of MACE-MH-1
    "first": "RealAgnosticResidualNonLinear",
    "interaction": "RealAgnosticResidualNonLinear",
    "use_agnostic_product": True,
    "apply_cutoff": False,
    "edge_irreps": "128x0e+128x1o",
}
CASES = {
    "S": Case("64x0e float32", 64, 0, torch.float32, 6.0),
    "M": Case("128x0e+128x1o float32", 128, 1, torch.float32, 8.0),
    "L": Case("128x0e+128x1o+128x2e float32", 128, 2, torch.float32, 8.0),
    "M64": Case("128x0e+128x1o float64", 128, 1, torch.float64, 8.0),
    "D": Case("128x0e+128x1o density float32", 128, 1, torch.float32, 15.0, 6.0, DENSITY),
    "N": Case("128x0e+128x1o nonlinear float32", 128, 1, torch.float32, 12.0, 6.0, NONLINEAR),
    "H": Case("512x0e+512x1o over 128 nonlinear", 512, 1, torch.float32, 12.0, 6.0, NONLINEAR),
}


def main() -> int:
    """Measure, print and compare; 0 if every row reaches its goal."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        name, program = arguments.memory_of
        print(json.dumps(_memory(CASES[name], program, arguments)))
        return 0
    use_allocator(arguments.allocator)
    rows, details = [], {}
    for name in arguments.models:
        rows += _compare(name, arguments)
        details[name] = _profile(name, arguments)
    if arguments.json:
        result = {"rows": rows, "profiles": details}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0 if all(row["ratio"] >= row["at_least"] for row in rows) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=EXAMPLE_DATA / "train.extxyz.gz")
    parser.add_argument("--models", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the rows here")
    add_allocator(parser)
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def _graph_and_peer(case: Case, data: Path) -> tuple[Graph, nn.Module]:
    graph, numbers = batch_of(ten_structures(data), case.dtype)
    return graph, peer_model(
        case.channels, case.max_degree, numbers, R_MAX, graph.positions, **case.changes
    )


def _steps(case: Case, data: Path, wanted: str = "") -> dict[str, Step]:
    """Our step and that of the peer, by name; or only the one that is wanted."""
    graph, peer = _graph_and_peer(case, data)
    makers = {
        "ours": lambda: our_step(graph, peer),
        "mace-torch": lambda: peer_step(graph, peer),
    }
    return {name: make() for name, make in makers.items() if wanted in ("", name)}


def _profile(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Shares of stages, and the compiled kernels' part and distance to the limits."""
    case = CASES[name]
    graph, peer = _graph_and_peer(case, arguments.data)
    step = our_step(graph, peer, marked=True)
    step()
    shares = stages.shares_of_time(step, arguments.repeats)
    plain = our_step(graph, peer)
    plain()
    limits = limits_of_kernels(plain, case.dtype, arguments.repeats)
    print(f"{name}: {limits}\n{stages.table(shares)}", flush=True)
    return {"stages": shares, "kernels": vars(limits)}


def _compare(name: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of speed and memory of one case."""
    case = CASES[name]
    graph, _ = batch_of(ten_structures(arguments.data), case.dtype)
    steps = _steps(case, arguments.data)
    seconds = seconds_of(name, steps, arguments.repeats)
    times = {program: statistics.median(values) for program, values in seconds.items()}
    memory = {program: _memory_in_fresh_process(name, program, arguments) for program in steps}
    size = f"{graph.n_atoms} atoms, {graph.n_edges} edges"
    rows = [
        _row(f"step {name} ({case.label}; {size}), s", times, case.speed_at_least),
        _row(f"peak memory {name}, MB", memory, case.memory_at_least),
    ]
    for row in rows:
        print(
            f"{row['name']}: ours {row['ours']:.3g}, {row['peer_name']} {row['peer']:.3g}, "
            f"ratio {row['ratio']:.2f} (goal {row['at_least']})",
            flush=True,
        )
    return rows


def _row(name: str, values: dict[str, float], at_least: float) -> dict[str, Any]:
    """One row; the best peer counts."""
    peers = {program: value for program, value in values.items() if program != "ours"}
    best = min(peers, key=lambda program: peers[program])
    return {
        "name": name,
        "ours": values["ours"],
        "peer": peers[best],
        "peer_name": best,
        "peers": peers,
        "ratio": peers[best] / values["ours"],
        "at_least": at_least,
    }


def _memory_in_fresh_process(name: str, program: str, arguments: argparse.Namespace) -> float:
    command = [sys.executable, __file__, "--memory-of", name, program]
    command += ["--data", str(arguments.data), "--threads", str(arguments.threads)]
    environment = {key: value for key, value in os.environ.items() if key not in KEEP}
    environment |= {"MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return float(json.loads(done.stdout.splitlines()[-1]))


def _memory(case: Case, program: str, arguments: argparse.Namespace) -> float:
    """MB by which the first three steps raise this process's peak."""
    (step,) = _steps(case, arguments.data, program).values()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from now on
    before = _status("VmRSS")
    for _ in range(3):
        step()
    return (_status("VmHWM") - before) / 1024


def _status(key: str) -> int:
    """A line of /proc/self/status, kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])


if __name__ == "__main__":
    sys.exit(main())
