"""Rows, edges, chunks and indices beyond 2^31: every address of every kernel is 64 bits wide.

A kernel runs twice on the same few rows: numbered from zero, and numbered from FAR with pointers
that lie FAR rows before the tensors, so that no memory is needed. Both must write the same. A
truncated address would end the process, so this happens in a child.
"""

import ctypes
import multiprocessing

import pytest
import torch

from mace_train.ops import convolution, segmented_polynomial, symmetric_contraction
from mace_train.ops.codegen.kernel_spec import Loop, Role
from mace_train.ops.codegen.polynomial import Kind, Polynomial
from mace_train.ops.codegen.program import Segment
from mace_train.ops.convolution import EdgeIndex
from mace_train.ops.cpp.compiler import find_compiler
from mace_train.ops.segmented_kernels import Operation
from mace_train.ops.symmetric_contraction import Chunks
from tests.ops.tables import mace_coupling, mace_product

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="needs a C++ compiler")
FAR = 2**31 + 7
N_ATOMS, K = 5, 16
SENDERS, RECEIVERS = torch.tensor([1, 2, 0, 4, 3, 0, 1]), torch.tensor([0, 0, 1, 2, 2, 2, 4])
PAIRS, FIRST_OF_PAIR = torch.tensor([0, 1, 0, 2, 3, 1, 4]), torch.tensor([0, 1, 3, 4, 6])


def pointers(tensors, rows_before):
    addresses = [t.data_ptr() - rows_before * t.stride(0) * t.element_size() for t in tensors]
    return (ctypes.c_void_p * len(tensors))(*addresses)


def same_when_far(compiled, n_items, index):
    """Whether both runs agree; tensors are random, with as many rows as their role needs."""
    kernel = compiled.build()
    per_edge = {Role.EDGE, Role.UNIFORM} if kernel.loop is not Loop.ROWS else {Role.ROW}
    n_edges = len(SENDERS)
    torch.manual_seed(0)

    def tensor(operand):
        n_rows = n_edges if operand.role in per_edge else N_ATOMS
        n_rows *= 2 if operand.role is Role.PAIR else 1
        channels = [] if operand.role is Role.UNIFORM else [K]
        return torch.randn(n_rows, operand.n_segments, *channels, dtype=torch.float64)

    inputs = [tensor(operand) for operand in kernel.inputs]
    outputs = [tensor(operand) for operand in kernel.outputs]
    function = compiled.cpp.prepare(torch.float64, K)
    found = []
    for start in (0, FAR):
        numbers = [t + start for t in index]
        written = [t.clone() for t in outputs]
        indices, *tensors = (pointers(t, start) for t in (numbers, inputs, written))
        n_pairs = torch.tensor([len(FIRST_OF_PAIR)])  # a distance, not a row
        indices = (ctypes.c_void_p * 5)(*indices, *[n_pairs.data_ptr()] * (5 - len(index)))
        for lo, hi in ((0, n_items // 2), (n_items // 2, n_items)):
            function(start + lo, start + hi, indices, *tensors)
        assert not all(map(torch.equal, written, outputs))
        found.append(written)
    return all(map(torch.equal, *found))


def convolution_kernels():
    kernels = convolution.kernels_of(convolution.register(mace_product(1, 1)))
    edges = EdgeIndex.of(SENDERS, RECEIVERS, N_ATOMS, PAIRS, FIRST_OF_PAIR)
    index = [edges.first, edges.senders, edges.pairs, edges.first_of_pair]
    yield kernels.forward, N_ATOMS, index
    yield kernels.backward("xyr"), N_ATOMS, index
    yield kernels.double("xyr", "xyr"), N_ATOMS, index
    yield kernels.double_g("xyr"), N_ATOMS, index
    by_sender = [edges.by_sender, edges.first_by_sender, edges.first_by_sender]
    yield kernels.sum_senders, N_ATOMS, by_sender


def contraction_kernels():
    kernels = symmetric_contraction.kernels_of(
        symmetric_contraction.register(mace_coupling(1, 1, 3))
    )
    chunks = Chunks.of(torch.tensor([1, 0, 3, 1, 1, 3, 0]), 4)
    for kernel in kernels.of_rows:
        yield kernel, len(chunks.index), [chunks.order, chunks.first, chunks.index]


def polynomial_kernels():
    polynomial = Polynomial({"x": Kind.ROW, "w": Kind.INDEXED, "y": Kind.UNIFORM})
    for name, i in (("a", 0), ("s", 1)):
        factors = (Segment("x", i), Segment("w", 0), Segment("y", i))
        polynomial.add(Segment(name, 0), 1.5, *factors)
    sizes = {"x": 2, "w": 1, "y": 2, "a": 1, "s": 1}
    operation = Operation(polynomial, sizes, frozenset({"s"}))
    kernels = segmented_polynomial.kernels_of(segmented_polynomial.register(operation))
    rows = torch.arange(len(SENDERS) + 1)
    index = [rows, SENDERS, rows, rows]
    everything = ("x", "w", "y", "a", "s")
    yield kernels.forward, len(SENDERS), index
    yield kernels.backward(("x", "w", "y")), len(SENDERS), index
    yield kernels.double(("x", "w", "y"), everything), len(SENDERS), index


@pytest.mark.parametrize("kernels", [convolution_kernels, contraction_kernels, polynomial_kernels])
def test_offsets_beyond_two_to_the_31(kernels):
    def check():
        for kernel, n_items, index in kernels():
            assert same_when_far(kernel, n_items, index), kernel.recipe

    child = multiprocessing.get_context("fork").Process(target=check)
    child.start()
    child.join()
    assert child.exitcode == 0
