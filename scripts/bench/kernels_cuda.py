"""The fused operations on a GPU, against mace-torch and the peers that import.

    python scripts/bench/kernels_cuda.py [--json cuda.json] [--atoms 2500] [--edges 20000]

For every operation: the value, value and gradients, and those with the gradients of a function of
the gradients, timed with CUDA events; medians, both programs in turn. Beside our times stands the
bound: the bytes that must move over a measured triad, or the instructions over a measured loop of
fused multiply-adds, whichever is longer. Peers run as mace-torch calls them: e3nn, and
cuEquivariance and OpenEquivariance where their packages import. Times alone are compared: results
are a matter of the tests.

Needs the extras "interop" and "cuda". With --device cpu it is a rehearsal with the host's clock.
"""

import argparse
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

from mace_train.model.coupling import convolution_paths  # noqa: E402
from mace_train.model.fused import coupling_of, product_of  # noqa: E402
from mace_train.model.product_basis import product_basis  # noqa: E402
from mace_train.ops import convolution as convolutions  # noqa: E402
from mace_train.ops import cuda_compiler, cuda_driver  # noqa: E402
from mace_train.ops import symmetric_contraction as contractions  # noqa: E402
from tests.model.mace_torch import import_mace  # noqa: E402

CHANNELS = 128
PASSES = ("value", "and gradients", "and second derivatives")
Function = Callable[..., Tensor]

_PEAK = """
typedef {scalar} T;
extern "C" __global__ void run(long long n, T* x) {{
  T a[8], b = x[threadIdx.x], c = x[threadIdx.x + 1];
#pragma unroll
  for (int i = 0; i < 8; ++i) a[i] = b * i;
  for (long long j = 0; j < n; ++j) {{
#pragma unroll
    for (int i = 0; i < 8; ++i) a[i] = a[i] * b + c;
  }}
  T s = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) s += a[i];
  x[blockIdx.x * 256LL + threadIdx.x] = s;
}}
"""


@dataclass(frozen=True)
class Case:
    """One operation: ours and its peers, with inputs of each, and what ours must do at least."""

    name: str
    ours: tuple[Function, list[Tensor]]
    peers: dict[str, tuple[Function, list[Tensor]]]
    instructions: tuple[float, float, float]  # of each pass alone
    words: tuple[float, float, float]


@dataclass(frozen=True)
class Machine:
    """What simple loops reach."""

    fma_per_s: float
    bytes_per_s: float


def main() -> int:
    """Measure and print; 1 if a row is slower than its best peer."""
    arguments = _arguments()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("PyTorch sees no CUDA device", file=sys.stderr)
        return 2
    import_mace()
    rows = []
    for dtype in (torch.float32, torch.float64):
        machine = measure_machine(device, dtype)
        print(
            f"{dtype}: {machine.fma_per_s / 1e12:.2f} T multiply-adds/s, "
            f"{machine.bytes_per_s / 1e9:.0f} GB/s"
        )
        torch.set_default_dtype(dtype)  # mace-torch's peers ask for it
        for degree in arguments.degrees:
            for make in (contraction_case, convolution_case):
                rows += compare(make(arguments, degree, device, dtype), machine, arguments.repeats)
        torch.set_default_dtype(torch.float32)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0 if all(row["ratio"] >= row["at_least"] for row in rows) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--atoms", type=int, default=2500)
    parser.add_argument("--edges", type=int, default=20000)
    parser.add_argument("--degrees", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--json", type=Path, help="write the rows here")
    return parser.parse_args()


def contraction_case(
    arguments: argparse.Namespace, degree: int, device: torch.device, dtype: torch.dtype
) -> Case:
    """Degrees up to 3 to degrees up to ``degree``, correlation 3, four elements."""
    from mace.modules.wrapper_ops import SymmetricContractionWrapper

    torch.manual_seed(0)
    key = contractions.register(coupling_of(product_basis(3, degree, 3)))
    kernels = contractions.kernels_of(key)
    n_atoms, n_weights = arguments.atoms, kernels.coupling.n_weights
    elements = torch.randint(0, 4, (n_atoms,), device=device)
    x = torch.randn(n_atoms, 16, CHANNELS, device=device, dtype=dtype)
    w = torch.randn(4, n_weights, CHANNELS, device=device, dtype=dtype)
    chunks = contractions.Chunks.of(elements, 4)
    one_hot = torch.nn.functional.one_hot(elements, 4).to(dtype)
    peers: dict[str, tuple[Function, list[Tensor]]] = {}
    for name, options in _backends().items():
        if name == "OpenEquivariance":  # has no symmetric contraction in mace-torch
            continue
        peer = SymmetricContractionWrapper(
            _irreps(3), _irreps(degree), 3, 4, use_reduced_cg=False, **options
        ).to(device)
        indices = one_hot if name == "e3nn" else elements.int()
        features = x.transpose(1, 2) if name == "e3nn" else x.flatten(1)
        names = [name for name, _ in peer.named_parameters()]

        def call(x: Tensor, *w: Tensor, peer=peer, names=names, indices=indices) -> Tensor:
            parameters = dict(zip(names, w, strict=True))
            return torch.func.functional_call(peer, parameters, (x, indices))

        peers[name] = call, [features, *peer.parameters()]
    n_out = kernels.n_out
    costs = [kernels.programs[name].cost() for name in ("forward", "backward_x", "double")]
    words = (16 + n_out, 2 * 16 + n_out, 3 * 16 + 2 * n_out)
    return Case(
        f"contraction to {_names(degree)}, {n_atoms} atoms, {dtype}",
        (lambda x, w: contractions.symmetric_contraction(x, w, chunks, key), [x, w]),
        peers,
        tuple(cost * n_atoms * CHANNELS for cost in costs),
        tuple(word * n_atoms * CHANNELS for word in words),
    )


def convolution_case(
    arguments: argparse.Namespace, degree: int, device: torch.device, dtype: torch.dtype
) -> Case:
    """Features up to ``degree`` with harmonics up to 3."""
    from e3nn import o3
    from mace.modules.wrapper_ops import TensorProduct, with_scatter_sum

    torch.manual_seed(0)
    n_atoms, n_edges = arguments.atoms, arguments.edges
    paths = convolution_paths(degree, 3)
    key = convolutions.register(product_of(paths, degree, 3))
    n_x = (degree + 1) ** 2
    receivers = torch.arange(n_edges, device=device) * n_atoms // n_edges
    senders = (receivers + torch.randint(1, 50, (n_edges,), device=device)) % n_atoms
    x = torch.randn(n_atoms, n_x, CHANNELS, device=device, dtype=dtype)
    y = torch.randn(n_edges, 16, device=device, dtype=dtype)
    r = torch.randn(n_edges, len(paths), CHANNELS, device=device, dtype=dtype)
    index = convolutions.EdgeIndex.of(senders, receivers, n_atoms)
    middle = o3.Irreps("+".join(f"{CHANNELS}x{l3}{'eo'[l3 % 2]}" for _, _, l3 in paths))
    instructions = [(l1, l2, i, "uvu", True) for i, (l1, l2, _) in enumerate(paths)]
    ends = torch.stack([senders, receivers])
    peers: dict[str, tuple[Function, list[Tensor]]] = {}
    for name, options in _backends().items():
        peer = TensorProduct(
            _irreps(degree), o3.Irreps("0e+1o+2e+3o"), middle, instructions=instructions, **options
        ).to(device)
        if name == "e3nn":
            peer = with_scatter_sum(peer)
        peers[name] = (
            lambda x, y, r, peer=peer: peer(x, y, r, ends),
            [x.flatten(1).clone(), y.clone(), r.flatten(1).clone()],
        )
    kernels = convolutions.kernels_of(key)
    second = [kernels.double_program("xyr", names).cost() for names in ("g", "xyr")]
    costs = (kernels.program.cost(), kernels.backward_program("xyr").cost(), sum(second))
    per_edge = (len(paths), 2 * len(paths) + 2 * n_x, 3 * len(paths) + 2 * n_x)
    return Case(
        f"convolution of {_names(degree)}, {n_edges} edges, {dtype}",
        (
            lambda x, y, r: torch.cat(convolutions.convolution(x, y, r, index, key), dim=1),
            [x, y, r],
        ),
        peers,
        tuple(cost * n_edges * CHANNELS for cost in costs),
        tuple(words * n_edges * CHANNELS for words in per_edge),
    )


def _backends() -> dict[str, dict[str, Any]]:
    """Options of mace-torch's wrappers for every peer that can be imported."""
    from mace.modules import wrapper_ops

    found: dict[str, dict[str, Any]] = {"e3nn": {}}
    if wrapper_ops.CUET_AVAILABLE:
        options = {"layout": "ir_mul", "group": "O3", "optimize_all": True, "conv_fusion": True}
        config = wrapper_ops.CuEquivarianceConfig(enabled=True, **options)
        found["cuEquivariance"] = {"cueq_config": config}
    if wrapper_ops.OEQ_AVAILABLE:
        config = wrapper_ops.OEQConfig(enabled=True, optimize_all=True)
        found["OpenEquivariance"] = {"oeq_config": config}
    return found


def _irreps(degree: int) -> Any:
    from e3nn import o3

    return o3.Irreps("+".join(f"{CHANNELS}x{d}{'eo'[d % 2]}" for d in range(degree + 1)))


def _names(degree: int) -> str:
    return "+".join(f"{d}{'eo'[d % 2]}" for d in range(degree + 1))


def passes(function: Function, inputs: list[Tensor]) -> list[Callable[[], object]]:
    """The value; value and gradients; those and the gradients of a function of the gradients."""
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]

    def gradients() -> tuple[Tensor, ...]:
        out = function(*inputs)
        return torch.autograd.grad(out.square().sum(), inputs, create_graph=True)

    def value() -> Tensor:
        with torch.no_grad():
            return function(*inputs)

    def second() -> tuple[Tensor | None, ...]:
        total = sum(gradient.square().sum() for gradient in gradients())
        return torch.autograd.grad(total, inputs, allow_unused=True)

    return [value, gradients, second]


def compare(case: Case, machine: Machine, repeats: int) -> list[dict[str, Any]]:
    """Rows of the three passes."""
    device, itemsize = case.ours[1][0].device, case.ours[1][0].dtype.itemsize
    ours = passes(*case.ours)
    theirs = {name: passes(*peer) for name, peer in case.peers.items()}
    rows, bound = [], 0.0
    for number, label in enumerate(PASSES):
        instructions, words = case.instructions[number], case.words[number]
        bound += max(instructions / machine.fma_per_s, words * itemsize / machine.bytes_per_s)
        work = {"ours": ours[number], **{name: peer[number] for name, peer in theirs.items()}}
        seconds = _medians(work, device, repeats)
        mine = seconds.pop("ours")
        best = min(seconds, key=lambda name: seconds[name])
        rows.append(
            {
                "name": f"{case.name}: {label}",
                "ours": mine,
                "peer": seconds[best],
                "peer_name": best,
                "all_peers": seconds,
                "ratio": seconds[best] / mine,
                "at_least": 1.0,
                "share_of_bound": bound / mine,
            }
        )
        print(
            f"{rows[-1]['name']}: ours {1e3 * mine:.3f} ms ({bound / mine:.0%} of the bound), "
            + ", ".join(f"{name} {1e3 * t:.3f} ms" for name, t in seconds.items()),
            flush=True,
        )
    return rows


def _medians(
    work: dict[str, Callable[[], object]], device: torch.device, repeats: int
) -> dict[str, float]:
    """Median seconds of every program, all in turn, after two rounds to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for round_ in range(repeats + 2):
        for name, run in work.items():
            taken = _seconds(run, device)
            if round_ > 1:
                seconds[name].append(taken)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    if device.type == "cpu":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    first.record()
    run()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1e3


def measure_machine(device: torch.device, dtype: torch.dtype) -> Machine:
    """The best of a few runs of a triad of 1 GiB and of a loop of multiply-adds."""
    n = 2**30 // (4 if device.type == "cuda" else 64) // dtype.itemsize
    a, b, c = (torch.ones(n, device=device, dtype=dtype) for _ in range(3))
    triad = min(_seconds(lambda: torch.add(b, c, alpha=3.0, out=a), device) for _ in range(5))
    bandwidth = 3 * n * dtype.itemsize / triad
    if device.type == "cpu":
        return Machine(float("inf"), bandwidth)
    scalar = "float" if dtype == torch.float32 else "double"
    code, _ = cuda_compiler.compile_cubin(
        _PEAK.format(scalar=scalar), cuda_driver.architecture(device)
    )
    function = cuda_driver.Function(code, torch.device("cuda", torch.cuda.current_device()))
    n_blocks, n_steps = 132 * 64, 20000
    x = torch.ones(n_blocks * 256 + 1, device=device, dtype=dtype)
    seconds = min(
        _seconds(lambda: function.launch((n_blocks, 1, 1), 256, [n_steps, x.data_ptr()]), device)
        for _ in range(3)
    )
    return Machine(n_blocks * 256 * n_steps * 8 / seconds, bandwidth)


if __name__ == "__main__":
    sys.exit(main())
