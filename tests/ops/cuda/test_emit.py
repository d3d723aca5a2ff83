"""CUDA sources, compiled for the host through a shim, against their programs in float64."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mace_train.ops.codegen.kernel_spec import Kernel, Loop, Role, sum_kernel
from mace_train.ops.codegen.program import Segment
from mace_train.ops.convolution import EdgeIndex
from mace_train.ops.convolution_kernels import ConvolutionKernels
from mace_train.ops.cpp.compiler import find_compiler
from mace_train.ops.cuda.emit import emit_cuda
from mace_train.ops.cuda.launch import CudaTarget, LaunchConfig, block_of
from mace_train.ops.cuda.passes import Tuning, passes_of
from mace_train.ops.symmetric_contraction import Chunks, kernels_of, register
from tests.ops.cuda_host import host
from tests.ops.cuda_host.oracle import expected
from tests.ops.tables import mace_coupling, mace_product

needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="needs a C++ compiler")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
SCALARS = {torch.float64: "double", torch.float32: "float"}
N_ATOMS, N_EDGES, N_ELEMENTS = 21, 150, 5


def contraction(name: str) -> Kernel:
    return getattr(kernels_of(register(mace_coupling(1, 1, 3))), name).build()


def convolution(name: str, l_nodes: int = 1, l_edges: int = 1) -> Kernel:
    kernels = ConvolutionKernels(mace_product(l_nodes, l_edges), f"{l_nodes} {l_edges}")
    kind, *names = name.split()
    kernel = getattr(kernels, kind)
    return (kernel(*names) if names else kernel).build()


def by_pair(kernel: Kernel) -> Kernel:
    """The same program, visiting the edges pair by pair."""
    return replace(kernel, loop=Loop.PAIRS)


KERNELS = {
    "value": lambda: contraction("forward"),
    "gradients": lambda: contraction("backward_xw"),
    "second derivatives": lambda: contraction("double"),
    "messages": lambda: convolution("forward"),
    "gradients of edges": lambda: convolution("backward xyr"),
    "second derivatives of edges": lambda: convolution("double xyr xyr"),
    "second derivatives of messages": lambda: convolution("double_g xyr"),
    "gradients of pairs": lambda: by_pair(convolution("backward xyr")),
    "second derivatives of pairs": lambda: by_pair(convolution("double xyr xr")),
    "sums": lambda: sum_kernel(3),
}


def indices(kernel: Kernel) -> tuple[list[torch.Tensor], dict[Role, int]]:
    """Index tensors, and rows of a tensor with each role.

    Chunks of four, some empty; two elements absent; atoms without edges, one with more edges than
    are taken at a time.
    """
    torch.manual_seed(0)
    if kernel.loop is Loop.ROWS:
        elements = torch.tensor([0, 3, 3])[torch.randint(0, 3, (N_ATOMS,))]
        chunks = Chunks._of(elements, N_ELEMENTS, 4, exact=False)
        rows = {Role.ROW: N_ATOMS, Role.INDEXED: N_ELEMENTS, Role.CHUNK: len(chunks.index)}
        return [chunks.order, chunks.first, chunks.index], rows
    receivers = torch.randint(1, N_ATOMS - 3, (N_EDGES,))
    receivers[: N_EDGES // 3] = 4
    senders = torch.randint(0, N_ATOMS, (N_EDGES,))
    receivers = receivers.sort().values
    edges = EdgeIndex.of(senders, receivers, N_ATOMS)
    pairs = torch.randint(0, N_EDGES // 2, (N_EDGES,))
    rows = dict.fromkeys((Role.EDGE, Role.UNIFORM, Role.PAIR), N_EDGES)
    rows |= dict.fromkeys((Role.ROW, Role.SENDER), N_ATOMS)
    if kernel.loop is Loop.PAIRS:  # one in three edges is alone
        pairs, n_pairs = torch.randperm(N_EDGES) % (2 * N_EDGES // 3), 2 * N_EDGES // 3
        first = torch.nn.functional.pad(torch.bincount(pairs, minlength=n_pairs).cumsum(0), (1, 0))
        order = torch.argsort(pairs, stable=True)
        return [order, first, senders, receivers], rows | {Role.PAIR: n_pairs}
    return [edges.first, edges.senders, pairs], rows


def assert_right(kernel: Kernel, n_channels: int, dtype: torch.dtype, folder: Path, tuning=None):
    source = emit_cuda(kernel, CudaTarget(SCALARS[dtype], n_channels), tuning)
    library = folder / f"{len(list(folder.iterdir()))}.so"  # a loaded one must stay as it is
    host.compile_for_host(source, library)
    index, rows = indices(kernel)

    def shape(operand):
        channels = () if operand.role is Role.UNIFORM else (n_channels,)
        return rows[operand.role], operand.n_segments, *channels

    inputs = [torch.randn(shape(o), dtype=dtype) for o in kernel.inputs]
    outputs = [torch.full(shape(o), torch.nan, dtype=dtype) for o in kernel.outputs]
    n_items = len(index[0] if kernel.loop in (Loop.RECEIVERS, Loop.EDGES) else index[1]) - 1
    pointers = [tensor.data_ptr() for tensor in (*index, *inputs, *outputs)]
    launch = LaunchConfig.of(source)
    host.launch(library, launch.grid(n_items), launch.threads, [n_items, *pointers])
    slow = expected(kernel, index, inputs, [len(t) for t in outputs])
    for operand, mine, value in zip(kernel.outputs, outputs, slow, strict=True):
        atol = TOLERANCE[dtype] * (1.0 + abs(value).max())
        torch.testing.assert_close(
            mine.double(), torch.from_numpy(value), rtol=0.0, atol=atol, msg=operand.name
        )


@needs_compiler
@pytest.mark.parametrize("n_channels", [1, 31, 33, 96, 128])
@pytest.mark.parametrize("name", KERNELS)
def test_numbers_of_channels(name, n_channels, tmp_path):
    assert_right(KERNELS[name](), n_channels, torch.float64, tmp_path)


@needs_compiler
@pytest.mark.parametrize("name", KERNELS)
def test_single_precision_and_several_blocks_of_channels(name, tmp_path):
    assert_right(KERNELS[name](), 160, torch.float32, tmp_path)


@needs_compiler
def test_operands_cut_into_passes(tmp_path):
    sums = Tuning(sums=5)
    kernel = KERNELS["second derivatives of messages"]()
    assert len(passes_of(kernel, sums)) == -(-len(kernel.program.outputs) // 5)
    assert_right(kernel, 40, torch.float64, tmp_path, sums)
    split = Tuning(split=("hx hr", "hy"))
    assert_right(KERNELS["second derivatives of edges"](), 40, torch.float64, tmp_path, split)
    split = Tuning(split=("hg", "hw", "hx"))
    assert_right(KERNELS["second derivatives"](), 40, torch.float64, tmp_path, split)


@pytest.mark.parametrize("name", KERNELS)
def test_passes_own_every_output_once(name):
    kernel = KERNELS[name]()
    every = {Segment(o.name, i) for o in kernel.outputs for i in range(o.n_segments)}
    for tuning in (Tuning(), Tuning(sums=2), Tuning(split=("hx", "hy"))):
        passes = passes_of(kernel, tuning)
        assert set().union(*(part.owned for part in passes)) == every
        assert sum(len(part.owned) for part in passes) == len(every)
        assert all(part.owned >= part.program.outputs.keys() for part in passes)


@needs_compiler
def test_more_harmonics_than_lanes(tmp_path):
    """36 sums over channels: two groups of at most 32."""
    assert_right(convolution("backward y", 0, 5), 33, torch.float64, tmp_path)


def test_blocks_hold_all_channels():
    for n_channels in range(1, 700):
        threads, blocks = block_of(n_channels)
        assert threads % 32 == 0
        assert threads <= 128
        assert (blocks - 1) * threads < n_channels <= blocks * threads


def test_sources_use_no_atomics_and_no_fast_math():
    for kernel in (make() for make in KERNELS.values()):
        source = emit_cuda(kernel, CudaTarget("float", 64))
        assert "atomic" not in source.split("typedef", 1)[1]
        assert "#include" not in source
        assert "@" not in source


def test_grid():
    launch = LaunchConfig(threads=128, threads_per_item=96, passes=2)
    assert launch.grid(1) == (1, 2, 1)
    assert launch.grid(5) == (4, 2, 1)
    assert LaunchConfig.of(launch.header() + "rest\n") == launch
    assert launch.grid(2**31)[0] < 2**31
