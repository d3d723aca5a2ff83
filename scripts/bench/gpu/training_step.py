"""A whole training step on a GPU against mace-torch's, alone and on cuEquivariance's kernels.

    python scripts/bench/gpu/training_step.py --json step.json [--models M L M64 L64 D N H]
                                              [--atoms 3072]
    python scripts/bench/gpu/training_step.py --batch molecules --json small.json [--profile]

A step is what step.py times on a CPU: zero_grad, energies and forces, loss, backward, clipping, and
AMSGrad, with the same weights, structures, loss and precision for all programs; one with another
loss is not compared with. Times are of the wall, from a GPU that has done all to one that has done
all again; medians, our own before and after those of the peers. Memory is what PyTorch had
allocated at most in the first steps, over what it held before them. A peer that runs out of memory
leaves the others.

M and L are MACE medium and large; D has the density blocks of MACE-MPA-0, N and H the nonlinear
ones of MACE-MH-1, H with 512 channels over edges of 128. OpenEquivariance is measured where its
package imports; no goal depends on it.

mixed       one batch of --atoms atoms: synthetic structures of 1 to 800 atoms, or the first ones of
            --data. Goals: twice as fast as cuEquivariance, six times as fast as mace-torch alone,
            60 % of cuEquivariance's memory, and gradients that are bitwise equal from run to run.
molecules   ten molecules of 27 atoms. Goal: the captured step (``cluster.cuda_graphs``) four times
            as fast as that of mace-torch with cuEquivariance, which is not captured.

Needs the extras "interop" and "cuda". With --device cpu it is a rehearsal, without any capture.
"""

import argparse
import gc
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path[1:1] = [str(ROOT), str(ROOT / "scripts" / "bench")]
warnings.simplefilter("ignore")  # mace-torch and e3nn 0.4.4 under a recent PyTorch

import step_batches as batches  # noqa: E402
import step_programs as programs  # noqa: E402
import torch  # noqa: E402
from cases import backends  # noqa: E402
from goals import Row, describe, reaches, row, write  # noqa: E402
from step import DENSITY, NONLINEAR  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from mace_train.data.graph import Graph  # noqa: E402
from mace_train.train.cuda_graphs import Replay, Tensors, cuda_graph  # noqa: E402
from tests.model.mace_torch import import_mace  # noqa: E402

MODELS = {  # channels, highest degree, precision, changes of mace-torch's model
    "M": (128, 1, torch.float32, {}),
    "L": (128, 2, torch.float32, {}),
    "M64": (128, 1, torch.float64, {}),
    "L64": (128, 2, torch.float64, {}),
    "D": (128, 1, torch.float32, DENSITY),
    "N": (128, 1, torch.float32, NONLINEAR),
    "H": (512, 1, torch.float32, NONLINEAR),
}
ALONE, CUEQ = "mace-torch", "mace-torch, cuEquivariance"
OEQ = "mace-torch, OpenEquivariance"
FASTER = {CUEQ: 2.0, ALONE: 6.0}
CAPTURED_FASTER = 4.0
LESS_MEMORY = 1 / 0.6
SAME_LOSS = 1e-3  # relative
N_REPEATED = 5


@dataclass(frozen=True)
class Measured:
    """Seconds of a step, MB, and the loss."""

    seconds: float
    memory: float
    loss: float


def main() -> int:
    """Measure, print and compare; 1 if a row falls short, 2 without a device."""
    arguments = _arguments()
    if arguments.device.type == "cuda" and not torch.cuda.is_available():
        print("PyTorch sees no CUDA device; use --device cpu for a rehearsal", file=sys.stderr)
        return 2
    import_mace()
    compare = {"mixed": compare_mixed, "molecules": compare_molecules}[arguments.batch]
    rows: list[Row] = []
    details: dict[str, Any] = {}
    for name in arguments.models:
        found, details[name] = compare(name, arguments)
        rows += found
        for one in found:
            print(describe(one), flush=True)
        for peer, reason in details[name]["missing"].items():
            print(f"{name}: not compared with {peer}: {reason}", flush=True)
        write(arguments.json, rows, complete=name == arguments.models[-1], models=details)
    return 0 if all(reaches(row) for row in rows) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--batch", choices=("mixed", "molecules"), default="mixed")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--channels", type=int, help="instead of the model's own, to rehearse")
    parser.add_argument("--atoms", type=int, default=3072, help="of the mixed batch")
    parser.add_argument("--data", type=Path, help="take the mixed batch from this file")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--profile", action="store_true", help="print the kernels of our step")
    parser.add_argument("--json", type=Path, help="write the rows here")
    return parser.parse_args()


def compare_mixed(name: str, arguments: argparse.Namespace) -> tuple[list[Row], dict[str, Any]]:
    """Rows of time, memory and repeatability of one model on the mixed batch."""
    if arguments.data:
        structures = batches.first_structures(arguments.data, arguments.atoms)
    else:
        structures = batches.mixed(arguments.atoms)
    graph, peer = _graph_and_peer(name, structures, arguments)
    ours = {
        "ours": lambda: programs.our_step(graph, peer),
        "ours, captured": _captured(graph, peer),
    }
    found, missing = measure_all(ours, graph, peer, arguments.repeats)
    label = f"step {name}, {_size(graph)}"
    rows = [
        _row(f"{label}, s", found, "seconds", goal, program) for program, goal in FASTER.items()
    ]
    rows.append(_row(f"peak memory {name}, MB", found, "memory", LESS_MEMORY, CUEQ))
    n_different = count_different(programs.our_gradient(graph, peer))
    title = f"different gradients {name} in {N_REPEATED} runs"
    rows.append(row(title, float(n_different), {"all equal": 1.0}, 1.0))
    if arguments.profile:
        profile(programs.our_step(graph, peer), graph.positions.device)
    return rows, {"missing": missing, "measured": {k: vars(m) for k, m in found.items()}}


def compare_molecules(name: str, arguments: argparse.Namespace) -> tuple[list[Row], dict[str, Any]]:
    """The row of the captured step of one model on ten molecules."""
    graph, peer = _graph_and_peer(name, batches.molecules(10, 27), arguments)
    captured = _captured(graph, peer)
    ours = {"ours": captured, "ours, not captured": lambda: programs.our_step(graph, peer)}
    found, missing = measure_all(ours, graph, peer, arguments.repeats)
    label = f"captured step {name}, {_size(graph)}, s"
    rows = [_row(label, found, "seconds", CAPTURED_FASTER, CUEQ)]
    if arguments.profile:
        profile(captured(), graph.positions.device)
    return rows, {"missing": missing, "measured": {k: vars(m) for k, m in found.items()}}


def _captured(graph: Graph, peer: nn.Module) -> Callable[[], programs.Step]:
    """What makes our captured step; where there is no GPU it is not captured."""
    on_host = graph.to(torch.device("cpu"))
    capture = cuda_graph if graph.positions.is_cuda else not_captured
    return lambda: programs.captured_step(on_host, peer, capture)


def _graph_and_peer(
    name: str, structures: list[batches.Structure], arguments: argparse.Namespace
) -> tuple[Graph, nn.Module]:
    channels, degree, dtype, changes = MODELS[name]
    graph, numbers = batches.batch_of(structures, dtype)
    graph = graph.to(arguments.device)
    if arguments.channels:
        channels = arguments.channels
        edges = {"edge_irreps": f"{channels}x0e+{channels}x1o"} if "edge_irreps" in changes else {}
        changes = changes | edges
    return graph, programs.peer_model(
        channels, degree, numbers, batches.R_MAX, graph.positions, **changes
    )


def _size(graph: Graph) -> str:
    return f"{graph.n_graphs} structures, {graph.n_atoms} atoms, {graph.n_edges} edges"


def measure_all(
    ours: dict[str, Callable[[], programs.Step]], graph: Graph, peer: nn.Module, repeats: int
) -> tuple[dict[str, Measured], dict[str, str]]:
    """Every program by name, one at a time; and those that did not run, with the reason.

    A program with another loss takes another step: it is not compared with either.
    """
    device = graph.positions.device
    options, missing = backends(["cuEquivariance", "OpenEquivariance"], device)
    makers = {**ours, ALONE: lambda: programs.peer_step(graph, peer)}
    if "cuEquivariance" in options:
        makers[CUEQ] = lambda: programs.peer_step(graph, programs.with_cuequivariance(peer, device))
    if "OpenEquivariance" in options:
        makers[OEQ] = lambda: programs.peer_step(
            graph, programs.with_openequivariance(peer, device)
        )
    mine = makers.pop("ours")
    found = {"ours": measure(mine, device, repeats)}
    for name, make in makers.items():
        try:
            one = measure(make, device, repeats)
        except Exception as error:  # a peer may raise anything
            missing[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
        else:
            expected = found["ours"].loss
            if abs(one.loss - expected) <= SAME_LOSS * abs(expected):
                found[name] = one
            else:
                missing[name] = f"another step: its loss is {one.loss}, ours {expected}"
        _free(device)
    both = (found["ours"].seconds + measure(mine, device, repeats).seconds) / 2
    found["ours"] = replace(found["ours"], seconds=both)
    return found, missing


def measure(make: Callable[[], programs.Step], device: torch.device, repeats: int) -> Measured:
    """Time and memory of a program that is made for it."""
    step = make()
    before = _memory(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    loss = step()
    for _ in range(2):
        step()
    most = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else 0.0
    seconds = statistics.median(_seconds(step, device) for _ in range(repeats))
    return Measured(seconds, most - before, loss)


def _memory(device: torch.device) -> float:
    if device.type == "cpu":
        return 0.0
    torch.cuda.synchronize(device)
    return torch.cuda.memory_allocated(device) / 2**20


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _seconds(step: programs.Step, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _row(name: str, found: dict[str, Measured], key: str, goal: float, peer: str) -> Row:
    """Ours against one peer; all that was measured is named as well."""
    values = {program: getattr(one, key) for program, one in found.items()}
    peers = {peer: values[peer]} if peer in values else {}
    title = f"{name}, against {peer}"
    if not values["ours"]:  # memory is not measured on a CPU
        peers = {}
    return row(title, values["ours"], peers, goal) | {"measured": values}


def count_different(gradient: Callable[[], Tensor]) -> int:
    """How many different results some runs give; 1 if all are equal."""
    found: list[Tensor] = []
    for _ in range(N_REPEATED):
        result = gradient()
        if not any(torch.equal(result, other) for other in found):
            found.append(result)
    return len(found)


def not_captured(function: Callable[[], Tensors], _: torch.device) -> tuple[Replay, Tensors]:
    """In place of a capture where there is no GPU: runs every time."""
    outputs = function()

    def replay() -> None:
        for static, value in zip(outputs, function(), strict=True):
            static.copy_(value)

    return replay, outputs


def profile(step: programs.Step, device: torch.device) -> None:
    """Print what the GPU (or the CPU) spends the time of a step with; ours are named run."""
    kind = "cuda" if device.type == "cuda" else "cpu"
    activities = [torch.profiler.ProfilerActivity.CPU]
    if kind == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    for _ in range(2):
        step()
    with torch.profiler.profile(activities=activities) as record:
        step()
    key = f"self_{kind}_time_total"
    print(record.key_averages().table(sort_by=key, row_limit=30, max_name_column_width=60))


if __name__ == "__main__":
    sys.exit(main())
