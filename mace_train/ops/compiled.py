"""Kernels for whichever device the tensors are on.

Kernels are generated and compiled when they first run, one by one. ``required_by`` finds out
which ones a piece of work will run, so that ``prepare`` can compile them in parallel before.
"""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from mace_train.ops import native
from mace_train.ops.cuda_kernel import CudaKernel
from mace_train.ops.kernel import Kernel
from mace_train.ops.native import NativeKernel

Request = tuple["CompiledKernel", torch.dtype, int, torch.device]
_requests: set[Request] | None = None
_building = threading.Lock()  # programs are made of graphs that they share


class CompiledKernel:
    """One kernel; ``recipe`` identifies it among all that this package can generate."""

    def __init__(self, recipe: str, build: Callable[[], Kernel]) -> None:
        self.recipe = recipe
        self.native = NativeKernel(recipe, self.build)
        self.cuda = CudaKernel(recipe, self.build)
        self._build = build

    def build(self) -> Kernel:
        """Its program and loop."""
        with _building:
            return self._build()

    def run(
        self,
        n_items: int,
        index: Sequence[Tensor],
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        n_channels: int,
    ) -> None:
        """Fill the outputs; tensors are contiguous, with ``padded_channels``."""
        if _requests is not None:
            _requests.add((self, outputs[0].dtype, n_channels, outputs[0].device))
            for output in outputs:
                output.zero_()
            return
        backend = self.cuda if runs_on_cuda(outputs[0].device) else self.native
        backend.run(n_items, index, inputs, outputs, n_channels)

    def prepare(self, dtype: torch.dtype, n_channels: int, device: torch.device) -> None:
        """Generate, compile and load, from the cache where possible."""
        if runs_on_cuda(device):
            self.cuda.prepare(dtype, n_channels, device)
        else:
            self.native.prepare(dtype, n_channels)


def runs_on_cuda(device: torch.device) -> bool:
    """Whether kernels for tensors of a device are CUDA."""
    return device.type == "cuda"


def padded_channels(tensor: Tensor) -> int:
    """Channels that kernels want in place of the tensor's: a multiple of the lanes of a CPU."""
    n_channels = tensor.shape[-1]
    if runs_on_cuda(tensor.device):
        return n_channels
    return native.padded_channels(n_channels, tensor.dtype)


def required_by(work: Callable[[], object]) -> set[Request]:
    """The kernels that ``work`` runs; they give zeros meanwhile, and are not compiled."""
    global _requests
    _requests = set()
    try:
        work()
        return _requests
    finally:
        _requests = None


def prepare(requests: set[Request]) -> None:
    """Compile kernels, in parallel, and load them."""
    with ThreadPoolExecutor(min(len(requests), os.cpu_count() or 1) or 1) as pool:
        list(pool.map(lambda request: request[0].prepare(*request[1:]), requests))
