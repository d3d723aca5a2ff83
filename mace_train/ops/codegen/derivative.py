"""Reverse differentiation of programs.

For outputs y_o(inputs) with cotangents g_o (new inputs), the result computes

    dx_i = sum_o g_o dy_o/dx_i

for the operands asked for: adjoints flow from the outputs to the inputs, and the adjoint of a node
is again a sum of products, so that derivatives of any order are programs of the same kind.
The adjoint of a uniform input is a value per channel whose sum over channels is the gradient.
"""

from collections import defaultdict
from collections.abc import Mapping

from mace_train.ops.codegen.program import Program, Segment, Term


def gradient(program: Program, cotangents: Mapping[str, str], wanted: Mapping[str, str]) -> Program:
    """The program of gradients.

    ``cotangents`` names the new input for each output operand (others count as zero), ``wanted``
    the new output for each input operand. Segments that no output depends on have no gradient.
    The result shares the program's graph and is not simplified yet.
    """
    graph = program.graph
    adjoints: dict[int, list[Term]] = defaultdict(list)
    for segment, number in program.outputs.items():
        if segment.operand in cotangents:
            cotangent = graph.input(cotangents[segment.operand], segment.number)
            adjoints[number].append(Term(1.0, cotangent))
    outputs: dict[Segment, int] = {}
    depends = _dependents(program, frozenset(wanted))
    for number in reversed(program.live()):
        adjoint = graph.sum(adjoints.pop(number, []))
        if adjoint is None or number not in depends:
            continue
        node = graph.nodes[number]
        if isinstance(node, Segment):
            outputs[Segment(wanted[node.operand], node.number)] = adjoint
            continue
        for c, a, b in node:
            if b < 0:
                adjoints[a].append(Term(c, adjoint))
            else:
                adjoints[a].append(Term(c, adjoint, b))
                adjoints[b].append(Term(c, adjoint, a))
    return Program(graph, outputs)


def _dependents(program: Program, operands: frozenset[str]) -> set[int]:
    """Live nodes that depend on some of the operands."""
    found: set[int] = set()
    for number in program.live():
        node = program.graph.nodes[number]
        if isinstance(node, Segment):
            if node.operand in operands:
                found.add(number)
        elif any(i in found for term in node for i in term.factors):
            found.add(number)
    return found
