"""Programs compute their polynomials, derivatives are right, and instruction counts stay low."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mace_train.model.product_basis import paths, product_basis
from mace_train.ops.codegen.contraction_program import contraction_program
from mace_train.ops.codegen.convolution_program import convolution_program
from mace_train.ops.codegen.derivative import gradient
from mace_train.ops.codegen.instruction_order import ScheduledInstruction, live_values, schedule
from mace_train.ops.codegen.polynomial import Kind, Polynomial, expand
from mace_train.ops.codegen.program import ExpressionGraph, Program, Segment, Term
from mace_train.ops.convolution_kernels import ConvolutionKernels
from mace_train.ops.symmetric_contraction import kernels_of, register
from tests.model.test_contraction import dense_tensor
from tests.ops.tables import mace_coupling, mace_product

CONTRACTION = {"x": Kind.ROW, "w": Kind.INDEXED}
CONVOLUTION = {"x": Kind.ROW, "y": Kind.UNIFORM, "r": Kind.ROW}

# (l_max, l_out, correlation): forward, gradient of x, of x and w, and of those with cotangent of gx
CONTRACTION_COSTS = {
    (3, 0, 3): (184, 426, 462, 972),
    (3, 1, 3): (308, 676, 760, 1601),
    (3, 2, 3): (554, 1165, 1315, 2758),
    (3, 0, 2): (33, 65, 81, 161),
    (3, 1, 2): (94, 184, 209, 438),
    (3, 2, 2): (244, 481, 530, 1116),
    (2, 1, 3): (113, 249, 282, 591),
}
# l of the senders: forward, gradients of x, y, r, then second derivatives: of g, of all the others
CONVOLUTION_COSTS = {0: (20, 44, 44, 72), 1: (98, 272, 218, 414), 2: (244, 688, 545, 1046)}


def random_inputs(segments, shape=(3,), seed=0):
    random = np.random.RandomState(seed)
    return {segment: random.standard_normal(shape) for segment in segments}


def same(found, expected, tolerance=1e-12):
    assert found.keys() >= {s for s, v in expected.items() if np.abs(v).max() > 0}
    for segment, value in found.items():
        scale = 1 + np.abs(expected[segment]).max()
        assert np.abs(value - expected[segment]).max() < tolerance * scale, segment


@pytest.mark.parametrize("sizes", CONTRACTION_COSTS)
def test_contraction_costs(sizes):
    programs = kernels_of(register(mace_coupling(*sizes))).programs
    names = ("forward", "backward_x", "backward_xw", "double")
    assert tuple(programs[name].cost() for name in names) == CONTRACTION_COSTS[sizes]


@pytest.mark.parametrize("l_nodes", CONVOLUTION_COSTS)
def test_convolution_costs(l_nodes):
    kernels = ConvolutionKernels(mace_product(l_nodes, 3), "costs")
    programs = (
        kernels.program,
        kernels.backward_program("xyr"),
        kernels.double_program("xyr", "g"),
        kernels.double_program("xyr", "xyr"),
    )
    assert tuple(program.cost() for program in programs) == CONVOLUTION_COSTS[l_nodes]


@pytest.mark.parametrize("sizes", [(1, 1, 3), (2, 1, 3), (3, 0, 2), (1, 0, 4)])
def test_contraction_is_the_dense_polynomial(sizes):
    """Expanded term by term, with random weights of the kept paths, it is U x ... x."""
    l_max, _, correlation = sizes
    made = contraction_program(mace_coupling(*sizes))
    basis = product_basis(*sizes)
    random = np.random.RandomState(1)
    x = random.standard_normal((l_max + 1) ** 2)
    inputs = {Segment("x", i): value for i, value in enumerate(x)}
    expected: list[float] = []
    weights: list[float] = []
    for output in basis.outputs:
        total = np.zeros(2 * output.degree + 1)
        for order in range(correlation, 0, -1):
            every = paths(l_max, order, output.degree)
            mine = random.standard_normal(len(every))
            for weight, path in zip(mine, every, strict=True):
                tensor = dense_tensor(path, l_max)
                for _ in range(order):
                    tensor = tensor @ x
                total += weight * tensor
            weights.extend(output.projections[order] @ mine if order > 1 else mine)
        expected.extend(total)
    scaled = np.array(weights) * made.weight_scale
    inputs |= {Segment("w", i): value for i, value in enumerate(scaled)}
    dense = {Segment("out", i): np.array(value) for i, value in enumerate(expected)}
    same(made.program.evaluate(inputs), dense)
    same(expand(made.program, CONTRACTION).evaluate(inputs), dense)


@pytest.mark.parametrize("l_nodes", [0, 1, 2])
def test_convolution_is_its_polynomial(l_nodes):
    product = mace_product(l_nodes, 2)
    polynomial = Polynomial(dict(CONVOLUTION))
    for path in product.paths:
        for m3, m1, m2 in np.argwhere(path.table != 0):
            polynomial.add(
                Segment(f"out{path.block}", path.rows[m3]),
                float(path.table[m3, m1, m2]),
                Segment("x", path.x_first + int(m1)),
                Segment("y", path.y_first + int(m2)),
                Segment("r", path.weight),
            )
    program = convolution_program(product)
    inputs = random_inputs(program.inputs())
    same(program.evaluate(inputs), polynomial.evaluate(inputs))
    same(polynomial.program().evaluate(inputs), polynomial.evaluate(inputs))
    expanded = expand(program, CONVOLUTION)
    assert expanded.n_terms == polynomial.n_terms
    for output, terms in polynomial.terms.items():
        assert expanded.terms[output] == pytest.approx(terms, abs=1e-14)
    assert program.cost() <= polynomial.program().cost()


def test_polynomial_prints_itself():
    polynomial = Polynomial({"x": Kind.ROW, "c": Kind.CONSTANT})
    polynomial.add(Segment("out", 0), 0.5, Segment("x", 1), Segment("x", 0))
    polynomial.add(Segment("out", 0), -2.0, Segment("c", 3))
    assert str(polynomial).splitlines() == [
        "x: per row, c: constant",
        "out[0] = -2 c[3] +0.5 x[0] x[1]",
    ]


@st.composite
def programs(draw):
    """Random polynomials of a few inputs, as programs."""
    polynomial = Polynomial({"x": Kind.ROW, "y": Kind.UNIFORM})
    segments = [Segment("x", i) for i in range(3)] + [Segment("y", i) for i in range(2)]
    for output in range(2):
        for _ in range(draw(st.integers(1, 4))):
            factors = draw(st.lists(st.sampled_from(segments), min_size=1, max_size=4))
            coefficient = draw(st.sampled_from([1.0, -1.0, 2.0, -0.3]))
            polynomial.add(Segment("out", output), coefficient, *factors)
    return polynomial


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


@given(polynomial=programs())
@settings(max_examples=20, deadline=None)
def test_schedules_are_complete_and_ordered(polynomial):
    program = polynomial.program()
    for uniform in (False, True):
        order = schedule(program, uniform=uniform)
        own = {n for n, _ in program.sums() if program.graph.is_uniform[n] == uniform}
        assert len(order) == sum(len(node) for n, node in program.sums() if n in own)
        done: set[int] = set()
        for instruction in order:
            assert all(i in done for i in instruction.term.factors if i in own)
            if instruction.is_last:
                done.add(instruction.target)
        assert done == own


@pytest.mark.parametrize("name", ["forward", "backward_x", "backward_xw", "double"])
def test_schedule_keeps_few_values_alive(name):
    program = kernels_of(register(mace_coupling(3, 1, 3))).programs[name]
    scheduled = live_values(program, schedule(program, uniform=False))
    in_order_of_nodes = [
        ScheduledInstruction(number, term, i == 0, i == len(node) - 1)
        for number, node in program.sums()
        for i, term in enumerate(node)
    ]
    assert 1.15 * scheduled < live_values(program, in_order_of_nodes)


def test_equal_nodes_exist_once_and_zeros_vanish():
    graph = ExpressionGraph()
    a, b = graph.input("x", 0), graph.input("x", 1)
    assert graph.product(a, b) == graph.product(b, a)
    assert graph.sum([Term(1.0, a), Term(-1.0, a)]) is None
    twice = graph.sum([Term(1.0, a), Term(1.0, a)])
    assert graph.sum([Term(0.5, twice)]) == a
    assert Program(graph, {Segment("out", 0): twice}).cost() == 1
