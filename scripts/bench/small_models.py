"""Small models, whose training steps are many small operations: ours against mace-torch.

Batches of five structures of at most 80 atoms are drawn from the data; both programs take steps on
the same batches in turns (see step.py), and the least CPU time of each batch counts, as machines
are noisy. Also counted are the operations that our step asks PyTorch for, and the nodes of its
graph that autograd visits: numbers that no noise changes.

    python scripts/bench/small_models.py --json small.json [--data FILE] [--batches 3]

FILE is any that ASE reads; default is the embedded example data. Needs the extra "interop". One
thread. Ends with 1 if a row falls short of its goal.
"""

import argparse
import statistics
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
warnings.simplefilter("ignore")  # mace-torch and e3nn 0.4.4 under a recent PyTorch

import numpy as np  # noqa: E402
import torch  # noqa: E402
from goals import Row, describe, reaches, row, write  # noqa: E402
from machine import add_allocator, cpu_seconds, use_allocator  # noqa: E402
from step_batches import KEYS, R_MAX, batch_of  # noqa: E402
from step_programs import Step, our_step, peer_model, peer_step  # noqa: E402
from torch.autograd.profiler_util import FunctionEvent  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

from mace_train._paths import EXAMPLE_DATA  # noqa: E402
from mace_train.data.graph import Graph  # noqa: E402
from mace_train.data.read import read_structures  # noqa: E402
from mace_train.data.structure import Structure  # noqa: E402

MODELS = {"16x0e+16x1o": (16, 1, 8.0), "64x0e": (64, 0, 15.0)}  # channels, max_L, goal
N_STRUCTURES, MOST_ATOMS = 5, 80
OPERATIONS, NODE = ("aten::", "mace_train::"), "autograd::engine::evaluate_function"


def main() -> int:
    """Measure, print and compare; 0 if every row reaches its goal."""
    arguments = _arguments()
    torch.set_num_threads(1)
    use_allocator(arguments.allocator)
    batches = draw(arguments.data, arguments.batches)
    rows = [_compare(name, batches, arguments.repeats) for name in arguments.models]
    write(arguments.json, rows)
    return 0 if all(reaches(one) for one in rows) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=EXAMPLE_DATA / "train.extxyz.gz")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--batches", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--json", type=Path, help="write the rows here")
    add_allocator(parser)
    return parser.parse_args()


def draw(data: Path, n_batches: int) -> list[tuple[Graph, tuple[int, ...]]]:
    """Batches of structures with more than one atom, with their elements; the same every time."""
    fitting = [s for s in read_structures([str(data)], KEYS) if 1 < s.n_atoms <= MOST_ATOMS]
    order = np.random.default_rng(0).permutation(len(fitting))
    batches = []
    for first in range(0, n_batches * N_STRUCTURES, N_STRUCTURES):
        chosen: list[Structure] = [fitting[i] for i in order[first : first + N_STRUCTURES]]
        if len(chosen) < N_STRUCTURES:
            raise SystemExit(
                f"{data}: {len(fitting)} structures of 2 to {MOST_ATOMS} atoms are too few for "
                f"--batches {n_batches}; give more structures or fewer batches"
            )
        batches.append(batch_of(chosen, torch.float32))
    return batches


def _compare(name: str, batches: list[tuple[Graph, tuple[int, ...]]], repeats: int) -> Row:
    """Mean over the batches of the least times, in ms."""
    channels, max_degree, at_least = MODELS[name]
    times: dict[str, list[float]] = {"ours": [], "mace-torch": []}
    counts = []
    for graph, numbers in batches:
        peer = peer_model(channels, max_degree, numbers, R_MAX, graph.positions)
        steps = {"ours": our_step(graph, peer), "mace-torch": peer_step(graph, peer)}
        losses = [step() for step in steps.values() for _ in range(3)]  # compiles, warms up
        if not np.allclose(losses, losses[0], rtol=1e-3):
            raise SystemExit(f"{name}: the losses are {losses}: not the same step")
        for program, seconds in _least_seconds(steps, repeats).items():
            times[program].append(1e3 * seconds)
        counts.append(operations(steps["ours"]))
    means = {program: statistics.mean(found) for program, found in times.items()}
    n_atoms, n_edges = (
        statistics.mean(getattr(graph, key) for graph, _ in batches)
        for key in ("n_atoms", "n_edges")
    )
    n_operations, n_nodes = (statistics.mean(found) for found in zip(*counts, strict=True))
    ours = means.pop("ours")
    found = row(
        f"step {name} float32 ({n_atoms:.0f} atoms, {n_edges:.0f} edges on average), ms",
        ours,
        means,
        at_least,
        operations=n_operations,
        nodes=n_nodes,
    )
    print(f"{describe(found)}; {n_operations:.0f} operations, {n_nodes:.0f} nodes", flush=True)
    return found


def _least_seconds(steps: dict[str, Step], repeats: int) -> dict[str, float]:
    """Of each program; ours, which is short, takes several steps in its turn."""
    found: dict[str, list[float]] = {program: [] for program in steps}
    for _ in range(repeats):
        for program, step in steps.items():
            found[program] += [cpu_seconds(step) for _ in range(5 if program == "ours" else 1)]
    return {program: min(seconds) for program, seconds in found.items()}


def operations(step: Callable[[], object]) -> tuple[int, int]:
    """(operations of PyTorch that no other one asked for, nodes of the graph) of a step."""
    with profile(activities=[ProfilerActivity.CPU]) as record:
        step()
    events = list(record.events() or [])

    def count(event: FunctionEvent) -> int:
        if event.name.startswith(OPERATIONS):
            return 1
        return sum(count(child) for child in event.cpu_children)

    n_nodes = sum(event.name.startswith(NODE) for event in events)
    return sum(count(event) for event in events if event.cpu_parent is None), n_nodes


if __name__ == "__main__":
    sys.exit(main())
