"""How near the compiled kernels of a step come to the limits of the machine."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from machine import Machine, cpu_seconds, measure_machine

from mace_train.ops.codegen.kernel_spec import Kernel, Loop, Role
from mace_train.ops.cpp import compiler as cpp_compiler
from mace_train.ops.cpp.kernel import CppKernel


@dataclass(frozen=True)
class Limits:
    """Seconds of CPU time of one step."""

    step: float
    kernels: float  # in compiled kernels
    fma: float  # what their instructions take at the machine's peak
    bandwidth: float  # what their operands take, each moved once, at the machine's triad

    def __str__(self) -> str:
        return (
            f"compiled kernels are {self.kernels / self.step:.0%} of a step of "
            f"{1e3 * self.step:.1f} ms; multiply-adds alone would take "
            f"{self.fma / self.kernels:.0%} of their time, memory traffic "
            f"{self.bandwidth / self.kernels:.0%}"
        )


def limits_of_kernels(step: Callable[[], object], dtype: torch.dtype, repeats: int) -> Limits:
    """Runs the step a few times with a clock around every kernel."""
    machine = measure_machine(dtype)
    samples = [_one(step, machine) for _ in range(repeats)]
    steps, kernels, fma, bandwidth = (
        statistics.median(values) for values in zip(*samples, strict=True)
    )
    return Limits(steps, kernels, fma, bandwidth)


def _one(step: Callable[[], object], machine: Machine) -> tuple[float, float, float, float]:
    spent, fma, moved = 0.0, 0.0, 0.0
    run = CppKernel.run

    def timed(self: CppKernel, *arguments: Any) -> Any:
        nonlocal spent, fma, moved
        results: list[Any] = []
        spent += cpu_seconds(lambda: results.append(run(self, *arguments)))
        _, index, inputs, outputs, n_channels = arguments
        kernel = _kernel(self.recipe, self.build)
        n_rounds = len(index[0]) if kernel.loop is Loop.ROWS else len(index[1])
        n_vectors = n_channels * outputs[0].itemsize / cpp_compiler.register_width()
        fma += kernel.program.cost() * n_rounds * n_vectors / machine.fma_per_s
        pairs = {i for i, o in enumerate(kernel.outputs) if o.role is Role.PAIR}
        n_bytes = sum(t.nbytes for t in inputs)
        n_bytes += sum(t.nbytes / (2 if i in pairs else 1) for i, t in enumerate(outputs))
        moved += n_bytes / machine.bytes_per_s
        return results[0]

    with mock.patch.object(CppKernel, "run", timed):
        seconds = cpu_seconds(step)
    return seconds, spent, fma, moved


_KERNELS: dict[str, Kernel] = {}


def _kernel(recipe: str, build: Callable[[], Kernel]) -> Kernel:
    if recipe not in _KERNELS:
        _KERNELS[recipe] = build()
    return _KERNELS[recipe]
