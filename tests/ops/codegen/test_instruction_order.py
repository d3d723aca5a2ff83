"""Orders of instructions: complete, each after what it reads, and with few values alive."""

import pytest
from hypothesis import given, settings

from mace_train.ops.codegen.instruction_order import ScheduledInstruction, live_values, schedule
from mace_train.ops.codegen.program import ExpressionGraph, Program, Segment, Term
from mace_train.ops.symmetric_contraction import kernels_of, register
from tests.ops.codegen.polynomials import programs
from tests.ops.tables import mace_coupling


def chains(n: int) -> Program:
    """n outputs, each of two products of inputs that are read once more: (a b) c + (a b) d."""
    graph = ExpressionGraph()
    outputs = {}
    for i in range(n):
        a, b, c, d = (graph.input("x", 4 * i + k) for k in range(4))
        product = graph.product(a, b)
        total = graph.sum([Term(1.0, product, c), Term(1.0, product, d)])
        outputs[Segment("out", i)] = total
    return Program(graph, outputs)


def test_independent_parts_come_one_after_the_other():
    program = chains(3)
    order = schedule(program, uniform=False)
    targets = [instruction.target for instruction in order]
    assert [(i.is_first, i.is_last) for i in order] == 3 * [
        (True, True),
        (True, False),
        (False, True),
    ]
    assert len(set(targets)) == 6
    assert live_values(order) == 2
    every_product_first = [i for i in order if i.is_first and i.is_last]
    every_product_first += [i for i in order if not (i.is_first and i.is_last)]
    assert live_values(every_product_first) == 4


def test_values_that_all_channels_share_are_apart():
    graph = ExpressionGraph(uniform=frozenset({"y"}))
    y = graph.product(graph.input("y", 0), graph.input("y", 1))
    out = graph.product(y, graph.input("x", 0))
    program = Program(graph, {Segment("out", 0): out})
    assert [i.target for i in schedule(program, uniform=True)] == [y]
    assert [i.target for i in schedule(program, uniform=False)] == [out]


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


@pytest.mark.parametrize(
    ("name", "most"), [("forward", 24), ("backward_x", 49), ("backward_xw", 73), ("double", 113)]
)
def test_schedule_keeps_few_values_alive(name, most):
    program = kernels_of(register(mace_coupling(3, 1, 3))).programs[name]
    scheduled = live_values(schedule(program, uniform=False))
    assert scheduled <= most
    in_order_of_nodes = [
        ScheduledInstruction(number, term, i == 0, i == len(node) - 1)
        for number, node in program.sums()
        for i, term in enumerate(node)
    ]
    assert 1.15 * scheduled < live_values(in_order_of_nodes)
