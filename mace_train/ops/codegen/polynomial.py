"""Segmented polynomials: what an operation computes, term by term.

Public, to state couplings of one's own; MACE does not use it: its builders make programs, which the
tests compare with polynomials.

    out_s[k] = sum_t c_t x_(a_t)[k] x_(b_t)[k] ...        the same for every channel k

Operands are tensors whose segments are vectors over channels. This is the specification: it prints
itself, evaluates itself in float64 term by term (the oracle of the tests), takes any coefficients
(of another group, or a user's), expands the programs of the builders for comparison, and turns into
a program, without the factoring that only a builder knows.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from mace_train.ops.codegen.program import ROUNDING, ExpressionGraph, Float, Program, Segment, Term


class Kind(Enum):
    """How an operand varies; all but UNIFORM vary with the channel too."""

    ROW = "per row"  # an atom or an edge, or a row that an index picks
    INDEXED = "indexed"  # shared by all rows of one index, as weights of an element
    UNIFORM = "edge-uniform"  # per row, the same for all channels
    CONSTANT = "constant"  # the same for all rows


Monomial = tuple[Segment, ...]
"""Factors, sorted."""


@dataclass(repr=False)
class Polynomial:
    """Terms of every output segment: monomial -> coefficient.

    >>> polynomial = Polynomial({"x": Kind.ROW, "w": Kind.INDEXED})
    >>> polynomial.add(Segment("out", 0), 0.5, Segment("w", 0), Segment("x", 1), Segment("x", 1))
    >>> print(polynomial)
    x: per row, w: indexed
    out[0] = +0.5 w[0] x[1] x[1]
    >>> polynomial
    Polynomial(x: per row, w: indexed -> out | 1 term)
    """

    operands: dict[str, Kind]
    terms: dict[Segment, dict[Monomial, float]] = field(default_factory=dict)

    def add(self, output: Segment, coefficient: float, *factors: Segment) -> None:
        """Add coefficient * factors to an output."""
        assert all(factor.operand in self.operands for factor in factors)
        monomial = tuple(sorted(factors))
        of_output = self.terms.setdefault(output, {})
        of_output[monomial] = of_output.get(monomial, 0.0) + coefficient

    def __repr__(self) -> str:
        """Operands, outputs and the number of terms; ``str`` has the terms."""
        outputs = ", ".join(sorted({segment.operand for segment in self.terms}))
        terms = "term" if self.n_terms == 1 else "terms"
        return f"Polynomial({self._operands()} -> {outputs} | {self.n_terms} {terms})"

    def _operands(self) -> str:
        return ", ".join(f"{name}: {kind.value}" for name, kind in self.operands.items())

    def __str__(self) -> str:
        lines = [self._operands()]
        for output, terms in sorted(self.terms.items()):
            parts = [
                " ".join([f"{c:+.6g}", *(f"{s.operand}[{s.number}]" for s in monomial)])
                for monomial, c in sorted(terms.items())
            ]
            lines.append(f"{output.operand}[{output.number}] = {' '.join(parts) or '0'}")
        return "\n".join(lines)

    @property
    def n_terms(self) -> int:
        """Number of terms of all outputs."""
        return sum(len(terms) for terms in self.terms.values())

    def evaluate(self, inputs: Mapping[Segment, Float]) -> dict[Segment, Float]:
        """Values of the outputs in float64, term by term."""
        values = {}
        for output, terms in self.terms.items():
            total: Float = np.zeros(())
            for monomial, coefficient in terms.items():
                product: Float = np.asarray(coefficient, dtype=np.float64)
                for factor in monomial:
                    product = product * np.asarray(inputs[factor], dtype=np.float64)
                total = total + product
            values[output] = total
        return values

    def program(self, uniform_later: frozenset[str] = frozenset()) -> Program:
        """A program with products of common beginnings shared, and nothing cleverer.

        ``uniform_later`` names uniform operands that derivatives will bring in.
        """
        uniform = {name for name, kind in self.operands.items() if kind is Kind.UNIFORM}
        graph = ExpressionGraph(uniform_later | uniform)
        outputs = {}
        for output, terms in self.terms.items():
            parts = []
            for monomial, coefficient in terms.items():
                assert monomial, "a constant term is no channel-uniform product"
                number = graph.input(*monomial[0])
                for factor in monomial[1:-1]:
                    number = graph.product(number, graph.input(*factor))
                last = (graph.input(*monomial[-1]),) if len(monomial) > 1 else ()
                parts.append(Term(coefficient, number, *last))
            number_of_sum = graph.sum(parts)
            if number_of_sum is not None:
                outputs[output] = number_of_sum
        return Program(graph, outputs).simplified()


def expand(program: Program, operands: Mapping[str, Kind]) -> Polynomial:
    """The polynomial that a program computes, multiplied out."""
    expanded: dict[int, dict[Monomial, float]] = {}
    for number in program.live():
        node = program.graph.nodes[number]
        if isinstance(node, Segment):
            expanded[number] = {(node,): 1.0}
            continue
        total: dict[Monomial, float] = {}
        for c, a, b in node:
            right = expanded[b] if b >= 0 else {(): 1.0}
            for left_monomial, left in expanded[a].items():
                for right_monomial, value in right.items():
                    monomial = tuple(sorted(left_monomial + right_monomial))
                    total[monomial] = total.get(monomial, 0.0) + c * left * value
        expanded[number] = total
    terms = {
        segment: {m: c for m, c in expanded[number].items() if abs(c) > ROUNDING}
        for segment, number in program.outputs.items()
    }
    return Polynomial(dict(operands), terms)
