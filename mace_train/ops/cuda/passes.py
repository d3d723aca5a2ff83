"""How the outputs of a kernel are divided among CUDA blocks, and how many blocks should fit.

A thread has at most 255 registers of 32 bits. What does not fit is spilled to memory, so kernels
with many sums or intermediates are cut into passes, parts of the outputs that different blocks
compute (``blockIdx.y``), at the price of common parts computed twice. The choices here were made by
the registers and spills that ``scripts/kernel_budget.py`` prints; those made by measured times are
in the table of ``cuda.tuning``.
"""

from dataclasses import dataclass
from itertools import pairwise

from mace_train.ops.codegen.kernel_spec import Kernel, Loop, Role
from mace_train.ops.codegen.program import Program, Segment


@dataclass(frozen=True)
class Tuning:
    """Choices for one kernel: none of them changes what it computes, but for rounding."""

    blocks: int = 1  # that a multiprocessor should hold; limits the registers of a thread
    threads: int = 128  # of a block, at most; fewer where that leaves fewer lanes idle
    sums: int = 1000  # over edges of a receiver in one pass, at most
    reload: int = 0  # statements after which inputs are loaded again; 0 is never
    split: tuple[str, ...] = ()  # operands of the passes of the other loops, "x y" for two at once
    edges: int = 32  # whose shared coefficients a block holds at a time, at most; a power of two
    unroll: int = 0  # edges, or rows of a sum, per iteration of a thread; 0: the compiler decides
    wide: bool = False  # shared coefficients are read 16 bytes at a time, in the order of their use
    staged: bool = False  # a block reads the senders and pairs of all its edges first
    stream: bool = False  # what belongs to an edge or a pair goes past the caches


@dataclass(frozen=True)
class Pass:
    """A part of the program, with all output segments that it writes, zeros included."""

    program: Program
    owned: frozenset[Segment]


def is_sum(kernel: Kernel) -> bool:
    """Whether it adds up rows and does nothing else."""
    return kernel.loop is Loop.ROWS and not kernel.program.sums()


def tuning_of(kernel: Kernel, n_bytes: int) -> Tuning:
    """The choices for a kernel with numbers of so many bytes.

    Passes read the inputs again, so in float32, where memory is the bound, there are none.
    """
    if is_sum(kernel):
        return Tuning(unroll=4)
    cost = kernel.program.cost()
    if n_bytes == 4:
        return Tuning(reload=400 if cost > 2500 else 0)
    if kernel.loop is Loop.RECEIVERS:
        return Tuning(sums=40)
    if kernel.loop in (Loop.EDGES, Loop.PAIRS):
        return Tuning(reload=200 if cost > 600 else 0)
    reload = 200 if cost > 1100 else 0
    if cost > 2500:
        return Tuning(reload=reload, split=tuple(o.name for o in kernel.outputs))
    sums = " ".join(o.name for o in kernel.outputs if o.role is Role.CHUNK)
    rows = " ".join(o.name for o in kernel.outputs if o.role is Role.ROW)
    return Tuning(reload=reload, split=(rows, sums) if sums and cost > 1200 else ())


def passes_of(kernel: Kernel, tuning: Tuning) -> list[Pass]:
    """The parts of a kernel; together they own every segment of every output once."""
    every = {Segment(o.name, i) for o in kernel.outputs for i in range(o.n_segments)}
    if kernel.loop is Loop.RECEIVERS:
        parts = [set(part) for part in _parts(kernel.program, tuning.sums)]
    else:
        parts = [{s for s in every if s.operand in part.split()} for part in tuning.split]
    parts = [part for part in parts if part] or [set()]
    parts[0] |= every.difference(*parts)
    return [Pass(kernel.program.restricted(part.__contains__), frozenset(part)) for part in parts]


def _parts(program: Program, at_most: int) -> list[list[Segment]]:
    """Outputs in groups of equal size, those that share an intermediate next to each other."""
    outputs = program.outputs_by_factor()
    n_parts = -(-len(outputs) // at_most)
    bounds = [len(outputs) * i // max(n_parts, 1) for i in range(n_parts + 1)]
    return [outputs[lo:hi] for lo, hi in pairwise(bounds)]
