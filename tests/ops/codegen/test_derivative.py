"""Derivative programs: by hand, and against torch for three orders."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mace_train.ops.codegen.derivative import gradient
from mace_train.ops.codegen.polynomial import expand
from mace_train.ops.codegen.program import ExpressionGraph, Program, Segment, Term
from tests.ops.codegen.polynomials import programs, random_inputs


def small_program() -> Program:
    """out0 = 3 x0 y0 + x1, out1 = x1 x1; other = x0."""
    graph = ExpressionGraph()
    x0, x1, y0 = graph.input("x", 0), graph.input("x", 1), graph.input("y", 0)
    first = graph.sum([Term(3.0, graph.product(x0, y0)), Term(1.0, x1)])
    outputs = {Segment("out", 0): first, Segment("out", 1): graph.product(x1, x1)}
    return Program(graph, {**outputs, Segment("other", 0): x0})


VALUES = {("x", 0): 2.0, ("x", 1): 5.0, ("y", 0): 7.0, ("g", 0): 11.0, ("g", 1): 13.0}
INPUTS = {Segment(*name): np.array([value]) for name, value in VALUES.items()}


def test_gradients_by_hand():
    made = gradient(small_program(), {"out": "g"}, {"x": "dx", "y": "dy"})
    found = {segment: float(value[0]) for segment, value in made.evaluate(INPUTS).items()}
    assert found == {
        Segment("dx", 0): 3 * 7.0 * 11.0,
        Segment("dx", 1): 11.0 + 2 * 5.0 * 13.0,
        Segment("dy", 0): 3 * 2.0 * 11.0,
    }


def test_only_what_is_wanted_and_has_a_cotangent():
    made = gradient(small_program(), {"other": "h"}, {"x": "dx", "y": "dy"})
    assert list(made.outputs) == [Segment("dx", 0)]  # nothing else reaches ``other``
    assert made.inputs() == [Segment("h", 0)]
    only_y = gradient(small_program(), {"out": "g"}, {"y": "dy"})
    assert list(only_y.outputs) == [Segment("dy", 0)]
    assert Segment("g", 1) not in only_y.inputs()
    assert not gradient(small_program(), {}, {"x": "dx"}).outputs


def autograd_of(polynomial, values, cotangents):
    """Gradients of sum_s g_s out_s by torch, as a function of tensors."""
    total = 0.0
    for output, terms in polynomial.terms.items():
        for monomial, coefficient in terms.items():
            term = coefficient * cotangents[output]
            for factor in monomial:
                term = term * values[factor]
            total = total + term.sum()
    return total


@given(polynomial=programs(), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_derivatives_of_three_orders(polynomial, seed):
    """Each derivative program equals torch's derivative of the one before."""
    program = polynomial.program()
    segments = [Segment("x", i) for i in range(3)] + [Segment("y", i) for i in range(2)]
    inputs = {s: v[0] for s, v in random_inputs(segments, (1, 3), seed).items()}
    wanted = {"x": "dx", "y": "dy"}
    for order in range(3):
        derivative = gradient(program, {"out": f"g{order}", "dx": f"g{order}"}, wanted)
        derivative = derivative.simplified()
        operand = "out" if order == 0 else "dx"
        cotangents = {
            s: v[0]
            for s, v in random_inputs(
                [Segment(f"g{order}", i) for i in range(4)], (1, 3), seed + 7
            ).items()
        }
        tensors = {s: torch.tensor(v, requires_grad=True) for s, v in (inputs | cotangents).items()}
        expanded = expand(program.restricted(lambda s, o=operand: s.operand == o), {})
        by_output = {s: tensors[Segment(f"g{order}", s.number)] for s in expanded.terms}
        total = autograd_of(expanded, tensors, by_output)
        inputs |= cotangents
        found = derivative.evaluate(inputs)
        if torch.is_tensor(total):
            gradients = torch.autograd.grad(
                total, [tensors[s] for s in segments], allow_unused=True
            )
            for segment, slow in zip(segments, gradients, strict=True):
                name = Segment(wanted[segment.operand], segment.number)
                value = found.get(name, np.zeros(3))
                np.testing.assert_allclose(
                    value, np.zeros(3) if slow is None else slow.numpy(), atol=1e-9, rtol=1e-9
                )
        program = derivative
