"""Runs kernels on the device of their tensors, in C++ or CUDA, and compiles them in advance.

Kernels are generated and compiled when they first run, one by one. ``requests_of`` finds out which
kernels a function runs, so that ``compile_all`` can compile them in parallel before.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

import torch
from torch import Tensor

from mace_train.child_process import children_end_with
from mace_train.ops.codegen import kernel_cache
from mace_train.ops.codegen.kernel_spec import Kernel
from mace_train.ops.cpp import kernel as cpp_kernel
from mace_train.ops.cpp.kernel import CppKernel
from mace_train.ops.cuda import driver as cuda_driver
from mace_train.ops.cuda.kernel import CudaKernel


class CompiledKernel:
    """One kernel; ``recipe`` identifies it among all that this package can generate."""

    def __init__(self, recipe: str, build: Callable[[], Kernel]) -> None:
        self.recipe = recipe
        self.build = build
        self.cpp = CppKernel(recipe, build)
        self.cuda = CudaKernel(recipe, build)

    def __repr__(self) -> str:
        return f"CompiledKernel({self.recipe!r})"

    def run(
        self,
        n_items: int,
        index: Sequence[Tensor],
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        n_channels: int,
    ) -> list[int]:
        """Compute the outputs, in place.

        Tensors are as ``codegen.kernel_spec`` says for the loop, contiguous, on one device, with
        ``padded_channels`` (n_channels) if floating. Returns the bounds of the ranges of items that
        threads shared, on a CPU.
        """
        device = outputs[0].device
        if _requests is not None:
            _requests.append((self, outputs[0].dtype, n_channels, device))
            for out in outputs:
                out.zero_()
            return [0]
        if runs_on_cuda(device):
            self.cuda.run(n_items, index, inputs, outputs, n_channels)
            return [0]
        return self.cpp.run(n_items, index, inputs, outputs, n_channels)


Request = tuple[CompiledKernel, torch.dtype, int, torch.device]
_requests: list[Request] | None = None


def runs_on_cuda(device: torch.device) -> bool:
    """Whether kernels for tensors of a device are CUDA."""
    return device.type == "cuda"


def padded_channels(tensor: Tensor) -> int:
    """Channels that kernels need for a tensor [..., n_channels]: a multiple of a CPU's lanes."""
    n_channels = tensor.shape[-1]
    if runs_on_cuda(tensor.device):
        return n_channels
    return cpp_kernel.padded_channels(n_channels, tensor.dtype)


def requests_of(work: Callable[[], object]) -> list[Request]:
    """Each kernel that a function runs, with dtype, channels and device; all results are zero."""
    global _requests
    found: list[Request] = []
    _requests = found
    try:
        work()
    finally:
        _requests = None
    return list({(r[0].recipe, *r[1:]): r for r in found}.values())


def compile_all(requests: Sequence[Request], progress: Callable[[int, int], None]) -> None:
    """Compile what the cache lacks, as many kernels at a time as there are cores, and load all.

    Sources are generated one after the other, while compilers run in parallel. ``progress`` gets
    the numbers of finished and of all kernels.
    """
    folder = kernel_cache.cache_folder()
    n_threads = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(n_threads) as pool, children_end_with(pool):
        waiting = []
        for kernel, dtype, n_channels, device in requests:
            if runs_on_cuda(device):
                kernel.cuda.source(dtype, n_channels, folder, cuda_driver.architecture(device))
                job = pool.submit(kernel.cuda.prepare, dtype, n_channels, device)
            else:
                kernel.cpp.source(dtype, n_channels, folder)
                job = pool.submit(kernel.cpp.prepare, dtype, n_channels)
            waiting.append(job)
        for n_done, job in enumerate(as_completed(waiting), 1):
            job.result()
            progress(n_done, len(waiting))
