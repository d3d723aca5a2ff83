"""Compiles all CUDA kernels of MACE models, without a GPU, and checks registers and local memory.

    python scripts/kernel_budget.py                    every kernel against kernels/budget.json
    python scripts/kernel_budget.py --changed          those whose source is not the one measured
    python scripts/kernel_budget.py --write            make their numbers the ceilings
    python scripts/kernel_budget.py --architectures sm_90 --only "0e\\+1o" --table

The kernels are those of training energies and forces with 128 channels, l_max 3 and correlation 3,
for features 0e, 0e+1o and 0e+1o+2e, in both precisions. Registers and bytes of local memory are per
thread and what ptxas says: spill stores, or the stack frame where it is larger (an array that is
indexed by a variable). Ceilings are rounded up, since versions of NVRTC differ. Beside them
stand digests of the sources that gave them: what has not changed, under the same NVRTC, need not be
compiled again. Needs the extra "cuda".
"""

import argparse
import hashlib
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from mace_train._paths import KERNELS  # noqa: E402
from mace_train.model.compile_kernels import training_kernels  # noqa: E402
from mace_train.model.mace import MACE, Head, ModelData  # noqa: E402
from mace_train.ops.codegen.kernel_spec import Loop  # noqa: E402
from mace_train.ops.cuda import compiler as cuda_compiler  # noqa: E402
from mace_train.ops.dispatch import CompiledKernel  # noqa: E402
from mace_train.settings import ModelSettings  # noqa: E402

BUDGET = KERNELS / "budget.json"
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
CHANNELS = 128
IRREPS = ("0e", "0e+1o", "0e+1o+2e")
Numbers = dict[str, list[int]]  # architecture: registers, bytes of local memory


@dataclass(frozen=True)
class Variant:
    """One kernel in one precision."""

    label: str
    kernel: CompiledKernel
    dtype: torch.dtype


def main() -> int:
    """Compile, print, compare or write; 0 if everything is within its ceiling."""
    arguments = _arguments()
    missing = cuda_compiler.why_missing()
    if missing:
        print(f"{missing}; pip install 'mace-train[cuda]'", file=sys.stderr)
        return 2
    start = time.perf_counter()
    chosen = [v for v in variants() if re.search(arguments.only, v.label)]
    if arguments.changed:
        chosen = changed(chosen)
    found = measure(chosen, arguments.architectures, arguments.jobs)
    seconds = time.perf_counter() - start
    print(
        f"{len(found)} kernels for {', '.join(arguments.architectures)} in {seconds:.0f} s, "
        f"NVRTC {cuda_compiler.version()}"
    )
    if arguments.table:
        print(table(found))
    if arguments.write:
        _write(found, chosen)
        return 0
    problems = compare(found, json.loads(BUDGET.read_text())["ceilings"])
    print("\n".join(problems) or "all within kernels/budget.json")
    return 1 if problems else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--architectures", nargs="+", default=list(ARCHITECTURES))
    parser.add_argument("--only", default="", help="a regular expression for the kernels' names")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--changed", action="store_true", help="leave out unchanged sources")
    parser.add_argument("--table", action="store_true", help="print the numbers as Markdown")
    parser.add_argument("--write", action="store_true", help="write kernels/budget.json")
    return parser.parse_args()


def variants() -> list[Variant]:
    """The kernels of the three models, each once, in both precisions."""
    kernels: dict[str, CompiledKernel] = {}
    for max_degree, irreps in enumerate(IRREPS):
        settings = ModelSettings(num_channels=CHANNELS, max_L=max_degree)
        data = ModelData(5.0, (1, 6), 20.0, (Head((0.0, 0.0), 1.0, 0.0),))
        model = MACE(settings, data, "cpp")
        for kernel, *_ in training_kernels(model):
            operation, *rest = kernel.recipe.split(" ")
            name = " ".join(rest if operation == "sum" else rest[1:])
            # of a smaller model, found before, unless it belongs to these irreps
            known = {k.recipe for k in kernels.values()}
            if kernel.recipe not in known:
                label = (
                    f"{operation} {name}"
                    if operation == "sum"
                    else (f"{operation} {irreps} {name}")
                )
                kernels[label] = kernel
    with_pairs = {label: k for label, k in kernels.items() if _has_pairs(k)}
    kernels |= {f"{label} by pair": _by_pair(kernel) for label, kernel in with_pairs.items()}
    dtypes = (torch.float32, torch.float64)
    return [
        Variant(f"{label} {str(dtype).removeprefix('torch.')}", kernels[label], dtype)
        for label in sorted(kernels)
        for dtype in dtypes
    ]


def _has_pairs(kernel: CompiledKernel) -> bool:
    """Whether it has gradients of r, which are summed over the edges of a pair."""
    operation, *rest = kernel.recipe.split(" ")
    return operation == "convolution" and rest[1] != "forward" and "r" in rest[-1]


def _by_pair(kernel: CompiledKernel) -> CompiledKernel:
    """The same in a loop over pairs, as ``gradients_by_pair`` of kernels/tuning.json has it."""
    return CompiledKernel(
        f"{kernel.recipe} by pair", lambda: replace(kernel.build(), loop=Loop.PAIRS)
    )


def measure(
    chosen: Iterable[Variant], architectures: Iterable[str], jobs: int
) -> dict[str, Numbers]:
    """Registers and bytes of local memory of every kernel."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:

        def numbers(variant: Variant) -> Numbers:
            source = partial(variant.kernel.cuda.source, variant.dtype, CHANNELS, Path(folder))
            return {name: _registers(source(name), name) for name in architectures}

        chosen = list(chosen)
        labels = [variant.label for variant in chosen]
        return dict(zip(labels, pool.map(numbers, chosen), strict=True))


def changed(chosen: Iterable[Variant]) -> list[Variant]:
    """Those whose ceilings are of another source, or of another version of NVRTC."""
    budget = json.loads(BUDGET.read_text())
    if budget["nvrtc"] != cuda_compiler.version():
        return list(chosen)
    digests = digests_of(chosen)
    return [v for v in chosen if budget["sources"].get(v.label) != digests[v.label]]


def digests_of(chosen: Iterable[Variant]) -> dict[str, str]:
    """Of the sources of every kernel for all architectures."""
    with tempfile.TemporaryDirectory() as folder:

        def digest(variant: Variant) -> str:
            source = partial(variant.kernel.cuda.source, variant.dtype, CHANNELS, Path(folder))
            sources = "".join(source(name) for name in ARCHITECTURES)
            return hashlib.sha256(sources.encode()).hexdigest()[:16]

        return {variant.label: digest(variant) for variant in chosen}


def _registers(source: str, architecture: str) -> list[int]:
    _, log = cuda_compiler.compile_cubin(source, architecture)
    return [
        int(_one(r"Used (\d+) registers", log)),
        max(int(_one(rf"(\d+) bytes {kind}", log)) for kind in ("stack frame", "spill stores")),
    ]


def _one(pattern: str, log: str) -> str:
    (found,) = re.findall(pattern, log)
    return found


def compare(found: dict[str, Numbers], ceilings: dict[str, Numbers]) -> list[str]:
    """What is above its ceiling, or has none."""
    problems = []
    for label, numbers in found.items():
        for architecture, (registers, local) in numbers.items():
            if architecture not in ceilings.get(label, {}):
                problems.append(f"{label}, {architecture}: not in kernels/budget.json; --write it")
                continue
            most_registers, most_local = ceilings[label][architecture]
            if registers > most_registers or local > most_local:
                problems.append(
                    f"{label}, {architecture}: {registers} registers, "
                    f"{local} bytes of local memory; the ceilings are "
                    f"{most_registers} and {most_local}"
                )
    return problems


def _write(found: dict[str, Numbers], chosen: list[Variant]) -> None:
    """Round up, so that another version of NVRTC may do a little worse; others keep theirs."""
    before = json.loads(BUDGET.read_text())
    labels = [variant.label for variant in variants()]
    new = {
        label: {
            name: [min(255, -(-registers // 8) * 8), -(-local // 64) * 64]
            for name, (registers, local) in numbers.items()
        }
        for label, numbers in found.items()
    }
    parts = [
        f'"nvrtc": "{cuda_compiler.version()}"',
        '"unit": "registers, bytes of local memory"',
        _lines("ceilings", labels, before["ceilings"] | new),
        _lines("sources", labels, before["sources"] | digests_of(chosen)),
    ]
    BUDGET.write_text("{\n" + ",\n".join(parts) + "\n}\n")


def _lines(name: str, labels: list[str], values: dict[str, Any]) -> str:
    """One line of JSON for every kernel that there is."""
    entries = [f'  "{k}": {json.dumps(values[k])}' for k in labels if k in values]
    return f'"{name}": {{\n' + ",\n".join(entries) + "\n}"


def table(found: dict[str, Numbers]) -> str:
    """Registers / bytes of local memory as Markdown."""
    names = list(next(iter(found.values())))
    lines = [f"| kernel | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for label, numbers in found.items():
        cells = [f"{r} / {s}" if s else str(r) for r, s in numbers.values()]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
