"""CUDA sources, compiled for the host through a shim, against their programs in float64."""

import pytest
import torch

from mace_train.ops.codegen.program import Segment
from mace_train.ops.cuda.emit import emit_cuda
from mace_train.ops.cuda.launch import CudaTarget, LaunchConfig, block_of
from mace_train.ops.cuda.passes import Tuning, passes_of
from tests.ops.kernels import KERNELS, assert_right, convolution, needs_compiler


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
