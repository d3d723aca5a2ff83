"""The two fused operations against mace-torch and e3nn: same weights and inputs, one process.

A measurement is what training on forces does: value, gradient of the inputs with create_graph, and
the gradient of a function of that. Both programs take turns; medians of the CPU time of the process
are compared, after checking that the results are equal; each leaves its output in the order that
is its own. Beside it stand the instructions per second
that our three passes reach, as a share of what a loop of fused multiply-adds reaches here, and
the bytes that they must move at least, as a share of what a triad moves.

    python scripts/bench/kernels.py [--json kernels.json] [--repeats 5]

Needs the extra "interop" and a C++ compiler. One thread. mace-torch's contraction runs with its
full couplings, the default of its command line, and with reduced ones where cuequivariance and
cuequivariance-torch are installed; the faster counts. --plot draws our times against the number of
atoms and edges, beside what instructions and bytes would take at the machine's limits.
"""

import argparse
import json
import statistics
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
warnings.simplefilter("ignore")  # mace-torch and e3nn 0.4.4 under a recent PyTorch

import torch  # noqa: E402
from kernel_peers import (  # noqa: E402
    CHANNELS,
    e3nn_convolution,
    has_reduced_couplings,
    mace_contraction,
    places_in_e3nn,
)
from machine import (  # noqa: E402
    Machine,
    add_allocator,
    cpu_seconds,
    measure_machine,
    use_allocator,
)
from torch import Tensor  # noqa: E402

from mace_train.model.contraction import SymmetricContraction  # noqa: E402
from mace_train.model.convolution import product_of  # noqa: E402
from mace_train.model.coupling import convolution_paths  # noqa: E402
from mace_train.ops import convolution as convolutions  # noqa: E402
from mace_train.ops.convolution import EdgeIndex  # noqa: E402
from mace_train.ops.cpp import compiler as cpp_compiler  # noqa: E402
from mace_train.ops.symmetric_contraction import Chunks, kernels_of  # noqa: E402
from tests.model.mace_torch import import_mace  # noqa: E402

Pass = Callable[[], list[Tensor]]


@dataclass(frozen=True)
class Case:
    """Two programs for one work, and the least that ours must do."""

    name: str
    ours: Pass
    peers: dict[str, Pass]
    instructions: float  # vector instructions of the three passes
    n_bytes: float
    at_least: float
    reorder: Callable[[list[Tensor]], list[Tensor]] = lambda tensors: tensors
    """What a peer's pass returns, in our order."""


def main() -> int:
    """Measure, print and compare; 0 if every row reaches its goal."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--plot", type=Path, help="draw time against size and bound here (png)")
    add_allocator(parser)
    arguments = parser.parse_args()
    use_allocator(arguments.allocator)
    torch.set_num_threads(1)
    import_mace()
    print(f"reduced couplings: {'measured too' if has_reduced_couplings() else 'not installed'}")
    rows = []
    for dtype in (torch.float32, torch.float64):
        machine = measure_machine(dtype)
        name = str(dtype).removeprefix("torch.")
        print(f"{name}: {machine}")
        cases = [
            contraction_case(dtype, n_atoms=270, n_elements=4),
            contraction_case(dtype, n_atoms=64, n_elements=10),
            convolution_case(dtype),
        ]
        rows += [compare(case, machine, arguments.repeats) for case in cases]
    scan = scan_sizes(arguments.plot) if arguments.plot else []
    if arguments.json:
        arguments.json.write_text(json.dumps(rows + scan, indent=1) + "\n")
    return 0 if all(row["ratio"] >= row["at_least"] for row in rows) else 1


def compare(case: Case, machine: Machine, repeats: int) -> dict[str, Any]:
    """One row: medians of both, their ratio, and the distance to the machine's limits."""
    expected = case.ours()
    for name, peer in case.peers.items():
        for mine, theirs in zip(expected, case.reorder(peer()), strict=True):
            scale = float(theirs.abs().max())
            exact = 1e-6 if "reduced" in name else 1e-11  # those tables have fewer digits
            tolerance = 1e-4 if mine.dtype == torch.float32 else exact
            error = float((mine - theirs).abs().max())
            assert error < tolerance * scale, f"{case.name}, {name}: {error} of {scale}"
    seconds: dict[str, list[float]] = {"ours": [], **{name: [] for name in case.peers}}
    for _ in range(repeats):
        for name, work in case.peers.items():
            seconds[name].append(cpu_seconds(work))
        seconds["ours"] += [cpu_seconds(case.ours) for _ in range(5)]
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ours = medians.pop("ours")
    best = min(medians, key=lambda name: medians[name])
    row = {
        "name": case.name,
        "ours": ours,
        "peer": medians[best],
        "peer_name": best,
        "peers": medians,
        "ratio": medians[best] / ours,
        "at_least": case.at_least,
        "share_of_fma_peak": case.instructions / ours / machine.fma_per_s,
        "share_of_bandwidth": case.n_bytes / ours / machine.bytes_per_s,
    }
    print(
        f"{row['name']}: ours {1e3 * ours:.2f} ms, {best} {1e3 * medians[best]:.0f} ms, ratio "
        f"{row['ratio']:.0f} (goal {case.at_least:.0f}); {row['share_of_fma_peak']:.0%} of peak, "
        f"{row['share_of_bandwidth']:.0%} of bandwidth",
        flush=True,
    )
    return row


def scan_sizes(path: Path) -> list[dict[str, Any]]:
    """Our times at several sizes beside their bounds, float32; draws them."""
    machine = measure_machine(torch.float32)
    rows = []
    for n_atoms in (16, 64, 256, 1024):
        cases = {
            "atoms": contraction_case(torch.float32, n_atoms, 4),
            "edges": convolution_case(torch.float32, n_atoms, 16 * n_atoms),
        }
        for unit, case in cases.items():
            case.ours()
            rows.append(
                {
                    "name": f"scan: {case.name}",
                    "unit": unit,
                    "size": n_atoms * (16 if unit == "edges" else 1),
                    "ours": statistics.median(cpu_seconds(case.ours) for _ in range(7)),
                    "bound_fma": case.instructions / machine.fma_per_s,
                    "bound_bytes": case.n_bytes / machine.bytes_per_s,
                }
            )
    draw(rows, path)
    return rows


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Time against size for both operations."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    titles = {"atoms": "symmetric contraction", "edges": "convolution"}
    labels = {
        "ours": "measured",
        "bound_fma": "multiply-adds at peak",
        "bound_bytes": "bytes at triad bandwidth",
    }
    for axis, (unit, title) in zip(axes, titles.items(), strict=True):
        of_unit = [row for row in rows if row["unit"] == unit]
        sizes = [row["size"] for row in of_unit]
        for (key, label), style in zip(labels.items(), ("o-", "--", ":"), strict=True):
            axis.loglog(sizes, [1e3 * row[key] for row in of_unit], style, label=label)
        axis.set(title=title, xlabel=unit, ylabel="ms, three passes")
    axes[0].legend()
    figure.suptitle("value, gradients, second derivatives; 128 channels, float32, one core")
    figure.savefig(path, dpi=120)


def force_training(
    function: Callable[..., list[Tensor]],
    inputs: list[Tensor],
    n_forces: int,
    cotangents: list[Tensor] | None = None,
) -> Pass:
    """Value, gradients of the first ``n_forces`` inputs, and gradients of a function of those."""
    forces = inputs[:n_forces]
    of_forces = [_wave(like) for like in forces]
    of_value = cotangents or []

    def run() -> list[Tensor]:
        out = function(*inputs)
        if not of_value:
            of_value.extend(_wave(like) for like in out)
        first = torch.autograd.grad(out, forces, of_value, create_graph=True)
        second = torch.autograd.grad(first, inputs, of_forces)
        return [*[t.detach() for t in (*out, *first)], *second]

    return run


def _wave(like: Tensor) -> Tensor:
    return (
        torch.cos(torch.arange(like.numel(), dtype=torch.float64)).view(like.shape).to(like.dtype)
    )


def contraction_case(dtype: torch.dtype, n_atoms: int, n_elements: int) -> Case:
    """l_max 3, correlation 3, outputs 0e + 1o."""
    torch.manual_seed(0)
    module = SymmetricContraction(3, 1, 3, n_elements, CHANNELS).to(dtype)
    names = [name for name, _ in module.named_parameters()]
    x = torch.randn(n_atoms, 16, CHANNELS, dtype=dtype, requires_grad=True)
    weights = list(module.parameters())
    elements = torch.arange(n_atoms) % n_elements

    def ours(x: Tensor, *weights: Tensor) -> list[Tensor]:
        return [module(x, elements, Chunks.of(elements, n_elements))]

    kinds = {"mace-torch": False}
    if has_reduced_couplings():
        kinds["mace-torch, reduced couplings"] = True
    peers = {
        kind: mace_contraction(names, elements, n_elements, dtype, reduced=reduced)
        for kind, reduced in kinds.items()
    }
    name = str(dtype).removeprefix("torch.")
    programs = kernels_of(module.key).programs
    costs = [programs[name].cost() for name in ("forward", "backward_x", "double")]
    n_vectors = n_atoms * CHANNELS * dtype.itemsize / cpp_compiler.register_width()
    moved = n_atoms * CHANNELS * dtype.itemsize * ((16 + 4) + (32 + 4) + (48 + 8))
    return Case(
        f"symmetric contraction, {n_atoms} atoms, {n_elements} elements, {name}",
        force_training(ours, [x, *weights], 1),
        {name: force_training(peer, [x, *weights], 1) for name, peer in peers.items()},
        sum(costs) * n_vectors,
        moved,
        100.0,
    )


def convolution_case(dtype: torch.dtype, n_atoms: int = 270, n_edges: int = 4470) -> Case:
    """0e + 1o features, harmonics up to 3; every edge has radial weights of its own."""
    torch.manual_seed(0)
    paths = convolution_paths(1, 3)
    product = product_of(paths, 1, 3)
    key = convolutions.register(product)
    x = torch.randn(n_atoms, 4, CHANNELS, dtype=dtype, requires_grad=True)
    y = torch.randn(n_edges, 16, dtype=dtype, requires_grad=True)
    r = torch.randn(n_edges, len(paths), CHANNELS, dtype=dtype, requires_grad=True)
    receivers = torch.arange(n_edges) * n_atoms // n_edges
    senders = (receivers + torch.randint(1, 27, (n_edges,))) % n_atoms

    def ours(x: Tensor, y: Tensor, r: Tensor) -> list[Tensor]:
        index = EdgeIndex.of(senders, receivers, n_atoms)
        return list(convolutions.convolution(x, y, r, index, key))

    kernels = convolutions.kernels_of(key)
    programs = [kernels.program, kernels.backward_program("xyr")]
    programs += [kernels.double_program("xyr", names) for names in ("g", "xyr")]
    n_vectors = n_edges * CHANNELS * dtype.itemsize / cpp_compiler.register_width()
    per_edge = len(paths) * (1 + 2 + 2 + 3) + 4 * (2 + 2)
    moved = (n_edges * per_edge + n_atoms * 40 * 5) * CHANNELS * dtype.itemsize
    name = str(dtype).removeprefix("torch.")
    peer = e3nn_convolution(paths, senders, receivers, n_atoms, dtype)
    places = places_in_e3nn(paths)
    blocks = [_wave(block) for block in ours(x, y, r)]
    shapes = [block.shape for block in blocks]
    sizes = [block[0].numel() for block in blocks]
    cotangent = torch.empty(n_atoms, len(places), dtype=dtype)
    cotangent[:, places] = torch.cat([block.flatten(1) for block in blocks], dim=1)

    def reorder(of_peer: list[Tensor]) -> list[Tensor]:
        out, *gradients = of_peer
        parts = torch.split(out[:, places], sizes, dim=1)
        return [*[p.view(s) for p, s in zip(parts, shapes, strict=True)], *gradients]

    return Case(
        f"convolution, {n_edges} edges, {name}",
        force_training(ours, [x, y, r], 3),
        {"e3nn": force_training(peer, [x, y, r], 3, [cotangent])},
        sum(program.cost() for program in programs) * n_vectors,
        moved,
        20.0,
        reorder,
    )


if __name__ == "__main__":
    sys.exit(main())
