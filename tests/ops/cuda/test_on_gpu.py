"""The CUDA back end on a GPU: the operators against the CPU, derivatives, streams and graphs.

Under ``-p tests.ops.cuda_host.plugin`` those that need no device of their own run on the host.
"""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from mace_train.model.contraction import SymmetricContraction
from mace_train.ops.codegen import kernel_cache
from mace_train.ops.codegen.kernel_spec import sum_kernel
from mace_train.ops.convolution import EdgeIndex, convolution, register
from mace_train.ops.cuda import compiler as cuda_compiler
from mace_train.ops.cuda.kernel import CudaKernel
from mace_train.ops.dispatch import runs_on_cuda
from mace_train.ops.symmetric_contraction import Chunks
from tests.ops.cuda.cases import CPU, GPU, Case, contraction, everything, messages, on_gpu
from tests.ops.tables import einsum_convolution, mace_product

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not runs_on_cuda(GPU), reason="needs a CUDA device"),
    pytest.mark.skipif(
        cuda_compiler.why_missing() is not None, reason="needs the extra cuda (NVRTC)"
    ),
]
needs_device = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
DTYPES = [torch.float32, torch.float64]


def assert_same(found, expected, tolerance):
    for mine, slow in zip(found, expected, strict=True):
        mine, slow = (tensor.detach().double().cpu() for tensor in (mine, slow))
        scale = float(slow.abs().max()) if slow.numel() else 0.0
        torch.testing.assert_close(mine, slow, rtol=0.0, atol=tolerance * (1.0 + scale))


def assert_equals_the_others(case: Case, differentiated, dtype) -> None:
    """Reference in float64 and C++ in the same precision."""
    found = everything(case.on(GPU), on_gpu(case.inputs), differentiated)
    exact = [tensor.double() for tensor in case.inputs]
    assert_same(found, everything(case.slow, exact, differentiated), TOLERANCE[dtype])
    if GPU != CPU:
        cpp = everything(case.on(CPU), case.inputs, differentiated)
        assert_same(found, cpp, TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_channels", [1, 31, 33, 96, 128, 160])
@pytest.mark.parametrize("degrees", [(3, 0, 3), (3, 1, 3), (3, 2, 3), (2, 1, 2)])
def test_contraction_equals_the_other_methods(degrees, n_channels, dtype):
    case = contraction(degrees, 70, n_channels, dtype)
    for differentiated in ((0,), range(len(case.inputs))):
        assert_equals_the_others(case, differentiated, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_channels", [1, 33, 96, 128, 160])
@pytest.mark.parametrize("l_nodes", [0, 1, 2])
def test_convolution_equals_the_other_methods(l_nodes, n_channels, dtype):
    case = messages(l_nodes, 300, n_channels, dtype)
    for differentiated in ((0, 1, 2), (1, 2), (0,), (1,), (2,), (0, 2)):
        assert_equals_the_others(case, differentiated, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_channels", [1, 33, 128, 160])
@pytest.mark.parametrize("l_nodes", [0, 1, 2])
def test_gradients_pair_by_pair(l_nodes, n_channels, dtype, monkeypatch):
    """Every edge with its reverse; all atoms but three have edges."""
    monkeypatch.setattr("mace_train.ops.convolution.loops_over_pairs", lambda device, n: True)
    product = mace_product(l_nodes, 3)
    ends, others = torch.arange(60).repeat_interleave(3) % 20, torch.arange(180) % 19
    receivers, order = torch.cat((ends, others)).sort(stable=True)
    senders, pairs = torch.cat((others, ends))[order], torch.arange(180).repeat(2)[order]
    first = torch.full((180,), 360).scatter_reduce(0, pairs, torch.arange(360), "amin")
    x, y, r = messages(l_nodes, 360, n_channels, dtype).inputs

    def on(device):
        index = EdgeIndex.of(*(t.to(device) for t in (senders, receivers)), len(x), *rows(device))
        return lambda x, y, r: torch.cat(convolution(x, y, r, index, register(product)), dim=1)

    def rows(device):
        return pairs.to(device), first.to(device)

    def slow(x, y, r):
        return einsum_convolution(product, x, y, r.index_select(0, pairs), senders, receivers)

    for differentiated in ((0, 1, 2), (1, 2), (2,), (0, 2)):
        case = Case(on, slow, [x, y, r[:180]])
        assert_equals_the_others(case, differentiated, dtype)


@pytest.mark.parametrize("n_atoms", [0, 1])
def test_few_atoms(n_atoms):
    case = contraction((2, 1, 3), n_atoms, 5)
    assert_equals_the_others(case, range(len(case.inputs)), torch.float64)


@pytest.mark.parametrize("n_edges", [0, 1])
def test_few_edges(n_edges):
    assert_equals_the_others(messages(1, n_edges, 5), (0, 1, 2), torch.float64)


@pytest.mark.parametrize(
    "case", [lambda: contraction((1, 1, 2), 4, 1), lambda: messages(1, 3, 1, l_edges=1)]
)
def test_first_and_second_derivatives(case):
    made = case()
    inputs = [tensor.requires_grad_() for tensor in on_gpu(made.inputs)]
    assert torch.autograd.gradcheck(made.on(GPU), inputs)
    assert torch.autograd.gradgradcheck(made.on(GPU), inputs)


def large(dtype) -> Iterator[tuple[Callable[..., Tensor], list[Tensor], range]]:
    """Functions with many blocks, so that the order in which they run varies."""
    for case in (
        contraction((3, 1, 3), 3000, 128, dtype),
        messages(1, 30000, 128, dtype, 1500),
    ):
        yield case.on(GPU), on_gpu(case.inputs), range(len(case.inputs))


@needs_device
@pytest.mark.parametrize("dtype", DTYPES)
def test_bitwise_repeatable(dtype):
    for case in large(dtype):
        first = everything(*case)
        for _ in range(5):
            again = everything(*case)
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@needs_device
def test_several_streams():
    """Work on the streams that are current, with no order but that of each stream."""
    cases = [case for _ in range(2) for case in large(torch.float32)]
    expected = [everything(*case) for case in cases]
    streams = [torch.cuda.Stream() for _ in cases]
    torch.cuda.synchronize()
    for _ in range(3):
        found = []
        for stream, case in zip(streams, cases, strict=True):
            with torch.cuda.stream(stream):
                found.append(everything(*case))
        torch.cuda.synchronize()
        for mine, slow in zip(found, expected, strict=True):
            # matrix products of torch may differ in rounding from stream to stream
            assert_same(mine, slow, 1e-5)


def derivatives(function, inputs) -> list[Tensor]:
    """Value, gradients, and gradients of those; nothing here comes from the CPU."""
    out = function(*inputs)
    first = torch.autograd.grad(out, inputs, torch.ones_like(out), create_graph=True)
    squares = sum((g * g).sum() for g in first)
    return [out, *first, *torch.autograd.grad(squares, inputs)]


@needs_device
@pytest.mark.parametrize("make", [contraction, messages])
def test_capture_in_a_graph(make):
    """Captured once, replayed on other inputs."""
    case = make()
    function = case.on(GPU)
    static = [tensor.requires_grad_() for tensor in on_gpu(case.inputs)]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            derivatives(function, static)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = derivatives(function, static)
    others = [1.5 * tensor.detach().cos() for tensor in static]
    with torch.no_grad():
        for tensor, other in zip(static, others, strict=True):
            tensor.copy_(other)
    graph.replay()
    expected = derivatives(function, [tensor.requires_grad_() for tensor in others])
    torch.cuda.synchronize()
    assert_same(captured, expected, 1e-13)  # matrix products of torch may differ in rounding


@needs_device
def test_no_operator_waits_for_the_device():
    for function, inputs, _ in large(torch.float32):
        inputs = [tensor.requires_grad_() for tensor in inputs]
        derivatives(function, inputs)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            derivatives(function, inputs)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@needs_device
def test_index_tensors_are_made_without_waiting():
    elements = torch.randint(0, 4, (70,), device=GPU)
    senders = torch.randint(0, 20, (90,), device=GPU)
    receivers = torch.randint(0, 20, (90,), device=GPU).sort().values
    torch.cuda.set_sync_debug_mode("error")
    try:
        Chunks.of(elements, 5)
        EdgeIndex.of(senders, receivers, 20)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_cold_and_warm_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(kernel_cache, "cache_folder", lambda: tmp_path)
    rows = torch.arange(12.0, device=GPU).view(4, 1, 3)
    index = [torch.arange(4, device=GPU), *[torch.tensor([0, 1, 4], device=GPU)] * 2]

    def total():
        result = torch.empty(2, 1, 3, device=GPU)
        CudaKernel("sum 1", lambda: sum_kernel(1)).run(2, index, [rows], [result], 3)
        return result

    expected = torch.stack([rows[0], rows[1:].sum(0)])
    assert torch.equal(total(), expected)
    assert {path.suffix for path in tmp_path.iterdir()} == {".cu", ".cubin", ".lock"}
    monkeypatch.setattr(cuda_compiler, "compile_cubin", None)
    assert torch.equal(total(), expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_several_devices():
    case = messages()
    expected = case.on(GPU)(*on_gpu(case.inputs))
    for number in (1, 0, 1):
        device = torch.device("cuda", number)
        out = case.on(device)(*[tensor.to(device) for tensor in case.inputs])
        assert out.device == device
        assert torch.equal(out.to(GPU), expected)


@needs_device
def test_offsets_beyond_two_to_the_31():
    """Edges whose weights begin beyond 2^31 elements."""
    n_channels, n_edges = 128, 2**31 // (4 * 128) + 1000
    free, _ = torch.cuda.mem_get_info()
    if free < 24 * 2**30:
        pytest.skip("needs 24 GiB of free device memory")
    product = mace_product(0, 3)
    receivers = torch.arange(n_edges, device=GPU) // 40
    n_atoms = int(receivers[-1]) + 1
    senders = receivers.flip(0)
    x = torch.randn(n_atoms, 1, n_channels, device=GPU)
    y = torch.randn(n_edges, product.n_y, device=GPU)
    r = torch.ones(n_edges, product.n_weights, n_channels, device=GPU)
    assert r.numel() > 2**31
    index = EdgeIndex.of(senders, receivers, n_atoms)
    out = torch.cat(convolution(x, y, r, index, register(product)), dim=1)[-1].cpu()
    last = slice(40 * (n_atoms - 1), n_edges)
    of_edge = x[senders[last]].cpu()
    edges = torch.arange(len(of_edge))
    expected = einsum_convolution(
        product, of_edge, y[last].cpu(), r[last].cpu(), edges, torch.zeros_like(edges)
    )
    torch.testing.assert_close(out, expected[0], rtol=1e-4, atol=1e-4)


@needs_device
def test_contraction_offsets_beyond_two_to_the_31():
    """Atoms whose features begin beyond 2^31 elements: values and gradients of the last ones."""
    n_channels, n_atoms = 128, 2**31 // (16 * 128) + 1000
    free, _ = torch.cuda.mem_get_info()
    if free < 40 * 2**30:
        pytest.skip("needs 40 GiB of free device memory")
    torch.manual_seed(0)
    module = SymmetricContraction(3, 1, 3, 5, n_channels).to(GPU)
    elements = torch.randint(0, 4, (n_atoms,), device=GPU)

    def value_and_gradient(x, elements):
        x.requires_grad_()
        out = module(x, elements, Chunks.of(elements, 5))
        return [out, *torch.autograd.grad(out, x, torch.ones_like(out))]

    x = torch.randn(n_atoms, 16, n_channels, device=GPU)
    assert x.numel() > 2**31
    found = [tensor[-50:].clone() for tensor in value_and_gradient(x, elements)]
    expected = value_and_gradient(x[-50:].detach().clone(), elements[-50:])
    assert_same(found, expected, TOLERANCE[torch.float32])
