"""Candidates for the tuning of a CUDA kernel, and their compiler reports, without a GPU."""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace

from mace_train.ops.codegen.kernel_spec import Kernel, Loop, Role
from mace_train.ops.cuda import compiler as cuda_compiler
from mace_train.ops.cuda.emit import emit_cuda
from mace_train.ops.cuda.launch import CudaTarget, LaunchConfig
from mace_train.ops.cuda.passes import Tuning, is_sum, tuning_of


@dataclass(frozen=True)
class Limits:
    """What a multiprocessor has; registers are given out in units, per warp."""

    registers: int = 65536
    unit: int = 256
    warps: int = 64
    blocks: int = 32
    shared: int = 228 * 1024  # bytes; a block takes 1 KiB more than it asks for


LIMITS = {
    "sm_80": Limits(shared=164 * 1024),
    "sm_86": Limits(warps=48, blocks=16, shared=100 * 1024),
    "sm_89": Limits(warps=48, blocks=24, shared=100 * 1024),
    "sm_90": Limits(),
    "sm_100": Limits(),
    "sm_120": Limits(warps=48, blocks=24, shared=100 * 1024),
}
"""NVIDIA's CUDA C++ Programming Guide, technical specifications per compute capability."""


@dataclass(frozen=True)
class Built:
    """A compiled candidate."""

    tuning: Tuning
    launch: LaunchConfig
    cubin: bytes
    registers: int  # of a thread
    local: int  # bytes of local memory that a thread stores and loads, or of its stack frame
    shared: int  # bytes of a block
    warps: int  # that a multiprocessor holds

    @property
    def code(self) -> bytes:
        """The machine code: equal for choices that change nothing."""
        return section(self.cubin, ".text.run")


def neighbours(kernel: Kernel, target: CudaTarget, center: Tuning) -> Iterator[Tuning]:
    """Tunings that differ from one in a single choice, as far as the kernel has that choice."""
    for name, values in _values(kernel, target, center).items():
        for value in values:
            if value != getattr(center, name):
                yield replace(center, **{name: value})


def _values(kernel: Kernel, target: CudaTarget, center: Tuning) -> dict[str, list[object]]:
    if is_sum(kernel):
        return {"threads": [64, 128, 256], "unroll": [1, 2, 4, 8]}
    found: dict[str, list[object]] = {
        "blocks": [1, 2, 3, 4, 5, 6, 8],
        "reload": [0, 100, 200, 400],
    }
    if kernel.loop is not Loop.PAIRS:  # there it has one thread for every channel
        at_most = -(-target.n_channels // 32) * 32
        found["threads"] = [n for n in (32, 64, 128) if n <= at_most]
    outputs = {o.name: o for o in kernel.outputs}
    if kernel.loop is Loop.RECEIVERS:
        n_sums = len(kernel.program.outputs)
        found["sums"] = [1000, *sorted({-(-n_sums // n) for n in (2, 3)})]
    else:
        found["split"] = [(), *_splits(list(outputs))]
    if kernel.loop is not Loop.ROWS:
        found["edges"] = [8, 16, 32, 64]
        if kernel.loop is not Loop.PAIRS:
            found["unroll"] = [0, 1, 2, 4]
        found |= {"wide": [False, True], "staged": [False, True]}
        if any(o.role in (Role.EDGE, Role.PAIR) for o in (*kernel.inputs, *kernel.outputs)):
            found["stream"] = [False, True]
    return found


def _splits(names: list[str]) -> list[tuple[str, ...]]:
    """Every output apart, and each alone beside the rest together."""
    if len(names) < 2:
        return []
    one_apart = [(name, " ".join(n for n in names if n != name)) for name in names]
    apart = [tuple(names)] if len(names) > 2 else []
    return [*apart, *(one_apart if len(names) > 2 else one_apart[:1])]


def build(kernel: Kernel, target: CudaTarget, tuning: Tuning, architecture: str) -> Built:
    """Emit and compile one candidate."""
    source = emit_cuda(kernel, target, tuning)
    cubin, log = cuda_compiler.compile_cubin(source, architecture)
    launch = LaunchConfig.of(source)
    registers = _number(r"Used (\d+) registers", log)
    stored = _number(r"(\d+) bytes spill stores", log) + _number(r"(\d+) bytes spill loads", log)
    shared = _number(r"(\d+) bytes smem", log)
    return Built(
        tuning,
        launch,
        cubin,
        registers,
        max(stored, _number(r"(\d+) bytes stack frame", log)),
        shared,
        resident_warps(registers, launch.threads, shared, architecture),
    )


def resident_warps(registers: int, threads: int, shared: int, architecture: str) -> int:
    """Warps of a kernel that a multiprocessor holds at a time; 0 if its limits are not known."""
    limits = LIMITS.get(architecture)
    if limits is None or registers == 0:
        return 0
    per_block = threads // 32
    of_warp = -(-registers * 32 // limits.unit) * limits.unit
    n_blocks = min(
        limits.registers // of_warp // per_block,
        limits.warps // per_block,
        limits.shared // (shared + 1024),
        limits.blocks,
    )
    return n_blocks * per_block


def _number(pattern: str, log: str) -> int:
    """The number in what ptxas says; 0 if it says nothing."""
    found = re.findall(pattern, log)
    return int(found[0]) if found else 0


def section(elf: bytes, name: str) -> bytes:
    """The contents of a section of a 64-bit ELF file; empty if there is none."""
    start, size, count, names = struct.unpack_from("<Q10xHHH", elf, 0x28)
    headers = [struct.unpack_from("<IIQQQQ", elf, start + size * number) for number in range(count)]
    texts = headers[names][4]
    for header in headers:
        at = texts + header[0]
        if elf[at : elf.index(b"\0", at)] == name.encode():
            return elf[header[4] : header[4] + header[5]]
    return b""


def why_dropped(candidate: Built, others: list[Built], default: Built) -> str | None:
    """Why a candidate need not be timed, or None.

    It has the code of another, or uses far more local memory than the best of all, or is like
    another but for its launch bounds and has no more warps to show for its spills.
    """
    if candidate == default:
        return None
    for other in others:
        is_earlier = others.index(other) < others.index(candidate)
        if candidate.code and is_earlier and _runs_alike(candidate, other):
            return f"the same code as with {differences(other.tuning, default.tuning)}"
    least = min(other.local for other in others)
    if candidate.local > 2 * least + 256:
        return f"{candidate.local} bytes of local memory, the best has {least}"
    for other in others:
        like = replace(candidate.tuning, blocks=other.tuning.blocks) == other.tuning
        if like and candidate.local > other.local and candidate.warps <= other.warps:
            return (
                f"spills more than with {differences(other.tuning, default.tuning)}, no more warps"
            )
    return None


def is_promising(candidate: Built, default: Built) -> bool:
    """Whether more warps hide more latency, at no price in local memory."""
    return candidate.warps > default.warps and candidate.local <= default.local


def _runs_alike(a: Built, b: Built) -> bool:
    return a.code == b.code and a.launch == b.launch


def differences(tuning: Tuning, default: Tuning) -> str:
    """The choices that differ from the default's."""
    changed = {k: v for k, v in vars(tuning).items() if v != getattr(default, k)}
    return ", ".join(f"{k} {v}" for k, v in changed.items()) or "the default"


def default_of(kernel: Kernel, target: CudaTarget) -> Tuning:
    """What is taken without a table."""
    return tuning_of(kernel, target.n_bytes)
