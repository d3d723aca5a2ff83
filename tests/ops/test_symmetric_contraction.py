"""The compiled contraction against the PyTorch reference and against finite differences."""

import traceback

import pytest
import torch

from mace_train.model.contraction import SymmetricContraction
from mace_train.ops.cpp.compiler import find_compiler
from mace_train.ops.symmetric_contraction import (
    ATOMS_PER_CHUNK,
    Chunks,
    kernels_of,
    register,
    symmetric_contraction,
)
from tests.ops.tables import mace_coupling, wave

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="needs a C++ compiler")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def case(sizes=(3, 1, 3), n_atoms=70, n_channels=16, dtype=torch.float64, n_elements=4, seed=0):
    """A module, features, and elements of which the last is absent."""
    torch.manual_seed(seed)
    module = SymmetricContraction(*sizes, n_elements, n_channels).to(dtype)
    x = torch.randn(n_atoms, (sizes[0] + 1) ** 2, n_channels, dtype=dtype, requires_grad=True)
    return module, x, torch.randint(0, n_elements - 1, (n_atoms,))


def everything(module, x, *elements):
    """Output, first derivatives, and derivatives of a function of the gradient of x."""
    variables = [x, *module.parameters()]
    out = module(x, *elements)
    probe = wave(out, torch.cos).requires_grad_()
    (gx,) = torch.autograd.grad((out * probe).sum(), x, create_graph=True)
    first = torch.autograd.grad((out * probe).sum(), variables, retain_graph=True)
    loss = (gx * wave(gx, torch.sin)).sum()
    second = torch.autograd.grad(loss + out.sum(), [*variables, probe], allow_unused=True)
    found = (out, gx, *first, *second)
    return [torch.zeros(()) if value is None else value for value in found]


def assert_same(found, expected, tolerance):
    for mine, slow in zip(found, expected, strict=True):
        scale = float(slow.detach().abs().max()) if slow.numel() else 0.0
        torch.testing.assert_close(mine, slow, rtol=0.0, atol=tolerance * (1.0 + scale))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("sizes", "n_channels"), [((3, 1, 3), 16), ((3, 0, 2), 5), ((2, 2, 3), 17), ((1, 1, 4), 3)]
)
def test_equal_to_the_reference(sizes, n_channels, dtype):
    module, x, elements = case(sizes, n_channels=n_channels, dtype=dtype)
    expected = everything(module, x, elements)
    found = everything(module, x, elements, Chunks.of(elements, 4))
    # the reference rounds too: in float32 both are compared with float64
    if dtype == torch.float32:
        exact = everything(module.double(), x.detach().double().requires_grad_(), elements)
        found = [value.double() for value in found]
        expected = exact
    assert_same(found, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("n_atoms", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_few_atoms(n_atoms, dtype):
    module, x, elements = case((2, 1, 3), n_atoms, dtype=dtype)
    found = everything(module, x, elements, Chunks.of(elements, 4))
    assert_same(found, everything(module, x, elements), TOLERANCE[dtype])


def small_operator():
    key = register(mace_coupling(2, 1, 3))
    torch.manual_seed(0)
    elements = torch.tensor([0, 2, 2, 0])
    x = torch.randn(4, 9, 2, dtype=torch.float64, requires_grad=True)
    n_weights = kernels_of(key).coupling.n_weights
    w = torch.randn(3, n_weights, 2, dtype=torch.float64, requires_grad=True)
    chunks = Chunks.of(elements, 3)
    return lambda x, w: symmetric_contraction(x, w, chunks, key), x, w


def test_first_and_second_derivatives():
    function, x, w = small_operator()
    assert torch.autograd.gradcheck(function, (x, w))
    assert torch.autograd.gradgradcheck(function, (x, w))


def test_third_derivative_is_refused():
    function, x, w = small_operator()
    (first,) = torch.autograd.grad(function(x, w).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="first and second derivatives only"):
        torch.autograd.grad(second.sum(), x)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own use
def test_forward_mode_is_refused():
    function, x, w = small_operator()
    inputs = (x.detach(), w.detach())
    with pytest.raises(NotImplementedError, match="jvp"):
        torch.func.jvp(function, inputs, inputs)


@pytest.mark.filterwarnings("ignore")
def test_operator_registrations():
    function, x, w = small_operator()
    key = register(mace_coupling(2, 1, 3))
    chunks = Chunks.of(torch.tensor([0, 2, 2, 0]), 3)
    index = (chunks.order, chunks.first, chunks.index, key)
    operators = torch.ops.mace_train
    torch.library.opcheck(operators.symmetric_contraction.default, (x, w, *index))
    g = torch.randn_like(function(x, w).detach()).requires_grad_()
    checks = {"test_utils": ("test_schema", "test_faketensor")}
    backward = operators.symmetric_contraction_backward.default
    for wanted in ([True, True], [True, False], [False, True]):
        torch.library.opcheck(backward, (x, w, g, *index, wanted), **checks)
    double = operators.symmetric_contraction_double_backward.default
    v = (torch.randn_like(x), torch.randn_like(w))
    for given, wanted in (
        ([True, True], [True, True, True]),
        ([True, False], [False, True, False]),
        ([False, True], [True, False, True]),
    ):
        torch.library.opcheck(double, (x, w, g, *v, *index, given, wanted), **checks)


def test_weight_gradient_is_skipped_where_it_is_not_used(monkeypatch):
    module, x, elements = case((2, 1, 3), 9)
    kernels = kernels_of(module.key)
    called = []
    for name in ("backward_x", "backward_xw", "double"):
        kernel = getattr(kernels, name)

        def run(*arguments, name=name, run=kernel.run):
            called.append(name)
            run(*arguments)

        monkeypatch.setattr(kernel, "run", run)
    out = module(x.sin(), elements, Chunks.of(elements, 4))
    (force,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    assert called == ["backward_x"]
    (force.square().sum() + out.sum()).backward(inputs=list(module.parameters()))
    assert sorted(called[1:]) == ["backward_xw", "double"]


def test_non_contiguous_inputs():
    module, x, elements = case((2, 1, 2), 9)
    expected = module(x, elements, Chunks.of(elements, 4))
    turned = x.detach().permute(2, 0, 1).contiguous().permute(1, 2, 0).requires_grad_()
    assert not turned.is_contiguous()
    found = module(turned, elements, Chunks.of(elements, 4))
    assert torch.equal(found, expected)
    probe = torch.randn(16, 4, 9, dtype=torch.float64).permute(2, 1, 0)
    gradients = [torch.autograd.grad((found * probe).sum(), turned)]
    gradients.append(torch.autograd.grad((expected * probe.contiguous()).sum(), x))
    assert torch.equal(gradients[0][0], gradients[1][0])


def test_bitwise_equal_for_any_number_of_threads():
    """Also for more threads than chunks, and from run to run."""
    module, x, elements = case((3, 1, 3), 5 * ATOMS_PER_CHUNK["cpu"], dtype=torch.float32)
    results = []
    before = torch.get_num_threads()
    try:
        for n_threads in (1, 2, 3, 64, 1):
            torch.set_num_threads(n_threads)
            gradients = everything(module, x, elements, Chunks.of(elements, 4))
            torch.set_num_threads(1)
            results.append(gradients)
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_chunks():
    elements = torch.tensor([2] * 40 + [0] * 3 + [2] * 30)
    chunks = Chunks.of(elements, 4)
    assert chunks.index.tolist() == [0, 2, 2, 2]
    assert chunks.first.tolist() == [0, 3, 35, 67, 73]
    assert elements[chunks.order].tolist() == [0] * 3 + [2] * 70
    empty = Chunks.of(elements[:0], 4)
    assert empty.first.tolist() == [0]
    assert len(empty.index) == 0


@pytest.mark.parametrize("n_rows", [0, 1, 5, 73])
def test_chunks_whose_number_is_only_bounded(n_rows):
    """Made without looking at values, as on a GPU: the same ones, and empty ones at the end."""
    elements = torch.tensor(([2] * 40 + [0] * 3 + [2] * 30)[:n_rows], dtype=torch.int64)
    exact = Chunks._of(elements, 4, 16, exact=True)
    padded = Chunks._of(elements, 4, 16, exact=False)
    n_chunks = len(exact.index)
    assert n_chunks <= len(padded.index) <= n_rows // 16 + 4
    assert torch.equal(padded.index[:n_chunks], exact.index)
    assert torch.equal(padded.first[:n_chunks], exact.first[:-1])
    assert (padded.first[n_chunks:] == n_rows).all()
    assert (padded.index.diff() >= 0).all()


def test_offsets_beyond_two_to_the_31():
    """Rows whose first element lies beyond 2^31: memory that is not touched is not used."""
    key = register(mace_coupling(1, 0, 1))
    kernels = kernels_of(key)
    n_channels = 64
    n_rows = 2**31 // (4 * n_channels) + 3
    try:
        x = torch.empty(n_rows, 4, n_channels)
        gx = torch.empty(n_rows, 4, n_channels)
    except RuntimeError as error:  # no overcommitment of memory
        pytest.skip(str(error))
    rows = torch.tensor([n_rows - 2, n_rows - 1])
    assert int(rows[0]) * 4 * n_channels > 2**31
    x[rows] = 1.5
    w = torch.full((1, 1, n_channels), 2.0)
    index = [rows, torch.tensor([0, 2]), torch.tensor([0])]
    out = torch.empty(n_rows, 1, n_channels)
    kernels.forward.run(1, index, [x, w], [out], n_channels)
    assert torch.equal(out[rows], torch.full((2, 1, n_channels), 3.0))
    kernels.backward_x.run(1, index, [x, w, out], [gx], n_channels)
    expected = torch.zeros(2, 4, n_channels)
    expected[:, 0] = 6.0
    assert torch.equal(gx[rows], expected)


def test_mixed_and_half_precision_are_raised():
    """Under autocast the layer before may give bfloat16; the operator computes in float32."""
    function, x, w = small_operator()
    key = register(mace_coupling(2, 1, 3))
    assert kernels_of(key).n_out == 4
    found = function(x.bfloat16(), w.float())
    assert found.dtype == torch.float32
    expected = function(x.bfloat16().double(), w.float().double())
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_a_call_goes_from_the_operator_to_the_kernel(monkeypatch):
    """No function of ours lies between, in the forward pass, but those that make it one node."""
    function, x, w = small_operator()
    files = []

    def run(*arguments):
        files.extend(frame.filename for frame in traceback.extract_stack())

    key = register(mace_coupling(2, 1, 3))
    monkeypatch.setattr(kernels_of(key).forward.cpp, "run", run)
    function(x, w)
    ours = [name.rpartition("mace_train/")[2] for name in files if "mace_train/" in name]
    first = ours.index("ops/symmetric_contraction.py")
    operator, node = "ops/symmetric_contraction.py", ["ops/torch_library.py"] * 3
    assert ours[first:] == [operator, *node, operator, "ops/dispatch.py"]


def test_kernels_say_what_they_are_for():
    kernels = kernels_of(register(mace_coupling(2, 1, 3)))
    n_weights = kernels.coupling.n_weights
    assert repr(kernels) == (
        f"ContractionKernels(x[9] w[{n_weights}] -> out[4] | {n_weights} paths)"
    )
    assert repr(kernels.forward).startswith("CompiledKernel('contraction ")
