"""Straight-line programs: a hash-consed graph with one kind of node, the sum of products.

    node = sum_t c_t * a_t   or   sum_t +-a_t * b_t

with other nodes or inputs as a and b. One term is one instruction (a fused multiply-add, a
multiplication or an addition), except that a sum may start from a term +-a for free; ``cost``
counts so. An input is one segment of an operand, a vector over channels; inputs of the operands
named in ``ExpressionGraph.uniform`` are scalars shared by all channels, and so are nodes made of
them alone.

Equal nodes exist once. Nodes are appended only, so their numbers are a topological order.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
ROUNDING = 1e-14  # coefficients this close to 0, 1 or -1 are meant to be so


class Segment(NamedTuple):
    """One row of an operand."""

    operand: str
    number: int


class Term(NamedTuple):
    """``coefficient * a``, or ``coefficient * a * b`` with a coefficient of one or minus one."""

    coefficient: float
    a: int
    b: int = -1

    @property
    def is_product(self) -> bool:
        """Two factors."""
        return self.b >= 0

    @property
    def factors(self) -> tuple[int, ...]:
        """The nodes that the term reads."""
        return (self.a, self.b) if self.is_product else (self.a,)


Node = Segment | tuple[Term, ...]


@dataclass
class ExpressionGraph:
    """All nodes; ``input`` and ``sum`` return the number of a node, equal nodes exist once."""

    uniform: frozenset[str] = frozenset()
    nodes: list[Node] = field(default_factory=list)
    is_uniform: list[bool] = field(default_factory=list)
    _known: dict[Node, int] = field(default_factory=dict)

    def input(self, operand: str, index: int) -> int:
        """One segment of an operand."""
        return self._add(Segment(operand, index))

    def sum(self, terms: Iterable[Term]) -> int | None:
        """The sum of terms, simplified; None is zero."""
        collected = self._collect(terms)
        if not collected:
            return None
        if len(collected) == 1 and not collected[0].is_product and collected[0].coefficient == 1.0:
            return collected[0].a
        return self._add(collected)

    def product(self, a: int, b: int) -> int:
        """The node a * b."""
        node = self.sum([Term(1.0, a, b)])
        assert node is not None
        return node

    def _collect(self, terms: Iterable[Term]) -> tuple[Term, ...]:
        """Like terms added up, coefficients of products moved into a factor, sorted."""
        total: dict[tuple[int, int], float] = {}
        for term in terms:
            coefficient, a, b = self._through_scaling(term)
            if 0 <= b < a:
                a, b = b, a
            total[a, b] = total.get((a, b), 0.0) + coefficient
        result = []
        for (a, b), coefficient in total.items():
            if abs(coefficient) < ROUNDING:
                continue
            if abs(abs(coefficient) - 1.0) < ROUNDING:
                coefficient = float(np.sign(coefficient))
            if b >= 0 and abs(coefficient) != 1.0:
                if self._scales_better(b) > self._scales_better(a):
                    a, b = b, a
                scaled = self.sum([Term(abs(coefficient), a)])
                assert scaled is not None
                a, b = sorted((scaled, b))
                coefficient = float(np.sign(coefficient))
            result.append(Term(coefficient, a, b))
        return tuple(sorted(result, key=lambda term: (term.a, term.b)))

    def _scales_better(self, number: int) -> int:
        """Rank of a node as the one to scale: once for all channels, or for many products."""
        return 2 * self.is_uniform[number] + isinstance(self.nodes[number], Segment)

    def _through_scaling(self, term: Term) -> Term:
        """The term, with factors that are mere multiples of others replaced by those."""
        coefficient = term.coefficient
        factors = []
        for factor in term.factors:
            node = self.nodes[factor]
            if not isinstance(node, Segment) and len(node) == 1 and not node[0].is_product:
                # in a product a scaled factor stays: others may read it too
                if term.is_product and abs(node[0].coefficient) != 1.0:
                    factors.append(factor)
                    continue
                coefficient *= node[0].coefficient
                factor = node[0].a
            factors.append(factor)
        return Term(coefficient, *factors)

    def _add(self, node: Node) -> int:
        if node not in self._known:
            self._known[node] = len(self.nodes)
            self.nodes.append(node)
            if isinstance(node, Segment):
                self.is_uniform.append(node.operand in self.uniform)
            else:
                self.is_uniform.append(all(self.is_uniform[i] for t in node for i in t.factors))
        return self._known[node]


@dataclass(frozen=True)
class Program:
    """Nodes of a graph that are results, and through them all that is needed for these."""

    graph: ExpressionGraph
    outputs: Mapping[Segment, int]

    def live(self) -> list[int]:
        """Nodes that some output needs, each after those that it reads."""
        needed: set[int] = set()
        waiting = list(self.outputs.values())
        while waiting:
            number = waiting.pop()
            if number not in needed:
                needed.add(number)
                node = self.graph.nodes[number]
                if not isinstance(node, Segment):
                    waiting.extend(i for term in node for i in term.factors)
        return sorted(needed)

    def sums(self) -> list[tuple[int, tuple[Term, ...]]]:
        """The live nodes that are no inputs."""
        nodes = [(i, self.graph.nodes[i]) for i in self.live()]
        return [(i, node) for i, node in nodes if not isinstance(node, Segment)]

    def inputs(self) -> list[Segment]:
        """The segments that are read, sorted."""
        nodes = [self.graph.nodes[i] for i in self.live()]
        return sorted(node for node in nodes if isinstance(node, Segment))

    def cost(self, *, uniform: bool = False) -> int:
        """Instructions per channel, or those per edge that all channels share."""
        is_uniform = self.graph.is_uniform
        return sum(_cost(node) for i, node in self.sums() if is_uniform[i] == uniform)

    def restricted(self, wanted: Callable[[Segment], bool]) -> "Program":
        """The program of some of the outputs."""
        return Program(self.graph, {s: i for s, i in self.outputs.items() if wanted(s)})

    def outputs_by_factor(self) -> list[Segment]:
        """The outputs, those that share their last intermediate next to each other."""

        def key(segment: Segment) -> tuple[int, Segment]:
            node = self.graph.nodes[self.outputs[segment]]
            if isinstance(node, Segment):
                return 0, segment
            factors = [i for term in node for i in term.factors]
            return max([i for i in factors if not self.graph.is_uniform[i]], default=0), segment

        return sorted(self.outputs, key=key)

    def simplified(self, *, scale_products: bool = False) -> "Program":
        """An equal program in a graph of its own, with sums that one other sum reads merged in.

        ``scale_products`` also merges c * (a * b), as (c * a) * b where that is cheaper: c * a may
        have more readers. It saves instructions, but c * a stays alive between its readers; the
        contraction is faster without (by 10 to 20 %, measured), the convolution has few of them.
        """
        choices = (True, False) if scale_products else (False,)
        return min((self._merged(choice) for choice in choices), key=Program.cost)

    def _merged(self, scale_products: bool) -> "Program":
        uses = Counter(i for _, node in self.sums() for t in node for i in t.factors)
        uses.update(self.outputs.values())
        graph = ExpressionGraph(self.graph.uniform)

        def can_merge(term: Term, inner: list[Term]) -> bool:
            if abs(term.coefficient) == 1.0 or not any(t.is_product for t in inner):
                return True
            return scale_products and len(inner) == 1

        number_in_graph: dict[int, int | None] = {}
        merged: dict[int, list[Term]] = {}
        for number in self.live():
            node = self.graph.nodes[number]
            if isinstance(node, Segment):
                number_in_graph[number] = graph.input(*node)
                continue
            terms: list[Term] = []
            for term in node:
                inner = merged.get(term.a) if not term.is_product else None
                shared = self.graph.is_uniform[term.a] != self.graph.is_uniform[number]
                if inner and not shared and uses[term.a] == 1 and can_merge(term, inner):
                    scale = term.coefficient
                    terms.extend(Term(scale * c, a, b) for c, a, b in inner)
                    continue
                factors = [number_in_graph[i] for i in term.factors]
                if None not in factors:
                    terms.append(Term(term.coefficient, *[i for i in factors if i is not None]))
            merged[number] = terms
            number_in_graph[number] = graph.sum(terms)
        outputs = {s: number_in_graph[i] for s, i in self.outputs.items()}
        return Program(graph, {s: i for s, i in outputs.items() if i is not None})

    def evaluate(self, inputs: Mapping[Segment, Float]) -> dict[Segment, Float]:
        """Values of the outputs in float64."""
        values: dict[int, Float] = {}
        for number in self.live():
            node = self.graph.nodes[number]
            if isinstance(node, Segment):
                values[number] = np.asarray(inputs[node], dtype=np.float64)
                continue
            total: Float = np.zeros(())
            for c, a, b in node:
                total = total + (c * values[a] * values[b] if b >= 0 else c * values[a])
            values[number] = total
        return {segment: values[number] for segment, number in self.outputs.items()}


def _cost(node: tuple[Term, ...]) -> int:
    free_start = len(node) > 1 and any(
        not term.is_product and abs(term.coefficient) == 1.0 for term in node
    )
    return len(node) - int(free_start)
