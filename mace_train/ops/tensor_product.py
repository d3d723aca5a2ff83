"""Tensor products in the modes of e3nn, for any group, as polynomials over channels.

Public, for tensor products of one's own (run by ``segmented_polynomial``); MACE does not use it.

    uvw   out[w, k] = sum_uv W[u, v, w] T          uvu   out[u, k] = sum_v W[u, v] T
    uvv   out[v, k] = sum_u W[u, v] T              uuw   out[w, k] = sum_u W[u, w] T
    uuu   out[u, k] = W[u] T                       uvuv  out[u, v, k] = W[u, v] T

with T = c sum_ij C[i, j, k] x1[u, i] x2[v, j] (v = u in the modes that begin with uu) and c as
e3nn's component and element normalisations define it. u is the channel of the polynomial; v and w
number segments, so multiplicities of the second input and of outputs without u should be small.
Operands:

    x1   per channel u, segments (block, i)
    x2   uniform,       segments (block, v, j)            in modes that begin with uv
    x2u  per channel u, segments (block, j)               in modes that begin with uu
    w    per channel u, segments (instruction, v, w)
    out  per channel u, segments (block, [v], k)          of modes that keep u
    sum  summed over u, segments (block, [v or w], k)     of the other modes
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import sqrt
from typing import NamedTuple

import numpy as np

from mace_train.ops.codegen.polynomial import Kind, Polynomial
from mace_train.ops.codegen.program import Float, Segment


@dataclass(frozen=True)
class Block:
    """``mul`` copies of a representation of some dimension; ``name`` is for the table function."""

    mul: int
    dim: int
    name: object

    def __str__(self) -> str:
        return f"{self.mul}x{self.name}"


class O3Name(NamedTuple):
    """An irreducible representation of O(3): degree l, and parity 1 or -1."""

    degree: int
    parity: int

    def __str__(self) -> str:
        """As e3nn has it, such as 1o."""
        return f"{self.degree}{'e' if self.parity == 1 else 'o'}"


@dataclass(frozen=True)
class Instruction:
    """One path between blocks, by their numbers."""

    i1: int
    i2: int
    i_out: int
    mode: str
    has_weight: bool
    path_weight: float = 1.0


Table = Callable[[Block, Block, Block], Float]
"""Coefficients [dim1, dim2, dim_out] of norm one that couple two blocks to a third."""

# mode -> (u is kept, segments that v and w number for (mul2, mul_out), terms summed into one)
KEEPS_U = {"uvw": False, "uvu": True, "uvv": False, "uuw": False, "uuu": True, "uvuv": True}


def o3_blocks(irreps: Sequence[tuple[int, int, int]]) -> list[Block]:
    """Blocks of irreps (mul, l, parity) of O(3), named (l, parity)."""
    return [Block(mul, 2 * l + 1, O3Name(l, parity)) for mul, l, parity in irreps]  # noqa: E741


@dataclass(repr=False)
class TensorProduct:
    """The polynomial and where its segments lie.

    Raises ValueError for an unknown mode, or multiplicities that do not fit it.

    >>> blocks = [o3_blocks([irrep]) for irrep in ((8, 1, -1), (1, 1, -1), (8, 1, 1))]
    >>> cross = [Instruction(0, 0, 0, "uvu", has_weight=True)]
    >>> TensorProduct(*blocks, cross, lambda *_: np.ones((3, 3, 3)))
    TensorProduct(8x1o x 1x1o -> 8x1e | 1 path | 1 weight per channel)
    """

    in1: Sequence[Block]
    in2: Sequence[Block]
    out: Sequence[Block]
    instructions: Sequence[Instruction]
    table: Table
    polynomial: Polynomial = field(init=False)
    n_segments: dict[str, int] = field(init=False)  # of every operand and output

    def __repr__(self) -> str:
        """Blocks, and numbers of paths and weights; ``str`` has the paths."""
        in1, in2, out = ("+".join(map(str, b)) for b in (self.in1, self.in2, self.out))
        paths = _count(len(self.instructions), "path")
        weights = _count(self.n_segments["w"], "weight")
        return f"TensorProduct({in1} x {in2} -> {out} | {paths} | {weights} per channel)"

    def __str__(self) -> str:
        paths = (
            f"  {ins.mode}: {self.in1[ins.i1]} x {self.in2[ins.i2]} -> {self.out[ins.i_out]}"
            f"{', weighted' * ins.has_weight}"
            for ins in self.instructions
        )
        return "\n".join([repr(self), *paths])

    def __post_init__(self) -> None:
        """State all terms."""
        kinds = {"x1": Kind.ROW, "x2": Kind.UNIFORM, "x2u": Kind.ROW, "w": Kind.ROW}
        self.polynomial = Polynomial(kinds)
        self.n_segments = dict.fromkeys((*kinds, "out", "sum"), 0)
        self.first_x1 = self._first_segments("x1", [block.dim for block in self.in1])
        modes = {ins.mode[:2] for ins in self.instructions}
        sizes = [block.mul * block.dim if "uv" in modes else 0 for block in self.in2]
        self.first_x2 = self._first_segments("x2", sizes)
        self.first_x2u = self._first_segments(
            "x2u", [b.dim if "uu" in modes else 0 for b in self.in2]
        )
        self.first_out: list[tuple[str, int]] = [("", 0)] * len(self.out)
        for i_out, block in enumerate(self.out):
            modes = {ins.mode for ins in self.instructions if ins.i_out == i_out}
            self._add_output(i_out, block, modes)
        self.first_w = []
        for ins in self.instructions:
            self._check(ins)
            self.first_w.append(self.n_segments["w"])
            self.n_segments["w"] += self._n_weights(ins)
            self._state(ins, self.first_w[-1])

    def _first_segments(self, operand: str, sizes: Sequence[int]) -> list[int]:
        self.n_segments[operand] = sum(sizes)
        return [sum(sizes[:i]) for i in range(len(sizes))]

    def _add_output(self, i_out: int, block: Block, modes: set[str]) -> None:
        unknown = modes - KEEPS_U.keys()
        if unknown:
            raise ValueError(f"mode {unknown.pop()!r} is none of {', '.join(KEEPS_U)}")
        kept = {KEEPS_U[mode] for mode in modes} or {True}
        if len(kept) > 1 or ("uvuv" in modes and len(modes) > 1):
            raise ValueError(f"output {i_out} cannot take {', '.join(sorted(modes))} together")
        n_copies = block.mul
        if kept == {True}:
            n_v = {self.in2[i.i2].mul for i in self.instructions if i.i_out == i_out}
            n_copies = n_v.pop() if modes == {"uvuv"} else 1
        operand = "out" if kept == {True} else "sum"
        self.first_out[i_out] = (operand, self.n_segments[operand])
        self.n_segments[operand] += n_copies * block.dim

    def _check(self, ins: Instruction) -> None:
        u, v, w = self.in1[ins.i1].mul, self.in2[ins.i2].mul, self.out[ins.i_out].mul
        expected = {"uvu": u, "uvv": v, "uuu": u, "uvuv": u * v}.get(ins.mode, w)
        if w != expected or (ins.mode.startswith("uu") and u != v):
            raise ValueError(f"{ins}: multiplicities {u}, {v} and {w} do not fit the mode")
        if not ins.has_weight and ins.mode in ("uvw", "uuw"):
            raise ValueError(f"{ins}: the mode needs a weight")

    def _n_weights(self, ins: Instruction) -> int:
        n_v = 1 if ins.mode.startswith("uu") else self.in2[ins.i2].mul
        n_w = self.out[ins.i_out].mul if ins.mode.endswith("w") else 1
        return n_v * n_w if ins.has_weight else 0

    def _coefficient(self, ins: Instruction) -> float:
        """e3nn's: unit variance of all inputs and weights gives unit variance of outputs."""
        into = [other for other in self.instructions if other.i_out == ins.i_out]
        n_terms = sum(self._n_summed(other) for other in into)
        return sqrt(ins.path_weight * self.out[ins.i_out].dim / n_terms)

    def _n_summed(self, ins: Instruction) -> int:
        u, v = self.in1[ins.i1].mul, self.in2[ins.i2].mul
        return {"uvw": u * v, "uvu": v, "uvv": u, "uuw": u}.get(ins.mode, 1)

    def _state(self, ins: Instruction, first_w: int) -> None:
        """Add the terms of one instruction."""
        in1, in2, out = self.in1[ins.i1], self.in2[ins.i2], self.out[ins.i_out]
        table = self._coefficient(ins) * np.asarray(self.table(in1, in2, out))
        operand, first_out = self.first_out[ins.i_out]
        uniform = not ins.mode.startswith("uu")
        n_w = out.mul if ins.mode.endswith("w") else 1
        for v in range(in2.mul if uniform else 1):
            for w in range(n_w):
                copy = {"uvw": w, "uuw": w, "uvv": v, "uvuv": v}.get(ins.mode, 0)
                weight = [Segment("w", first_w + v * n_w + w)] if ins.has_weight else []
                for i, j, k in np.argwhere(table != 0.0).tolist():
                    x2 = Segment("x2", self.first_x2[ins.i2] + v * in2.dim + j)
                    if not uniform:
                        x2 = Segment("x2u", self.first_x2u[ins.i2] + j)
                    self.polynomial.add(
                        Segment(operand, first_out + copy * out.dim + k),
                        float(table[i, j, k]),
                        Segment("x1", self.first_x1[ins.i1] + i),
                        x2,
                        *weight,
                    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
