"""The two fused operations against mace-torch and e3nn: same weights and inputs, one process.

A measurement is what training on forces does: value, gradient of the inputs with create_graph, and
the gradient of a function of that. Both programs take turns; medians of the CPU time of the process
are compared, after checking that the results are equal. Beside it stand the instructions per second
that our three passes reach, as a share of what a loop of fused multiply-adds reaches here, and
the bytes that they must move at least, as a share of what a triad moves.

    python scripts/bench/kernels.py [--json kernels.json] [--repeats 5]

Needs the extra "interop" and a C++ compiler. One thread. mace-torch's contraction runs with its
full couplings, which are the default of its command line.
"""

import argparse
import ctypes
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
warnings.simplefilter("ignore")  # mace-torch and e3nn 0.4.4 under a recent PyTorch

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from mace_train.model.contraction import SymmetricContraction  # noqa: E402
from mace_train.model.coupling import convolution_paths  # noqa: E402
from mace_train.model.fused import product_of  # noqa: E402
from mace_train.ops import compiler  # noqa: E402
from mace_train.ops import convolution as convolutions  # noqa: E402
from mace_train.ops.convolution import EdgeIndex  # noqa: E402
from mace_train.ops.kernel_cache import cache_folder  # noqa: E402
from mace_train.ops.symmetric_contraction import Chunks, kernels_of  # noqa: E402
from tests.model.mace_torch import import_mace  # noqa: E402

CHANNELS = 128
Pass = Callable[[], list[Tensor]]

_PEAK = """
typedef {scalar} T;
typedef T V __attribute__((vector_size({width}), aligned(sizeof(T)), may_alias));
extern "C" void fma(long n, T* x) {{
  V a[12], b = *(V*)x, c = *(V*)(x + 64);
#pragma GCC unroll 12
  for (int i = 0; i < 12; ++i) a[i] = b * (T)i;
  for (long j = 0; j < n; ++j) {{
#pragma GCC unroll 12
    for (int i = 0; i < 12; ++i) a[i] = a[i] * b + c;
  }}
  V s = {{}};
#pragma GCC unroll 12
  for (int i = 0; i < 12; ++i) s += a[i];
  *(V*)x = s;
}}
extern "C" void triad(long n, T* x) {{
  T *y = x + n, *z = y + n;
  for (long i = 0; i < n; i += {width} / sizeof(T)) *(V*)(x+i) = *(V*)(y+i) + (T)3 * *(V*)(z+i);
}}
"""


@dataclass(frozen=True)
class Machine:
    """What one core reaches in simple loops."""

    fma_per_s: float  # vector instructions
    bytes_per_s: float


@dataclass(frozen=True)
class Case:
    """Two programs for one work, and the least that ours must do."""

    name: str
    ours: Pass
    peers: dict[str, Pass]
    instructions: float  # vector instructions of the three passes
    n_bytes: float
    at_least: float


def main() -> int:
    """Measure, print and compare; 0 if every row reaches its goal."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the rows here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    import_mace()
    rows = []
    for dtype in (torch.float32, torch.float64):
        machine = measure_machine(dtype)
        name = str(dtype).removeprefix("torch.")
        print(
            f"{name}: fused multiply-adds {machine.fma_per_s / 1e9:.2f} G vectors/s, "
            f"triad {machine.bytes_per_s / 1e9:.1f} GB/s"
        )
        cases = [
            contraction_case(dtype, n_atoms=270, n_elements=4),
            contraction_case(dtype, n_atoms=64, n_elements=10),
            convolution_case(dtype),
        ]
        rows += [compare(case, machine, arguments.repeats) for case in cases]
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0 if all(row["ratio"] >= row["at_least"] for row in rows) else 1


def compare(case: Case, machine: Machine, repeats: int) -> dict[str, Any]:
    """One row: medians of both, their ratio, and the distance to the machine's limits."""
    expected = case.ours()
    for peer in case.peers.values():
        for mine, theirs in zip(expected, peer(), strict=True):
            scale = float(theirs.abs().max())
            tolerance = 1e-4 if mine.dtype == torch.float32 else 1e-11
            assert float((mine - theirs).abs().max()) < tolerance * scale, case.name
    seconds: dict[str, list[float]] = {"ours": [], **{name: [] for name in case.peers}}
    for _ in range(repeats):
        for name, work in case.peers.items():
            seconds[name].append(_cpu_seconds(work))
        seconds["ours"] += [_cpu_seconds(case.ours) for _ in range(5)]
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ours = medians.pop("ours")
    best = min(medians, key=lambda name: medians[name])
    row = {
        "name": case.name,
        "ours": ours,
        "peer": medians[best],
        "peer_name": best,
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


def _cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def measure_machine(dtype: torch.dtype) -> Machine:
    """The best of several short loops."""
    width = compiler.register_width()
    scalar = {torch.float32: "float", torch.float64: "double"}[dtype]
    library = compiler.library(_PEAK.format(scalar=scalar, width=width), cache_folder())
    n_rounds, n_values = 2_000_000, 2**25 // dtype.itemsize
    memory = torch.full((3 * n_values,), 1e-3, dtype=dtype)
    pointer = ctypes.c_void_p(memory.data_ptr())
    fma = min(_cpu_seconds(lambda: library.fma(n_rounds, pointer)) for _ in range(5))
    triad = min(_cpu_seconds(lambda: library.triad(n_values, pointer)) for _ in range(5))
    return Machine(12 * n_rounds / fma, 3 * n_values * dtype.itemsize / triad)


def force_training(function: Callable[..., Tensor], inputs: list[Tensor], n_forces: int) -> Pass:
    """Value, gradients of the first ``n_forces`` inputs, and gradients of a function of those."""
    forces = inputs[:n_forces]
    probe: list[Tensor] = []

    def run() -> list[Tensor]:
        out = function(*inputs)
        if not probe:
            probe.extend(_wave(like) for like in (out, *forces))
        first = torch.autograd.grad(out, forces, probe[0], create_graph=True)
        second = torch.autograd.grad(first, inputs, probe[1:])
        return [out.detach(), *[f.detach() for f in first], *second]

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
    weights = [w.detach().requires_grad_() for w in module.parameters()]
    elements = torch.arange(n_atoms) % n_elements

    def ours(x: Tensor, *weights: Tensor) -> Tensor:
        parameters = dict(zip(names, weights, strict=True))
        arguments = (x, Chunks.of(elements, n_elements))
        return torch.func.functional_call(module, parameters, arguments)

    peers = {"mace-torch": _mace_contraction(names, elements, n_elements, dtype)}
    name = str(dtype).removeprefix("torch.")
    programs = kernels_of(module._fused.key).programs
    costs = [programs[name].cost() for name in ("forward", "backward_x", "double")]
    n_vectors = n_atoms * CHANNELS * dtype.itemsize / compiler.register_width()
    moved = n_atoms * CHANNELS * dtype.itemsize * ((16 + 4) + (32 + 4) + (48 + 8))
    return Case(
        f"symmetric contraction, {n_atoms} atoms, {n_elements} elements, {name}",
        force_training(ours, [x, *weights], 1),
        {name: force_training(peer, [x, *weights], 1) for name, peer in peers.items()},
        sum(costs) * n_vectors,
        moved,
        100.0,
    )


def _mace_contraction(
    names: list[str], elements: Tensor, n_elements: int, dtype: torch.dtype
) -> Callable[..., Tensor]:
    from e3nn import o3
    from mace.modules.symmetric_contraction import SymmetricContraction as Theirs

    irreps = [f"{CHANNELS}x{degree}{'eo'[degree % 2]}" for degree in range(4)]
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    peer = Theirs(
        irreps_in=o3.Irreps("+".join(irreps)),
        irreps_out=o3.Irreps("+".join(irreps[:2])),
        correlation=3,
        num_elements=n_elements,
        use_reduced_cg=False,
    ).to(dtype)
    torch.set_default_dtype(default)
    one_hot = torch.nn.functional.one_hot(elements, n_elements).to(dtype)

    def function(x: Tensor, *weights: Tensor) -> Tensor:
        parameters = dict(zip(names, weights, strict=True))
        out = torch.func.functional_call(peer, parameters, (x.transpose(1, 2), one_hot))
        vectors = out[:, CHANNELS:].view(len(x), CHANNELS, 3).transpose(1, 2)
        return torch.cat([out[:, None, :CHANNELS], vectors], dim=1)

    return function


def convolution_case(dtype: torch.dtype) -> Case:
    """0e + 1o features, harmonics up to 3, 270 atoms, 4470 edges."""
    torch.manual_seed(0)
    n_atoms, n_edges = 270, 4470
    paths = convolution_paths(1, 3)
    product = product_of(paths, 1, 3)
    key = convolutions.register(product)
    x = torch.randn(n_atoms, 4, CHANNELS, dtype=dtype, requires_grad=True)
    y = torch.randn(n_edges, 16, dtype=dtype, requires_grad=True)
    r = torch.randn(n_edges, len(paths), CHANNELS, dtype=dtype, requires_grad=True)
    receivers = torch.arange(n_edges) * n_atoms // n_edges
    senders = (receivers + torch.randint(1, 27, (n_edges,))) % n_atoms

    def ours(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
        index = EdgeIndex.of(senders, receivers, n_atoms)
        return torch.cat([t.flatten(1) for t in convolutions.convolution(x, y, r, index, key)], 1)

    kernels = convolutions.kernels_of(key)
    programs = [kernels.program, kernels.backward_program("xyr")]
    programs += [kernels.double_program("xyr", names) for names in ("g", "xyr")]
    n_vectors = n_edges * CHANNELS * dtype.itemsize / compiler.register_width()
    per_edge = len(paths) * (1 + 2 + 2 + 3) + 4 * (2 + 2)
    moved = (n_edges * per_edge + n_atoms * 40 * 5) * CHANNELS * dtype.itemsize
    name = str(dtype).removeprefix("torch.")
    peer = _e3nn_convolution(paths, senders, receivers, n_atoms, dtype)
    return Case(
        f"convolution, {n_edges} edges, {name}",
        force_training(ours, [x, y, r], 3),
        {"e3nn": force_training(peer, [x, y, r], 3)},
        sum(program.cost() for program in programs) * n_vectors,
        moved,
        20.0,
    )


def _e3nn_convolution(
    paths: list[tuple[int, int, int]],
    senders: Tensor,
    receivers: Tensor,
    n_atoms: int,
    dtype: torch.dtype,
) -> Callable[..., Tensor]:
    from e3nn import o3

    parity = "eo"
    middle = [f"{CHANNELS}x{l3}{parity[l3 % 2]}" for _, _, l3 in paths]
    instructions = [(l1, l2, i, "uvu", True) for i, (l1, l2, _) in enumerate(paths)]
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    product = o3.TensorProduct(
        o3.Irreps(f"{CHANNELS}x0e+{CHANNELS}x1o"),
        o3.Irreps("0e+1o+2e+3o"),
        o3.Irreps("+".join(middle)),
        instructions,
        shared_weights=False,
        internal_weights=False,
    ).to(dtype)
    torch.set_default_dtype(default)
    sizes = [2 * l3 + 1 for _, _, l3 in paths]

    def function(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
        flat = torch.cat([x[:, 0], x[:, 1:].transpose(1, 2).flatten(1)], dim=1)
        messages = product(flat[senders], y, r.flatten(1))
        summed = messages.new_zeros(n_atoms, messages.shape[1]).index_add(0, receivers, messages)
        parts = torch.split(summed, [CHANNELS * size for size in sizes], dim=1)
        outputs = []
        for degree in range(4):
            of_degree = [
                part.view(n_atoms, CHANNELS, size).transpose(1, 2)
                for part, size in zip(parts, sizes, strict=True)
                if size == 2 * degree + 1
            ]
            outputs.append(torch.stack(of_degree, dim=2).flatten(1))
        return torch.cat(outputs, dim=1)

    return function


if __name__ == "__main__":
    sys.exit(main())
