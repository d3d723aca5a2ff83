"""Measures which choices make the CUDA kernels fastest on this GPU, for ``kernels/tuning.json``.

    python scripts/bench/gpu/tune.py --json tuned.json --minutes 20 --write
    python scripts/bench/gpu/tune.py --rehearse --json tuned.json --only "0e\\+1o forward float32"

For every kernel of models with 0e, 0e+1o and 0e+1o+2e (128 channels, float32 and float64, all
passes): single choices are changed, starting from the default, then from the best found, until none
gains more than ``--margin``. Candidates are compiled in parallel; those with the code of another or
with far more spills are dropped; every one must write what the default writes, to rounding, from
fresh random inputs into outputs full of NaN, before its time counts: the median, all candidates in
turn, on tensors that together exceed the second-level cache. The bound is that of the kernel's
bytes, each moved once, over a measured triad, or of its instructions over a measured loop. In the
end the lengths of the contraction's chunks are compared, for all its kernels together.

Finished kernels are in the JSON file; the same command goes on where it was stopped. --write puts
what is faster than the default into ``kernels/tuning.json``. --rehearse needs no GPU: it compiles
the first candidates of every kernel and prints registers, bytes of local memory, shared bytes of a
block, warps per multiprocessor, what has more warps than the default without more local memory, and
what need not be timed. Needs the extra "cuda".
"""

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path[1:1] = [str(ROOT), str(ROOT / "scripts"), str(ROOT / "scripts" / "bench")]

import candidates as candidates  # noqa: E402
import kernel_budget  # noqa: E402
import torch  # noqa: E402
from candidates import Built, differences  # noqa: E402
from problem import N_ELEMENTS, Problem, ProblemSizes, medians  # noqa: E402

from mace_train.ops.codegen.kernel_spec import Kernel, Loop, Role, sum_kernel  # noqa: E402
from mace_train.ops.cuda import compiler as cuda_compiler  # noqa: E402
from mace_train.ops.cuda import driver as cuda_driver  # noqa: E402
from mace_train.ops.cuda import tuning as cuda_tuning  # noqa: E402
from mace_train.ops.cuda.kernel import SCALARS  # noqa: E402
from mace_train.ops.cuda.launch import CudaTarget  # noqa: E402
from mace_train.ops.cuda.passes import Tuning  # noqa: E402
from mace_train.ops.symmetric_contraction import ATOMS_PER_CHUNK  # noqa: E402

CHANNELS = 128
CHUNKS = "rows per chunk"  # a row of the results beside those of kernels
PAIRS = "gradients by pair"
CHUNK_LENGTHS = (8, 16, 32, 64)
Row = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """A kernel to tune."""

    label: str
    kernel: Kernel
    dtype: torch.dtype
    n_channels: int = CHANNELS

    @property
    def target(self) -> CudaTarget:
        """What code is made for."""
        return CudaTarget(SCALARS[self.dtype], self.n_channels)

    @property
    def default(self) -> Tuning:
        """The choices without a table."""
        return candidates.default_of(self.kernel, self.target)


def main() -> int:
    """Tune or rehearse; 0 if all kernels are done."""
    arguments = _arguments()
    missing = cuda_compiler.why_missing()
    if missing:
        print(f"{missing}; pip install 'mace-train[cuda]'", file=sys.stderr)
        return 2
    if not arguments.rehearse and not torch.cuda.is_available():
        print("PyTorch sees no CUDA device; --rehearse needs none", file=sys.stderr)
        return 2
    chosen = subjects(arguments.only)
    if arguments.rehearse:
        return rehearse(chosen, arguments)
    return tune(chosen, arguments, torch.device("cuda", torch.cuda.current_device()))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, help="results; read to go on")
    parser.add_argument("--minutes", type=float, default=30.0, help="stop after so many")
    parser.add_argument("--write", action="store_true", help="write kernels/tuning.json")
    parser.add_argument("--rehearse", action="store_true", help="compile only; needs no GPU")
    parser.add_argument("--architecture", default="sm_90", help="of a rehearsal")
    parser.add_argument("--only", default="", help="a regular expression for the kernels' names")
    parser.add_argument("--atoms", type=int, default=10000)
    parser.add_argument("--edges", type=int, default=160000)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--margin", type=float, default=0.02, help="of time; less is noise")
    parser.add_argument("--rounds", type=int, default=4, help="of changes of single choices")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    return parser.parse_args()


def subjects(only: str) -> list[Subject]:
    """The kernels of the models whose names match, those with the most work first."""
    found = {}
    for variant in kernel_budget.variants():
        if not re.search(only, variant.label):
            continue
        kernel = variant.kernel.build()
        key = cuda_tuning.name_of(kernel), variant.dtype
        found.setdefault(key, Subject(variant.label, kernel, variant.dtype))
    return sorted(found.values(), key=lambda s: -s.kernel.program.cost())


def compiled(
    subject: Subject, tunings: Iterable[Tuning], architecture: str, jobs: int
) -> list[Built]:
    """Candidates, compiled side by side."""
    with ThreadPoolExecutor(jobs) as pool:
        build = partial(candidates.build, subject.kernel, subject.target, architecture=architecture)
        return list(pool.map(build, tunings))


def rehearse(chosen: list[Subject], arguments: argparse.Namespace) -> int:
    """Compile the default of every kernel and its neighbours, and say what is dominated."""
    end = time.monotonic() + 60 * arguments.minutes
    state = _State(arguments.json, {"rehearsal": arguments.architecture})
    for subject in chosen:
        if state.has(subject.label):
            continue
        if time.monotonic() > end:
            return _stopped(arguments)
        tunings = [subject.default]
        tunings += candidates.neighbours(subject.kernel, subject.target, subject.default)
        built = compiled(subject, tunings, arguments.architecture, arguments.jobs)
        rows = [_facts(one, built, built[0]) for one in built]
        state.add(subject.label, {"candidates": rows})
        print(f"\n{subject.label}, {arguments.architecture}, NVRTC {cuda_compiler.version()}")
        print("| choice | registers | local | shared | warps | promising | need not be timed |")
        print("|---" * 7 + "|")
        for row in rows:
            print("| " + " | ".join(str(value or "") for value in row.values()) + " |", flush=True)
    return 0


def _facts(one: Built, all_: list[Built], default: Built) -> Row:
    return {
        "choice": differences(one.tuning, default.tuning),
        "registers": one.registers,
        "local": one.local,
        "shared": one.shared,
        "warps": one.warps,
        "promising": candidates.is_promising(one, default),
        "dropped": candidates.why_dropped(one, all_, default),
    }


def tune(chosen: list[Subject], arguments: argparse.Namespace, device: torch.device) -> int:
    """Search for every kernel; stop when the time is over, with what is found so far."""
    end = time.monotonic() + 60 * arguments.minutes
    architecture = cuda_driver.architecture(device)
    setting = {name: getattr(arguments, name) for name in ("atoms", "edges")}
    state = _State(arguments.json, {"architecture": architecture, **setting})
    peaks = {dtype: _peak(device, dtype) for dtype in {s.dtype for s in chosen}}
    print("| kernel | default, ms | best, ms | gain | of the bound | choices |")
    print("|---|---|---|---|---|---|")
    is_complete = True
    for subject in chosen:
        if not state.has(subject.label):
            if time.monotonic() > end:
                is_complete = False
                break
            state.add(subject.label, search(subject, arguments, device, peaks[subject.dtype], end))
        row = state.rows[subject.label]
        print(
            f"| {subject.label} | {1e3 * row['default']:.3f} | {1e3 * row['best']:.3f} | "
            f"{row['default'] / row['best'] - 1:.0%} | {row['bound'] / row['best']:.0%} | "
            f"{row['choices']} |",
            flush=True,
        )
    if is_complete and not state.has(CHUNKS):
        state.add(CHUNKS, search_chunks(chosen, state.rows, arguments, device))
    if is_complete and not state.has(PAIRS):
        state.add(PAIRS, search_pairs(chosen, state.rows, arguments, device))
    if state.has(CHUNKS):
        relative = state.rows[PAIRS]["relative"]
        print(f"gradients by pair take {relative:.2f} of the time of those by edge and their sums")
        print(f"time of the contraction with {state.rows[CHUNKS]['relative']} (atoms per chunk)")
    if arguments.write:
        write_table(state.rows, architecture, _where(device), arguments.margin)
    return 0 if is_complete else _stopped(arguments)


def search(
    subject: Subject,
    arguments: argparse.Namespace,
    device: torch.device,
    peak: tuple[float, float],
    end: float,
) -> Row:
    """Default and best of one kernel, in seconds, with the choices of the best."""
    architecture = cuda_driver.architecture(device)
    rows = ATOMS_PER_CHUNK["cuda"]
    sizes = ProblemSizes(arguments.atoms, arguments.edges, subject.n_channels, rows)
    problem = Problem(subject.kernel, subject.dtype, sizes, device)
    (default,) = compiled(subject, [subject.default], architecture, 1)
    best, tried, wrong, refused = default, {default.tuning}, [], 0
    sets, n_timed, seconds = problem.sets(), 0, {}
    for number in range(arguments.rounds):
        near = candidates.neighbours(subject.kernel, subject.target, best.tuning)
        new = [tuning for tuning in near if tuning not in tried]
        built = compiled(subject, new, architecture, arguments.jobs)
        tried.update(new)
        everyone = list({b.tuning: b for b in (default, best, *built)}.values())
        worth = [b for b in everyone if not candidates.why_dropped(b, everyone, default)]
        refused += len(everyone) - len(worth)
        expected = problem.operands(100 + number)
        problem.run(default, expected)
        right = []
        for one in worth:
            off = problem.difference(one, expected)
            if off <= 1.0:
                right.append(one)
            else:
                wrong.append(f"{differences(one.tuning, default.tuning)}: {off:.3g} roundings off")
        del expected
        assert default in right, f"{subject.label}: the default does not repeat itself: {wrong}"
        timed = {b.tuning: b for b in (default, best, *right)}
        work = {str(i): problem.launches(b, sets) for i, b in enumerate(timed.values())}
        taken = medians(work, device, arguments.repeats)
        seconds = dict(zip(timed, taken.values(), strict=True))
        n_timed += len(timed)
        fastest = min(seconds, key=lambda tuning: seconds[tuning])
        if seconds[fastest] > (1.0 - arguments.margin) * seconds[best.tuning]:
            break
        best = timed[fastest]
        if time.monotonic() > end:
            break
    for message in wrong:
        print(f"{subject.label}: WRONG RESULT, not used: {message}", file=sys.stderr)
    fma = subject.kernel.program.cost() * problem.n_rounds * subject.n_channels
    return {
        "name": cuda_tuning.name_of(subject.kernel),
        "dtype": str(subject.dtype).removeprefix("torch."),
        "channels": subject.n_channels,
        "default": seconds[default.tuning],
        "best": seconds[best.tuning],
        "bound": max(fma / peak[0], sets[0].n_bytes / peak[1]),
        "choices": differences(best.tuning, default.tuning),
        "entry": cuda_tuning.entry_of(best.tuning),
        "timed": n_timed,
        "dropped": refused,
        "wrong": wrong,
    }


def search_chunks(
    chosen: list[Subject], rows: dict[str, Row], arguments: argparse.Namespace, device: torch.device
) -> Row:
    """Time of the contraction's kernels, sums over chunks included, for lengths of chunks."""
    total = dict.fromkeys(CHUNK_LENGTHS, 0.0)
    architecture, usual = cuda_driver.architecture(device), ATOMS_PER_CHUNK["cuda"]
    for subject in chosen:
        if not any(o.role is Role.INDEXED for o in subject.kernel.inputs):
            continue
        entry = rows[subject.label]["entry"]
        (best,) = compiled(
            subject, [Tuning(**entry | {"split": tuple(entry["split"])})], architecture, 1
        )
        partial = [o.n_segments for o in subject.kernel.outputs if o.role is Role.CHUNK]
        seconds = dict.fromkeys(CHUNK_LENGTHS, 0.0)
        for length in CHUNK_LENGTHS:
            sizes = ProblemSizes(arguments.atoms, arguments.edges, subject.n_channels, length)
            problem = Problem(subject.kernel, subject.dtype, sizes, device)
            work = {"": problem.launches(best, problem.sets())}
            seconds[length] += medians(work, device, arguments.repeats)[""]
            for n_segments in partial:
                summing = Subject("", sum_kernel(n_segments), subject.dtype, subject.n_channels)
                (built,) = compiled(summing, [summing.default], architecture, 1)
                few = ProblemSizes(N_ELEMENTS, problem.n_items, subject.n_channels, length)
                sums = Problem(summing.kernel, subject.dtype, few, device)
                work = {"": sums.launches(built, sums.sets())}
                seconds[length] += medians(work, device, arguments.repeats)[""]
        for length in CHUNK_LENGTHS:  # every kernel counts alike
            total[length] += seconds[length] / seconds[usual]
    relative = {n: t / total[usual] for n, t in total.items()} if total[usual] else {usual: 1.0}
    best_length = min(relative, key=lambda n: relative[n])
    return {"relative": relative, "best": best_length, "gain": 1.0 - relative[best_length]}


def search_pairs(
    chosen: list[Subject], rows: dict[str, Row], arguments: argparse.Namespace, device: torch.device
) -> Row:
    """Time of gradients pair by pair over that of gradients by edge and their sums."""
    found = {}
    for subject in chosen:
        by_edge = rows.get(subject.label.replace(" by pair", ""))
        if subject.kernel.loop is not Loop.PAIRS or by_edge is None:
            continue
        (n_segments,) = (o.n_segments for o in subject.kernel.outputs if o.role is Role.PAIR)
        summing = Subject("", sum_kernel(n_segments), subject.dtype, subject.n_channels)
        (built,) = compiled(summing, [summing.default], cuda_driver.architecture(device), 1)
        sizes = ProblemSizes(arguments.edges // 2, arguments.edges, subject.n_channels, 1)
        problem = Problem(summing.kernel, subject.dtype, sizes, device)
        work = {"": problem.launches(built, problem.sets())}
        seconds = by_edge["best"] + medians(work, device, arguments.repeats)[""]
        found[subject.label] = rows[subject.label]["best"] / seconds
    return {"relative": sum(found.values()) / len(found) if found else 1.0, "of kernels": found}


def _peak(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Multiply-adds and bytes per second that simple loops reach."""
    from kernel_times import measure_machine

    machine = measure_machine(device, dtype)
    return machine.fma_per_s, machine.bytes_per_s


def _where(device: torch.device) -> Row:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "host"
    return {"device": name, "nvrtc": cuda_compiler.version(), "day": time.strftime("%Y-%m-%d")}


def _stopped(arguments: argparse.Namespace) -> int:
    print(f"stopped after {arguments.minutes:g} minutes; the same command goes on", file=sys.stderr)
    return 1


def write_table(rows: dict[str, Row], architecture: str, where: Row, margin: float) -> None:
    """Put what is faster than the default by more than the margin into the table, and check it."""
    path = cuda_tuning.TABLE
    table: Row = {"format": cuda_tuning.FORMAT, "architectures": {}}
    if path.exists():
        table = json.loads(path.read_text())
    entries = table["architectures"].setdefault(architecture, {})
    entries["measured"] = where
    rows = dict(rows)
    chunks, pairs = rows.pop(CHUNKS, None), rows.pop(PAIRS, None)
    if pairs is not None:
        entries["gradients_by_pair"] = pairs["relative"] < 1.0 - margin
    if chunks is not None:
        entries.pop("rows_per_chunk", None)
        if chunks["gain"] > margin:
            entries["rows_per_chunk"] = chunks["best"]
    for row in rows.values():
        widths = entries.setdefault("kernels", {}).setdefault(row["name"], {})
        widths = widths.setdefault(row["dtype"], {})
        widths.pop(str(row["channels"]), None)
        if row["best"] < (1.0 - margin) * row["default"]:
            widths[str(row["channels"])] = row["entry"]
    cuda_tuning.parse(table, str(path))
    _replace(path, json.dumps(table, indent=1) + "\n")
    print(f"{path}: choices for {architecture}")


class _State:
    """Finished kernels in a file, which belongs to one setting."""

    def __init__(self, path: Path, setting: Row) -> None:
        self.path, self.setting = path, setting
        self.rows: dict[str, Row] = {}
        if path.exists():
            known = json.loads(path.read_text())
            if known["setting"] != setting:
                sys.exit(
                    f"{path}: measured with {known['setting']}, now {setting}; "
                    "take another file for --json, or remove this one"
                )
            self.rows = known["kernels"]

    def has(self, label: str) -> bool:
        """Whether a kernel is finished."""
        return label in self.rows

    def add(self, label: str, row: Row) -> None:
        """Keep a finished kernel."""
        self.rows[label] = row
        text = json.dumps({"setting": self.setting, "kernels": self.rows}, indent=1)
        _replace(self.path, text + "\n")


def _replace(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    part.write_text(text)
    os.replace(part, path)


if __name__ == "__main__":
    sys.exit(main())
