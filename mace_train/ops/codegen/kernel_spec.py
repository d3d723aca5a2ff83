"""A kernel: a program, what its operands are, and the loop it runs in.

Tensors are [n, n_segments, n_channels], channels contiguous; a uniform operand is [n, n_segments].
The loop (``Loop``) visits rows, or edges sorted by receiver; a role says which row of a tensor an
operand is at each step of the loop, or how results are summed:

    loop       inputs                                 outputs
    ROWS       ROW, INDEXED (by the chunk's index)    ROW, CHUNK (summed over the chunk)
    RECEIVERS  ROW (receiver), SENDER, PAIR, UNIFORM  ROW (summed over the receiver's edges)
    EDGES      ROW (receiver), SENDER, PAIR, UNIFORM  EDGE, UNIFORM (summed over channels), PAIR
    PAIRS      the same                               the same, PAIR summed over both edges

A row of PAIR belongs to a pair (an edge and its reverse, ``mace_train.data.graph``), or to an edge
without one. Loops over edges take as index: the first edge of every receiver, then one more; the
senders; the row of PAIR of every edge; the first edge of every such row. An output of PAIR is
summed over both edges and has twice as many rows as there are pairs: the second half is for what
comes from another range of receivers. A loop over PAIRS, on GPUs only, takes the edges in the order
of their pairs, where those of every pair begin, then one more, the senders and the receivers; its
outputs of PAIR have a row per pair.
"""

from dataclasses import dataclass
from enum import Enum

from mace_train.ops.codegen.program import ExpressionGraph, Program, Segment


class Loop(Enum):
    """What the loop visits."""

    ROWS = "rows"
    RECEIVERS = "receivers"
    EDGES = "edges"
    PAIRS = "pairs"


class Role(Enum):
    """Which row of its tensor an operand is."""

    ROW = "row"
    INDEXED = "indexed"
    CHUNK = "chunk"
    SENDER = "sender"
    EDGE = "edge"
    PAIR = "pair"
    UNIFORM = "uniform"


@dataclass(frozen=True)
class Operand:
    """A tensor that a kernel reads or writes."""

    name: str
    role: Role
    n_segments: int


@dataclass(frozen=True)
class Kernel:
    """All that a backend needs to generate code."""

    loop: Loop
    program: Program
    inputs: tuple[Operand, ...]
    outputs: tuple[Operand, ...]


def sum_kernel(n_segments: int) -> Kernel:
    """Sums of rows over chunks."""
    graph = ExpressionGraph()
    outputs = {Segment("sum", i): graph.input("x", i) for i in range(n_segments)}
    inputs = (Operand("x", Role.ROW, n_segments),)
    sums = (Operand("sum", Role.CHUNK, n_segments),)
    return Kernel(Loop.ROWS, Program(graph, outputs), inputs, sums)
