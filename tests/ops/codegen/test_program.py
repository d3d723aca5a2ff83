"""Programs compute their polynomials, and their instruction counts stay low."""

import numpy as np
import pytest

from mace_train.model.product_basis import paths, product_basis
from mace_train.ops.codegen.contraction_program import contraction_program
from mace_train.ops.codegen.convolution_program import convolution_program
from mace_train.ops.codegen.polynomial import Kind, Polynomial, expand
from mace_train.ops.codegen.program import ExpressionGraph, Program, Segment, Term
from mace_train.ops.convolution_kernels import ConvolutionKernels
from mace_train.ops.symmetric_contraction import kernels_of, register
from tests.model.dense import dense_tensor
from tests.ops.codegen.polynomials import random_inputs
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


def test_equal_nodes_exist_once_and_zeros_vanish():
    graph = ExpressionGraph()
    a, b = graph.input("x", 0), graph.input("x", 1)
    assert graph.product(a, b) == graph.product(b, a)
    assert graph.sum([Term(1.0, a), Term(-1.0, a)]) is None
    twice = graph.sum([Term(1.0, a), Term(1.0, a)])
    assert graph.sum([Term(0.5, twice)]) == a
    assert Program(graph, {Segment("out", 0): twice}).cost() == 1
