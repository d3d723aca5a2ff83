"""Where the time of an epoch goes: data, compute, communication, optimizer.

Compute ends when the gradient's norm is known, which waits for a GPU. On a GPU the sums over ranks
run during the backward pass, and the time they take beyond it counts as compute.
"""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from mace_train.distributed.world import World

PHASES = ("data", "compute", "communication", "optimizer")


class StepTimer:
    """Seconds per phase on this rank, and of compute per step."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self.compute_of_step: list[float] = []
        self._mark = 0.0

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count the block's time for the phase."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start

    def step_done(self) -> None:
        """Keep the compute time of one step."""
        self.compute_of_step.append(self.seconds["compute"] - self._mark)
        self._mark = self.seconds["compute"]

    def summary(self, world: World) -> dict[str, Any]:
        """Mean seconds per phase over ranks, and how long ranks waited for the slowest (on rank 0).

        ``straggler`` is the sum over steps of the longest compute time over the mean one, >= 1.
        """
        own = np.array([self.seconds[name] for name in PHASES])
        gathered = world.gather((own, np.array(self.compute_of_step), peak_memory_mb(world)))
        if not gathered:
            return {}
        mean = np.mean([seconds for seconds, _, _ in gathered], axis=0)
        steps = np.stack([compute for _, compute, _ in gathered])  # [ranks, steps]
        result: dict[str, Any] = {"memory_MB": max(memory for _, _, memory in gathered)}
        result |= {f"{name}_s": float(value) for name, value in zip(PHASES, mean, strict=True)}
        total = steps.mean(axis=0).sum()
        result["straggler"] = float(steps.max(axis=0).sum() / total) if total > 0 else 1.0
        return result


def peak_memory_mb(world: World) -> float:
    """Largest memory so far, in MB: allocated on the GPU, or resident of this process."""
    if world.device.type == "cuda":
        return torch.cuda.max_memory_allocated(world.device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6  # kB on Linux
