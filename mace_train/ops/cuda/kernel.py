"""Runs compiled kernels on CUDA tensors.

Every block writes memory of its own, in an order of its own, so results are bitwise repeatable.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from mace_train.ops.codegen import kernel_cache
from mace_train.ops.codegen.kernel_spec import Kernel
from mace_train.ops.cuda import compiler as cuda_compiler
from mace_train.ops.cuda import driver as cuda_driver
from mace_train.ops.cuda.emit import emit_cuda
from mace_train.ops.cuda.launch import CudaTarget, LaunchConfig
from mace_train.ops.cuda.tuning import choices_of

SCALARS = {torch.float32: "float", torch.float64: "double"}


@dataclass
class CudaKernel:
    """A kernel that is generated and compiled when it first runs, for each dtype and width.

    ``recipe`` identifies it among all kernels that this package can generate.
    """

    recipe: str
    build: Callable[[], Kernel]
    _functions: dict[
        tuple[torch.dtype, int, torch.device], tuple[LaunchConfig, cuda_driver.Function]
    ] = field(default_factory=dict)

    def prepare(
        self,
        dtype: torch.dtype,
        n_channels: int,
        device: torch.device,
        folder: Path | None = None,
    ) -> tuple[LaunchConfig, cuda_driver.Function]:
        """How to launch on tensors of a dtype and a number of channels, and what."""
        key = (dtype, n_channels, device)
        if key not in self._functions:
            folder = folder or kernel_cache.cache_folder()
            architecture = cuda_driver.architecture(device)
            source = self.source(dtype, n_channels, folder, architecture)
            code = cuda_compiler.cubin(source, architecture, folder)
            self._functions[key] = LaunchConfig.of(source), cuda_driver.Function(code, device)
        return self._functions[key]

    def source(
        self, dtype: torch.dtype, n_channels: int, folder: Path, architecture: str | None = None
    ) -> str:
        """The CUDA source, from the cache if it is there, with what was measured to be fastest."""
        target = CudaTarget(SCALARS[dtype], n_channels)
        choices = choices_of(architecture)

        def generate() -> str:
            kernel = self.build()
            return emit_cuda(kernel, target, choices.tuning(kernel, target))

        recipe = f"{self.recipe} {target} {choices.digest}"
        return kernel_cache.source_of(recipe, ".cu", generate, folder)

    def run(
        self,
        n_items: int,
        index: Sequence[Tensor],
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        n_channels: int,
    ) -> None:
        """Compute the outputs, in place; all tensors are contiguous and on one device.

        Index tensors beyond those that the skeleton takes are for other backends.
        """
        if n_items == 0:
            return
        device, dtype = outputs[0].device, outputs[0].dtype
        launch, function = self.prepare(dtype, n_channels, device)
        tensors = (*index[: launch.indices], *inputs, *outputs)
        assert all(t.is_contiguous() and t.device == device for t in tensors)
        assert all(t.dtype == torch.int64 for t in index[: launch.indices])
        assert all(t.dtype == dtype for t in (*inputs, *outputs))
        pointers = [tensor.data_ptr() for tensor in tensors]
        function.launch(launch.grid(n_items), launch.threads, [n_items, *pointers])
