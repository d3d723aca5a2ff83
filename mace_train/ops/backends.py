"""Which implementation of the fused operations runs: asked for by name, or chosen.

reference  PyTorch; every device, differentiable any number of times
cpp        C++ compiled on this machine; CPU tensors, first and second derivatives
cuda       CUDA compiled by NVRTC; tensors on NVIDIA GPUs, first and second derivatives
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mace_train.checks import check_choice
from mace_train.errors import InputError
from mace_train.ops import row_sums
from mace_train.ops.cpp.compiler import NO_COMPILER, find_compiler
from mace_train.ops.cuda import compiler as cuda_compiler
from mace_train.ops.cuda import driver as cuda_driver

NAMES = ("reference", "cpp", "cuda")


@dataclass(frozen=True)
class Backend:
    """The implementation that serves a batch; made by ``backend_of``, once for every batch."""

    name: str  # one of NAMES

    @property
    def fused(self) -> bool:
        """Whether operations are kernels that are compiled for the model."""
        return self.name != "reference"

    @property
    def has_small_products(self) -> bool:
        """Whether ``cpp.small_products`` can run."""
        return self.name == "cpp"

    def sum_rows(self, rows: Tensor, index: Tensor, n: int, *, ascending: bool = False) -> Tensor:
        """[n, ...] sums of rows [n_rows, ...] by index [n_rows] int64.

        Fused, they are added in the same order every time, on a GPU too (``row_sums``).
        """
        add = row_sums.sum_rows if self.fused else row_sums.add_rows
        return add(rows, index, n, ascending=ascending)

    def take_rows(self, values: Tensor, index: Tensor) -> Tensor:
        """[n_rows, ...] rows of values [n, ...]; their gradient is summed as by ``sum_rows``."""
        return row_sums.take_rows(values, index) if self.fused else values.index_select(0, index)


def backend_of(name: str, device: torch.device) -> Backend:
    """The backend that ``name`` (auto, or one of NAMES) means for tensors on a device.

    Raises InputError for an unknown name, or one that the device or this machine cannot run.
    """
    if name == "auto":
        return Backend(_fastest(device))
    check_choice("kernels", name, ("auto", *NAMES))
    if name == "cpp" and device.type != "cpu":
        raise InputError(f"kernels=cpp runs on the CPU, not on {device}; use kernels=auto")
    if name == "cpp" and find_compiler() is None:
        raise InputError(NO_COMPILER)
    if name == "cuda" and device.type != "cuda":
        raise InputError(
            f"kernels=cuda runs on NVIDIA GPUs, not on {device}; use kernels=auto, or "
            "cluster.device=cuda on a machine that has one"
        )
    if name == "cuda" and (problem := _no_cuda(device)):
        raise InputError(f"kernels=cuda cannot run: {problem}, or use kernels=reference")
    return Backend(name)


def _fastest(device: torch.device) -> str:
    """What ``auto`` chooses."""
    if device.type == "cuda":
        return "reference" if _no_cuda(device) else "cuda"
    return "cpp" if device.type == "cpu" and find_compiler() is not None else "reference"


def describe_choice(name: str, device: torch.device) -> str:
    """One line for the log: which backend ``name`` means on a device, and why."""
    chosen = backend_of(name, device).name
    if name != "auto":
        return f"kernels: {chosen}, as asked for"
    if chosen == "cpp":
        return f"kernels: cpp, compiled by {find_compiler()}"
    if chosen == "cuda":
        return f"kernels: cuda, compiled by NVRTC {cuda_compiler.version()}"
    reason = "there is no working C++ compiler on the PATH"
    if device.type != "cpu":
        reason = f"there are no compiled kernels for {device.type}"
    if device.type == "cuda":
        reason = _no_cuda(device) or ""
    return f"kernels: reference (PyTorch), because {reason}"


def _no_cuda(device: torch.device) -> str | None:
    """Why CUDA kernels cannot be compiled for a device, with what to do about it, or None."""
    missing = cuda_compiler.why_missing()
    if missing is not None:
        return f"{missing}; pip install 'mace-train[cuda]'"
    if torch.version.hip is not None:
        return "this PyTorch is built for AMD GPUs; use one built for CUDA"
    if torch.cuda.is_available():
        found = cuda_driver.architecture(device)
        if found not in cuda_compiler.architectures():
            return (
                f"NVRTC {cuda_compiler.version()} does not compile for {found}; install a version "
                "of nvidia-cuda-nvrtc that does"
            )
    return None
