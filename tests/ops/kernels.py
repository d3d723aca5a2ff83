"""Generated kernels, and the comparison of their CUDA sources with the exact sums."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mace_train.ops.codegen.kernel_spec import Kernel, Loop, Role, sum_kernel
from mace_train.ops.convolution import EdgeIndex
from mace_train.ops.convolution_kernels import ConvolutionKernels
from mace_train.ops.cpp.compiler import find_compiler
from mace_train.ops.cuda.emit import emit_cuda
from mace_train.ops.cuda.launch import CudaTarget, LaunchConfig
from mace_train.ops.symmetric_contraction import Chunks, kernels_of, register
from tests.ops.cuda_host import host
from tests.ops.cuda_host.oracle import expected
from tests.ops.tables import mace_coupling, mace_product

needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="needs a C++ compiler")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
SCALARS = {torch.float64: "double", torch.float32: "float"}
N_ATOMS, N_EDGES, N_ELEMENTS = 21, 150, 5


def contraction(name: str) -> Kernel:
    """One of the symmetric contraction's kernels, of a small coupling."""
    return getattr(kernels_of(register(mace_coupling(1, 1, 3))), name).build()


def convolution(name: str, l_nodes: int = 1, l_edges: int = 1) -> Kernel:
    """One of the convolution's kernels, by its name and the operands it differentiates by."""
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
        chunks = Chunks.of_size(elements, N_ELEMENTS, 4)
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
    """The CUDA source, compiled for the host and run there, gives the exact sums."""
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
