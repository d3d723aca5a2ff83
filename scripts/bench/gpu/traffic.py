"""Launches and bytes of the CUDA kernels of a training step, counted without a GPU.

    python scripts/bench/gpu/traffic.py [--json traffic.json] [--edges-per-atom 16] [--by-pair]

A step on energies and forces runs on a small graph with kernels that only note their tensors, as it
would on a GPU. Bytes are those of all operands, each once per launch (gathered rows that are read
again come from a cache, if things go well). "Radial" are the rows of the radial weights and of what
has their shape: cotangents, gradients, and the sums of gradients over an edge and its reverse.

Then what a convolution with the last radial layer inside would need. The weights of an edge would
never be in memory but be made again wherever they are read (one product of width x paths x channels
multiply-adds per reading), and their gradients be multiplied on the spot (two per writing: for the
narrow layer's gradient and for the matrix's). What matrix products outside do now, once per pair,
is subtracted. Gradients that visit edges pair by pair would make the weights of both at once. Rates
are those of a data sheet, given as options; the defaults are NVIDIA's for the H200 SXM (tensor
cores, dense). Last, how many pairs' rows of one layer fill half of the second-level cache.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))
sys.path.insert(1, str(Path(__file__).resolve().parents[3]))

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mace_train.model.coupling import convolution_paths
from mace_train.model.mace import MACE, Head, ModelData
from mace_train.ops import convolution, dispatch
from mace_train.ops.codegen.kernel_spec import Kernel, Loop, Role
from mace_train.ops.dispatch import CompiledKernel
from mace_train.settings import ModelSettings

CHANNELS, N_ATOMS = 128, 48


@dataclass
class Traffic:
    """What one step launches and moves."""

    launches: Counter[str] = field(default_factory=Counter)
    operators: int = 0  # of PyTorch, those that compute something
    n_bytes: Counter[str] = field(default_factory=Counter)  # by operation
    radial: int = 0  # bytes of radial rows in convolutions and in sums over pairs
    radial_sums: int = 0  # of these, in sums over pairs
    readings: Counter[Loop] = field(default_factory=Counter)  # of radial rows, by convolutions
    writings: int = 0
    made: int = 0  # by matrix products, for convolutions to read


def main() -> int:
    """Print the tables."""
    arguments = _arguments()
    rows = []
    for dtype in (torch.float32, torch.float64):
        for max_degree in (0, 1, 2):
            n_edges, traffic = step(max_degree, dtype, arguments.edges_per_atom, arguments.by_pair)
            rows.append(_row(max_degree, dtype, n_edges, traffic, arguments))
    for title, names in TABLES.items():
        print(f"\n{title}\n\n| model | {' | '.join(names)} |\n|{'---|' * (len(names) + 1)}")
        for row in rows:
            print(f"| {row['model']} | {' | '.join(_text(row[name]) for name in names)} |")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


TABLES = {
    "One step, two layers; kB per edge of the list": (
        "launches of our kernels",
        "operators of PyTorch",
        "kB of our kernels",
        "of convolutions",
        "radial",
        "of these, sums over pairs",
        "share of all",
    ),
    "Radial rows against making them again; ns per edge": (
        "read",
        "written",
        "moved by our kernels",
        "of these, in sums over pairs",
        "moved by matrix products",
        "more products",
        "more products, pair by pair",
        "pairs in half of L2",
    ),
}


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--edges-per-atom", type=int, default=16)
    parser.add_argument("--by-pair", action="store_true", help="gradients visit pairs of edges")
    parser.add_argument("--bandwidth", type=float, default=4.8e12, help="bytes per second")
    parser.add_argument("--tf32", type=float, default=495e12, help="flop/s; float32 takes three")
    parser.add_argument("--fp64", type=float, default=67e12, help="flop/s of tensor cores")
    parser.add_argument("--l2", type=float, default=50e6, help="bytes")
    parser.add_argument("--json", type=Path, help="write the rows here")
    return parser.parse_args()


def step(
    max_degree: int, dtype: torch.dtype, edges_per_atom: int, by_pair: bool = False
) -> tuple[int, Traffic]:
    """Number of edges, and what a step on energies and forces launches for them."""
    torch.manual_seed(0)
    settings = ModelSettings(num_channels=CHANNELS, max_L=max_degree)
    data = ModelData(5.0, (1, 6, 8), 20.0, (Head((0.0, 0.0, 0.0), 1.0, 0.0),))
    with mock.patch.object(dispatch, "runs_on_cuda", return_value=True):
        model = MACE(settings, data, "cpp").to(dtype)
    graph = _graph(edges_per_atom)
    vectors = torch.randn(len(graph["senders"]), 3, dtype=dtype).requires_grad_()
    elements = torch.arange(N_ATOMS) % 3
    traffic = Traffic()

    def run(
        kernel: CompiledKernel,
        n_items: int,
        index: Sequence[Tensor],
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        n_channels: int,
    ) -> list[int]:
        note(traffic, kernel, inputs, outputs, len(graph["first_of_pair"]))
        for out in outputs:
            out.zero_()
        return [0]

    with (
        mock.patch.object(dispatch, "runs_on_cuda", return_value=True),
        mock.patch.object(convolution, "runs_on_cuda", return_value=True),
        mock.patch.object(convolution, "loops_over_pairs", return_value=by_pair),
        mock.patch.object(CompiledKernel, "run", run),
        _Operators() as operators,
    ):
        energy = model(vectors, elements, **graph).sum()
        (force,) = torch.autograd.grad(energy, vectors, create_graph=True)
        loss = force.square().sum() + energy
        torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    # the kernels' outputs are filled here by operators that a GPU does not run
    traffic.operators = operators.n_calls - operators.n_fills
    return len(graph["senders"]), traffic


class _Operators(TorchDispatchMode):
    """Counts calls that compute: no views, no empty tensors, none of our own operators."""

    def __init__(self) -> None:
        super().__init__()
        self.n_calls = self.n_fills = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        self.n_fills += name == "aten::zero_"
        is_view = any(
            r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns
        )
        counts = not is_view and "empty" not in name and not name.startswith("mace_train::")
        self.n_calls += counts
        return func(*args, **(kwargs or {}))


def _graph(edges_per_atom: int) -> dict[str, Tensor]:
    """Edges with their reverses, sorted by receiver."""
    ends = torch.arange(N_ATOMS).repeat_interleave(edges_per_atom // 2)
    others = (ends + 1 + torch.arange(edges_per_atom // 2).repeat(N_ATOMS)) % N_ATOMS
    receivers, order = torch.cat((ends, others)).sort(stable=True)
    senders = torch.cat((others, ends))[order]
    of_edge = torch.arange(len(ends)).repeat(2)[order]
    first = torch.full((len(ends),), len(order)).scatter_reduce(
        0, of_edge, torch.arange(len(order)), "amin"
    )
    rank = torch.argsort(torch.argsort(first))
    return {
        "senders": senders,
        "receivers": receivers,
        "pairs": rank[of_edge],
        "first_of_pair": first.sort().values,
    }


def note(
    traffic: Traffic,
    compiled_kernel: CompiledKernel,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    n_pairs: int,
) -> None:
    """Count one launch."""
    operation, *rest = compiled_kernel.recipe.split(" ")
    kernel = _kernel(compiled_kernel)
    moved = sum(t.nbytes for t in (*inputs, *outputs))
    name = operation if operation == "sum" else f"{operation} {' '.join(rest[1:])}"
    traffic.launches[name] += 1
    traffic.n_bytes[operation] += moved
    if operation == "sum" and len(outputs[0]) == n_pairs:
        traffic.radial += moved
        traffic.radial_sums += moved
    of_pairs = [o.role is Role.PAIR for o in (*kernel.inputs, *kernel.outputs)]
    tensors = zip((*inputs, *outputs), of_pairs, strict=True)
    traffic.radial += sum(t.nbytes for t, is_radial in tensors if is_radial)
    names = [o.name for o in kernel.inputs if o.role is Role.PAIR]
    traffic.readings[kernel.loop] += len(names)
    traffic.made += rest[-1] == "forward" and operation == "convolution"
    traffic.made += "vr" in names and kernel.loop is not Loop.RECEIVERS
    traffic.writings += sum(of_pairs[len(inputs) :])


@cache
def _kernel(compiled_kernel: CompiledKernel) -> Kernel:
    return compiled_kernel.build()


def _row(
    max_degree: int,
    dtype: torch.dtype,
    n_edges: int,
    traffic: Traffic,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    irreps = "+".join(f"{d}{'eo'[d % 2]}" for d in range(max_degree + 1))
    n_paths = [len(convolution_paths(degree, 3)) for degree in (0, max_degree)]
    width = ModelSettings().radial_MLP[-1]
    per_edge = {name: n / n_edges / 1e3 for name, n in traffic.n_bytes.items()}
    flops = arguments.tf32 / 3 if dtype == torch.float32 else arguments.fp64
    # of one layer's row on average: both layers have the same kernels
    ns_of_row = 1e9 * sum(n_paths) / len(n_paths) * CHANNELS * dtype.itemsize / arguments.bandwidth
    ns_of_product = 1e9 * sum(n_paths) / len(n_paths) * CHANNELS * 2 * width / flops
    outside = (traffic.made + 2 * traffic.writings) / 2  # a pair is two edges
    of_edges = traffic.readings[Loop.EDGES] + traffic.readings[Loop.PAIRS] + 2 * traffic.writings
    of_receivers = traffic.readings[Loop.RECEIVERS]
    row_bytes = max(n_paths) * CHANNELS * dtype.itemsize
    return {
        "model": f"{irreps} {str(dtype).removeprefix('torch.')}",
        "launches of our kernels": sum(traffic.launches.values()),
        "operators of PyTorch": traffic.operators,
        "kB of our kernels": sum(per_edge.values()),
        "of convolutions": per_edge["convolution"],
        "radial": traffic.radial / n_edges / 1e3,
        "of these, sums over pairs": traffic.radial_sums / n_edges / 1e3,
        "share of all": traffic.radial / sum(traffic.n_bytes.values()),
        "read": sum(traffic.readings.values()),
        "written": traffic.writings,
        "moved by our kernels": 1e9 * traffic.radial / n_edges / arguments.bandwidth,
        "of these, in sums over pairs": 1e9 * traffic.radial_sums / n_edges / arguments.bandwidth,
        "moved by matrix products": outside * ns_of_row,
        "more products": (of_edges + of_receivers - outside) * ns_of_product,
        "more products, pair by pair": (of_edges / 2 + of_receivers - outside) * ns_of_product,
        "pairs in half of L2": int(arguments.l2 / 2 / row_bytes),
        "by kernel": dict(traffic.launches),
    }


if __name__ == "__main__":
    sys.exit(main())
