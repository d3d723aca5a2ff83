"""A whole training step against mace-torch's own: same weights, structures and loss, one process.

A step is zero_grad, energies and forces, loss, backward, clipping, and AMSGrad. Both programs take
turns; the median of the CPU time of the process is compared (machines are noisy, ratios are not),
after checking that both losses are equal. Peak memory is that of a fresh process over its
memory before the first step (Linux: /proc). Then our step alone: how its time divides over
stages and passes, and how near its compiled kernels come to the machine's limits.

    python scripts/bench/step.py --json step.json [--data train.xyz] [--models S M L] [--repeats 5]
                                 [--allocator keep] [--device cuda]

On a GPU the clock is the wall's, memory is what PyTorch had allocated at most, and mace-torch with
cuEquivariance's kernels is a second peer where that is installed; the faster one counts. The part
about our step alone is for CPUs.

Structures: ten of --data (any file that ASE reads), or ten of 25 to 30 atoms of the embedded
example data. Needs the extra "interop". One thread, unless --threads says otherwise.
"""

import argparse
import copy
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
warnings.simplefilter("ignore")  # mace-torch and e3nn 0.4.4 under a recent PyTorch

import numpy as np  # noqa: E402
import stages  # noqa: E402
import torch  # noqa: E402
from kernel_limits import limits_of_kernels  # noqa: E402
from machine import KEEP, add_allocator, cpu_seconds, use_allocator  # noqa: E402
from torch import nn  # noqa: E402

from mace_train._paths import EXAMPLE_DATA  # noqa: E402
from mace_train.data.graph import Graph  # noqa: E402
from mace_train.data.loading import collate  # noqa: E402
from mace_train.data.read import read_structures  # noqa: E402
from mace_train.data.shards import sample_of  # noqa: E402
from mace_train.data.structure import LabelKeys  # noqa: E402
from mace_train.model.derivatives import predict  # noqa: E402
from mace_train.model.interchange import from_mace_torch  # noqa: E402
from mace_train.model.mace_torch_header import header_of  # noqa: E402
from mace_train.settings import LossSettings, OptimizerSettings  # noqa: E402
from mace_train.train.loss import loss_sums  # noqa: E402
from mace_train.train.optim import make_optimizer  # noqa: E402
from tests.model.mace_torch import import_mace, mace_torch_batch, mace_torch_model  # noqa: E402

R_MAX = 5.0
KEYS = LabelKeys("REF_energy", "REF_forces", "REF_stress", "REF_virials")


@dataclass(frozen=True)
class Case:
    """One architecture and precision, with what this project wants to reach."""

    label: str
    channels: int
    max_degree: int
    dtype: torch.dtype
    speed_at_least: float
    memory_at_least: float = 2.0


CASES = {
    "S": Case("64x0e float32", 64, 0, torch.float32, 6.0),
    "M": Case("128x0e+128x1o float32", 128, 1, torch.float32, 8.0),
    "L": Case("128x0e+128x1o+128x2e float32", 128, 2, torch.float32, 8.0),
    "M64": Case("128x0e+128x1o float64", 128, 1, torch.float64, 8.0),
}
Step = Callable[[], float]


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
        if arguments.device.type == "cpu":
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
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--json", type=Path, help="write the rows here")
    add_allocator(parser)
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def _graph(data: Path, dtype: torch.dtype, device: torch.device) -> tuple[Graph, tuple[int, ...]]:
    """Ten structures as one batch, and their elements."""
    structures = [s for s in read_structures([str(data)], KEYS) if s.n_atoms > 1]
    if data.parent == EXAMPLE_DATA:
        structures = [s for s in structures if 25 <= s.n_atoms <= 30 and not s.pbc.any()]
    samples = [sample_of(s, R_MAX) for s in structures[:10]]
    numbers = tuple(sorted({z for s in samples for z in s.structure.numbers.tolist()}))
    ids = np.arange(len(samples))
    return collate(samples, ids, atomic_numbers=numbers, dtype=dtype).to(device), numbers


def _peer_model(case: Case, numbers: tuple[int, ...], device: torch.device) -> nn.Module:
    sizes = {"channels": case.channels, "max_L": case.max_degree, "radial_MLP": [64, 64, 64]}
    model = mace_torch_model(numbers, r_max=R_MAX, scripted=True, **sizes)
    return model.to(case.dtype).to(device)


def _steps(case: Case, arguments: argparse.Namespace, wanted: str = "") -> dict[str, Step]:
    """Our step and those of the peers, by name; or only the one that is wanted."""
    graph, numbers = _graph(arguments.data, case.dtype, arguments.device)
    peer = _peer_model(case, numbers, arguments.device)
    makers = {
        "ours": lambda: _our_step(graph, peer),
        "mace-torch": lambda: _peer_step(case, graph, peer),
    }
    has_peer = importlib.util.find_spec("cuequivariance_ops_torch") is not None
    if arguments.device.type == "cuda" and has_peer:
        makers["mace-torch, cuEquivariance"] = lambda: _peer_step(
            case, graph, _with_cuequivariance(peer, arguments.device)
        )
    return {name: make() for name, make in makers.items() if wanted in ("", name)}


def _with_cuequivariance(peer: nn.Module, device: torch.device) -> nn.Module:
    """The same model on cuEquivariance's kernels, by mace-torch's own conversion."""
    from mace.cli.convert_e3nn_cueq import run

    default = torch.get_default_dtype()
    converted: nn.Module = run(copy.deepcopy(peer), device=str(device), return_model=True)
    torch.set_default_dtype(default)
    return converted.to(device)


def _peer_step(case: Case, graph: Graph, peer: nn.Module) -> Step:
    """mace-torch's step with its loss, on its batch."""
    loss_function = import_mace().WeightedEnergyForcesLoss(1.0, 100.0)
    batch = mace_torch_batch(graph, len(peer.atomic_numbers))
    batch = {k: v.to(case.dtype) if v.is_floating_point() else v for k, v in batch.items()}
    ones = torch.ones(graph.n_graphs, dtype=case.dtype, device=graph.positions.device)
    labels = _Labels(batch, graph, ones, case.dtype)
    optimizer = make_optimizer(peer, OptimizerSettings(lr=1e-12))

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        predicted = peer(dict(batch), training=True, compute_force=True)
        loss = loss_function(ref=labels, pred=predicted)
        loss.backward()
        nn.utils.clip_grad_norm_(peer.parameters(), 10.0)
        optimizer.step()
        return float(loss)

    return step


class _Labels(dict[str, torch.Tensor]):
    """Labels as mace-torch's losses read them: by key, by attribute, with num_graphs."""

    def __init__(
        self, batch: dict[str, torch.Tensor], graph: Graph, ones: torch.Tensor, dtype: torch.dtype
    ) -> None:
        super().__init__(batch)
        self.num_graphs = graph.n_graphs
        self |= {"energy": graph.energy.to(dtype), "forces": graph.forces}
        self |= {"weight": ones, "energy_weight": ones, "forces_weight": ones}

    def __getattr__(self, name: str) -> torch.Tensor:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def _our_step(graph: Graph, peer: nn.Module, *, marked: bool = False) -> Step:
    """Our step on a model with mace-torch's weights; marked for ``stages`` if asked."""
    model = from_mace_torch(peer.state_dict(), header_of(peer)).to(graph.positions)
    settings = LossSettings()
    optimizer = make_optimizer(model, OptimizerSettings(lr=1e-12))
    weights = [p for p in model.parameters() if p.requires_grad]
    scope = stages.scope if marked else stages.no_scope
    if marked:
        stages.mark(model)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with scope("forward"), scope("forces and loss"):
            prediction = predict(model, graph, stress=False, create_graph=True)
            loss = loss_sums(prediction, graph).loss(settings)
        with scope("backward"):
            torch.autograd.backward(loss, inputs=weights)  # as training does
        with scope("clip and optimizer"):
            nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
        return float(loss)

    return step


def _profile(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Shares of stages, and the compiled kernels' part and distance to the limits."""
    case = CASES[name]
    graph, numbers = _graph(arguments.data, case.dtype, arguments.device)
    peer = _peer_model(case, numbers, arguments.device)
    step = _our_step(graph, peer, marked=True)
    step()
    shares = stages.shares_of_time(step, arguments.repeats)
    plain = _our_step(graph, peer)
    plain()
    limits = limits_of_kernels(plain, case.dtype, arguments.repeats)
    print(f"{name}: {limits}\n{stages.table(shares)}", flush=True)
    return {"stages": shares, "kernels": vars(limits)}


def _compare(name: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of speed and memory of one case."""
    case = CASES[name]
    graph, _ = _graph(arguments.data, case.dtype, arguments.device)
    steps = _steps(case, arguments)
    losses = {program: step() for program, step in steps.items()}  # also warms up
    for program, loss in losses.items():
        if not np.isclose(losses["ours"], loss, rtol=1e-3):
            raise SystemExit(f"{name}: {program} has another loss, {losses}: not the same step")
    clock = cpu_seconds if arguments.device.type == "cpu" else _seconds
    seconds: dict[str, list[float]] = {program: [] for program in steps}
    for _ in range(arguments.repeats):
        for program, step in steps.items():
            seconds[program].append(clock(step))
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


def _seconds(step: Step) -> float:
    """Wall time of a step; it returns its loss, for which it waits, and the optimizer after it."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    torch.cuda.synchronize()
    return time.perf_counter() - start


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
    command += ["--device", str(arguments.device)]
    environment = {key: value for key, value in os.environ.items() if key not in KEEP}
    environment |= {"MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return float(json.loads(done.stdout.splitlines()[-1]))


def _memory(case: Case, program: str, arguments: argparse.Namespace) -> float:
    """MB by which the first three steps raise this process's peak."""
    (step,) = _steps(case, arguments, program).values()
    if arguments.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        at_start = torch.cuda.memory_allocated()
        for _ in range(3):
            step()
        return (torch.cuda.max_memory_allocated() - at_start) / 2**20
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
