"""Any polynomial as an operator: every kind of operand, against the term-by-term evaluation."""

import numpy as np
import pytest
import torch

from mace_train.ops.codegen.polynomial import Kind, Polynomial
from mace_train.ops.codegen.program import Segment
from mace_train.ops.cpp.compiler import find_compiler
from mace_train.ops.segmented_kernels import Operation
from mace_train.ops.segmented_polynomial import kernels_of, register, segmented_polynomial

needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="needs a C++ compiler")
BACKENDS = ["reference", pytest.param("cpp", marks=needs_compiler)]
SIZES = {"x": 3, "w": 2, "c": 2, "y": 2, "out": 3, "total": 2}


def operation():
    """Terms of all kinds of operands; out[2] and total[1] have none."""
    kinds = {"x": Kind.ROW, "w": Kind.INDEXED, "c": Kind.CONSTANT, "y": Kind.UNIFORM}
    polynomial = Polynomial(kinds)
    polynomial.add(Segment("out", 0), 2.0, Segment("x", 0), Segment("x", 1), Segment("w", 0))
    polynomial.add(Segment("out", 0), -0.5, Segment("y", 0), Segment("c", 1), Segment("x", 2))
    polynomial.add(Segment("out", 1), 1.0, Segment("w", 1))
    polynomial.add(Segment("total", 0), 1.5, Segment("y", 0), Segment("y", 1), Segment("w", 1))
    polynomial.add(Segment("total", 0), -1.0, Segment("x", 0), Segment("c", 0))
    return Operation(polynomial, SIZES, frozenset({"total"}))


def case(n_rows=7, n_channels=5, dtype=torch.float64):
    torch.manual_seed(0)
    shapes = {
        "x": (n_rows, 3, n_channels),
        "w": (4, 2, n_channels),
        "c": (1, 2, n_channels),
        "y": (n_rows, 2),
    }
    inputs = {n: torch.randn(s, dtype=dtype, requires_grad=True) for n, s in shapes.items()}
    return inputs, torch.arange(n_rows) % 3


def function(inputs, index, backend):
    key = register(operation())

    def run(*tensors):
        found = segmented_polynomial(key, dict(zip(inputs, tensors, strict=True)), index, backend)
        return found["out"], found["total"]

    return run


def oracle(inputs, index):
    """The outputs in numpy, term by term."""
    rows = {n: t.detach().numpy() for n, t in inputs.items()}
    rows["w"] = rows["w"][index.numpy()]
    rows["c"] = np.broadcast_to(rows["c"], (len(index), *rows["c"].shape[1:]))
    rows["y"] = rows["y"][:, :, None]
    segments = {Segment(n, i): rows[n][:, i] for n in rows for i in range(SIZES[n])}
    values = operation().polynomial.evaluate(segments)
    n_rows, n_channels = rows["x"].shape[0], rows["x"].shape[2]
    out, total = np.zeros((n_rows, 3, n_channels)), np.zeros((n_rows, 2))
    out[:, 0], out[:, 1] = values[Segment("out", 0)], values[Segment("out", 1)]
    total[:, 0] = values[Segment("total", 0)].sum(1)
    return out, total


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("n_rows", [0, 1, 7])
@pytest.mark.parametrize("n_channels", [1, 5, 16])
def test_equal_to_the_terms(n_rows, n_channels, backend):
    inputs, index = case(n_rows, n_channels)
    found = function(inputs, index, backend)(*inputs.values())
    for mine, slow in zip(found, oracle(inputs, index), strict=True):
        np.testing.assert_allclose(mine.detach().numpy(), slow, rtol=0, atol=1e-12)
    gradients = torch.autograd.grad(sum(t.sum() for t in found), list(inputs.values()))
    for gradient, tensor in zip(gradients, inputs.values(), strict=True):
        assert gradient.shape == tensor.shape
    assert not gradients[1][3].any()  # an index without rows


@pytest.mark.parametrize("backend", BACKENDS)
def test_derivatives(backend):
    inputs, index = case(4, 2)
    run = function(inputs, index, backend)
    assert torch.autograd.gradcheck(run, tuple(inputs.values()))
    assert torch.autograd.gradgradcheck(run, tuple(inputs.values()))


@needs_compiler
def test_both_methods_agree_in_single_precision_and_for_some_gradients():
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        for chosen in (["x"], ["y"], ["w", "c"], ["x", "w", "c", "y"]):
            results = []
            for backend in ("reference", "cpp"):
                inputs, index = case(dtype=dtype)
                out, total = function(inputs, index, backend)(*inputs.values())
                loss = out.square().sum() + total.sin().sum()
                of = [inputs[name] for name in chosen]
                first = torch.autograd.grad(loss, of, create_graph=True)
                second = torch.autograd.grad(sum(t.cos().sum() for t in first), of)
                results.append([out, total, *first, *second])
            for a, b in zip(*results, strict=True):
                scale = 1.0 + float(a.detach().abs().max())
                torch.testing.assert_close(a, b, rtol=0.0, atol=tolerance * scale)


@needs_compiler
def test_non_contiguous_inputs_and_more_threads_than_rows():
    inputs, index = case(3, 16)
    run = function(inputs, index, "cpp")
    turned = [t.detach().transpose(0, -1).contiguous().transpose(0, -1) for t in inputs.values()]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(64)
        found = run(*[t.requires_grad_() for t in turned])
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, found, run(*inputs.values())))
    mine = torch.autograd.grad(found[0].sin().sum(), turned)
    right = torch.autograd.grad(run(*inputs.values())[0].sin().sum(), list(inputs.values()))
    assert all(map(torch.equal, mine, right))


@needs_compiler
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own use
def test_third_derivative_and_forward_mode_are_refused():
    inputs, index = case()
    run, tensors = function(inputs, index, "cpp"), list(inputs.values())
    (first,) = torch.autograd.grad(run(*tensors)[0].sin().sum(), tensors[0], create_graph=True)
    (second,) = torch.autograd.grad(first.sin().sum(), tensors[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="first and second derivatives only"):
        torch.autograd.grad(second.sum(), tensors[0])
    plain = tuple(t.detach() for t in tensors)
    with pytest.raises(NotImplementedError, match="jvp"):
        torch.func.jvp(run, plain, plain)


@needs_compiler
@pytest.mark.filterwarnings("ignore")
def test_operator_registrations():
    inputs, index = case(3, 2)
    key = register(operation())
    tensors = [inputs["x"], inputs["w"], inputs["c"].detach().expand(3, -1, -1), inputs["y"]]
    operators = torch.ops.mace_train
    torch.library.opcheck(operators.segmented_polynomial.default, (tensors, index, key))
    g = [torch.randn(3, 3, 2, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)]
    checks = {"test_utils": ("test_schema", "test_faketensor")}
    backward = operators.segmented_polynomial_backward.default
    for wanted in ([True, True, False, False], [False] * 4):  # of x, w, c, y
        torch.library.opcheck(backward, ([*tensors, *g], index, key, wanted), **checks)
    empty = tensors[0].new_empty(0)
    v = [torch.randn_like(tensors[0]), empty, empty, empty]
    given, wanted = [True, False, False, False], [False, True, False, True, True, True]
    double = operators.segmented_polynomial_double_backward.default
    torch.library.opcheck(double, ([*tensors, *g, *v], index, key, given, wanted), **checks)


def test_what_does_not_fit():
    inputs, index = case()
    key = register(operation())
    for change, words in (
        ({"x": inputs["x"][:, :2]}, "3 segments"),
        ({"y": inputs["y"][1:]}, "disagree"),
        ({"w": inputs["w"][:2]}, "rows that do not exist"),
        ({"w": inputs["w"][..., 1:]}, "disagree"),
    ):
        with pytest.raises(ValueError, match=words):
            segmented_polynomial(key, inputs | change, index)
    with pytest.raises(ValueError, match="int64 index"):
        segmented_polynomial(key, inputs)
    uniform = Polynomial({"y": Kind.UNIFORM})
    uniform.add(Segment("out", 0), 1.0, Segment("y", 0))
    with pytest.raises(ValueError, match="varies with channels"):
        Operation(uniform, {"y": 1, "out": 1})
    with pytest.raises(ValueError, match="n_segments"):
        Operation(operation().polynomial, SIZES | {"x": 2})


def test_operands_and_terms_are_printed():
    kernels = kernels_of(register(operation()))
    assert repr(kernels) == "SegmentedKernels(x[3] w[2] c[2] y[2] -> out[3] total[2] | 5 terms)"
    assert repr(kernels.operation.polynomial) == (
        "Polynomial(x: per row, w: indexed, c: constant, y: edge-uniform -> out, total | 5 terms)"
    )
    assert "out[1] = +1 w[1]" in str(kernels.operation.polynomial)
