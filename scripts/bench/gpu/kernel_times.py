"""The fused operations on a GPU, against the bound and against those of other packages.

    python scripts/bench/gpu/kernel_times.py --json cuda.json [--operations contraction convolution]
        [--atoms 10000] [--edges 160000] [--dtypes float32 float64] [--peers cuEquivariance ...]
    python scripts/bench/gpu/kernel_times.py --plot cuda.png [--json scan.json]

For every operation: the value, its gradients, and the gradients of those (``cases``), each
timed on the GPU without the launches from Python (``timing``); medians, our own before and
after those of the peers. Rows: every pass against its bound, the bytes that must move over a
measured triad or the instructions over a measured loop of fused multiply-adds, whichever takes
longer (goal: half of it); every pass of a contraction against cuEquivariance's (goal: faster); the
sum of the passes of a convolution against the better of cuEquivariance and OpenEquivariance (goal:
1.5 times as fast). Times alone are compared: results are a matter of the tests.

--plot measures our operations alone at many sizes, and draws times and bounds.

Needs the extras "interop" and "cuda". With --device cpu it is a rehearsal with the host's clock.
"""

import argparse
import sys
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path[1:1] = [str(ROOT), str(ROOT / "scripts" / "bench")]
warnings.simplefilter("ignore")  # mace-torch and e3nn 0.4.4 under a recent PyTorch

import torch  # noqa: E402
from cases import (  # noqa: E402
    PASSES,
    PEERS,
    Case,
    Program,
    contraction_case,
    convolution_case,
    passes,
)
from goals import Row, describe, reaches, row, write  # noqa: E402
from timing import Machine, measure_machine, median_seconds  # noqa: E402

from tests.model.mace_torch import import_mace  # noqa: E402

SHARE_OF_BOUND = 0.5
FASTER = {"contraction": 1.0, "convolution": 1.5}
MAKERS = {"contraction": contraction_case, "convolution": convolution_case}
Times = dict[str, float]


def main() -> int:
    """Measure and print; 1 if a row falls short, 2 without a device."""
    arguments = _arguments()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("PyTorch sees no CUDA device; use --device cpu for a rehearsal", file=sys.stderr)
        return 2
    if arguments.peers:
        import_mace()
    rows: list[Row] = []
    details: list[dict[str, Any]] = []
    for name in arguments.dtypes:
        dtype = getattr(torch, name)
        machine = measure_machine(device, dtype)
        print(f"{name}: {machine}", flush=True)
        torch.set_default_dtype(dtype)  # mace-torch's peers ask for it
        if arguments.plot:
            details += scan(arguments, machine, device, dtype)
            continue
        for operation in arguments.operations:
            size = {"contraction": arguments.atoms, "convolution": arguments.edges}[operation]
            for degree in arguments.degrees[operation]:
                case = MAKERS[operation](size, degree, device, dtype, arguments.peers)
                found, more = compare(operation, case, machine, arguments.repeats)
                rows += found
                details.append(more)
                write(arguments.json, rows, complete=False, cases=details)
                if device.type == "cuda":
                    torch.cuda.empty_cache()
    torch.set_default_dtype(torch.float32)
    write(arguments.json, rows, cases=details)
    if arguments.plot:
        draw(details, arguments.plot)
    return 0 if all(reaches(row) for row in rows) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--operations", nargs="+", choices=MAKERS, default=list(MAKERS))
    parser.add_argument("--atoms", type=int, default=10000)
    parser.add_argument("--edges", type=int, default=160000)
    parser.add_argument("--degrees", type=int, nargs="+", help="default: 1; convolutions: 1 and 2")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "float64"])
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--plot", type=Path, help="draw times at many sizes here, without peers")
    arguments = parser.parse_args()
    chosen = arguments.degrees
    arguments.degrees = {"contraction": chosen or [1], "convolution": chosen or [1, 2]}
    return arguments


def compare(
    operation: str, case: Case, machine: Machine, repeats: int
) -> tuple[list[Row], dict[str, Any]]:
    """Rows of one case, and the times behind them."""
    device, itemsize = case.ours.inputs[0].device, case.ours.inputs[0].dtype.itemsize
    bounds = {
        label: machine.bound(case.instructions[i], case.words[i] * itemsize)
        for i, label in enumerate(PASSES)
    }
    before = times_of(case.ours, device, repeats)
    theirs: dict[str, Times] = {}
    missing = dict(case.missing)
    for name, make in case.peers.items():
        try:
            theirs[name] = times_of(make(), device, repeats)
        except Exception as error:  # a peer may raise anything
            missing[name] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
        if device.type == "cuda":
            torch.cuda.empty_cache()
    after = times_of(case.ours, device, repeats)
    ours = {label: (before[label] + after[label]) / 2 for label in PASSES}
    rows = [
        row(
            f"{case.name}: {label}, of the bound",
            ours[label],
            {"bound": bounds[label]},
            SHARE_OF_BOUND,
        )
        for label in PASSES
    ]
    goal, rivals = FASTER[operation], {n: t for n, t in theirs.items() if n != "e3nn"}
    rivals = rivals if device.type == "cuda" else theirs
    labels = PASSES if operation == "contraction" else ()
    for label in labels:
        times = {name: of_peer[label] for name, of_peer in rivals.items()}
        rows.append(row(f"{case.name}: {label}, against peers", ours[label], times, goal))
    sums = {name: sum(times.values()) for name, times in rivals.items()}
    rows.append(row(f"{case.name}: sum, against peers", sum(ours.values()), sums, goal))
    for one in rows:
        print(describe(one), flush=True)
    for name, reason in missing.items():
        print(f"{case.name}: not compared with {name}: {reason}", flush=True)
    found = {"ours": ours, "before": before, "after": after, "bounds": bounds, "peers": theirs}
    return rows, {"case": case.name, "missing": missing, **found, **vars(machine)}


def times_of(program: Program, device: torch.device, repeats: int) -> Times:
    """Median seconds of every pass."""
    return {label: median_seconds(work, device, repeats) for label, work in passes(program)}


def scan(
    arguments: argparse.Namespace, machine: Machine, device: torch.device, dtype: torch.dtype
) -> list[dict[str, Any]]:
    """Our times and bounds of the three passes together, at sizes up to four times those asked."""
    found: list[dict[str, Any]] = []
    for operation in arguments.operations:
        largest = {"contraction": arguments.atoms, "convolution": arguments.edges}[operation]
        for step in range(8):
            size = max(2, 4 * largest >> 2 * (7 - step))
            case = MAKERS[operation](size, 1, device, dtype, [])
            seconds = sum(times_of(case.ours, device, arguments.repeats).values())
            found.append(
                {
                    "operation": operation,
                    "dtype": str(dtype).removeprefix("torch."),
                    "size": size,
                    "ours": seconds,
                    "instructions": sum(case.instructions) / machine.fma_per_s,
                    "bytes": sum(case.words) * dtype.itemsize / machine.bytes_per_s,
                }
            )
            print(f"{case.name}: {1e3 * seconds:.3f} ms", flush=True)
    return found


def draw(points: list[dict[str, Any]], path: Path) -> None:
    """Time against size, one panel for each operation and precision."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = list(dict.fromkeys((point["operation"], point["dtype"]) for point in points))
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(4.2 * len(panels), 3.6), layout="constrained", squeeze=False
    )
    labels = {
        "ours": ("o-", "measured"),
        "instructions": ("--", "multiply-adds at peak"),
        "bytes": (":", "bytes at triad bandwidth"),
    }
    for axis, (operation, dtype) in zip(axes[0], panels, strict=True):
        shown = [p for p in points if (p["operation"], p["dtype"]) == (operation, dtype)]
        for key, (style, label) in labels.items():
            milliseconds = [1e3 * p[key] for p in shown]
            axis.loglog([p["size"] for p in shown], milliseconds, style, label=label)
        unit = "atoms" if operation == "contraction" else "edges"
        axis.set(title=f"{operation}, 0e+1o, {dtype}", xlabel=unit, ylabel="ms, three passes")
    axes[0][0].legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
