"""World: the processes of one run, their devices, and the few collectives that training uses.

With launcher.py the only module that reads the launcher's environment. ``torchrun`` sets RANK,
LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT; without them the run is one process. A launcher
that starts several processes without these variables would give independent runs that overwrite
each other's files, so that is an error.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mace_train.errors import InputError
from mace_train.launcher import launched_tasks
from mace_train.settings import ClusterSettings


@dataclass(frozen=True)
class World:
    """This process's place among the processes of the run."""

    rank: int = 0
    local_rank: int = 0
    size: int = 1
    local_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        """True on the one rank that prints and writes files."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The elementwise sum of ``tensor`` over all ranks, on every rank."""
        if self.size > 1:
            tensor = tensor.detach().clone()
            dist.all_reduce(tensor)
        return tensor

    def broadcast(self, value: Any) -> Any:
        """Rank 0's ``value`` (any small picklable object) on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def gather_all(self, value: Any) -> list[Any]:
        """Every rank's ``value`` in rank order, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def gather(self, value: Any) -> list[Any]:
        """Every rank's ``value`` in rank order on rank 0; an empty list on the others."""
        if self.size == 1:
            return [value]
        values: list[Any] | None = [None] * self.size if self.is_main else None
        dist.gather_object(value, values, dst=0)
        return values or []

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            dist.all_reduce(torch.zeros(1, device=self.device))


@contextmanager
def open_world(settings: ClusterSettings) -> Iterator[World]:
    """Join the run that the launcher started; leave it at the end of the block."""
    rank, local_rank, size, local_size = _ranks()
    device = _device(settings, local_rank, local_size)
    torch.set_num_threads(settings.num_threads or max(1, torch.get_num_threads() // local_size))
    if size > 1:
        backend = settings.backend
        if backend == "auto":
            backend = "nccl" if device.type == "cuda" else "gloo"
        if backend == "nccl" and device.type != "cuda":
            raise InputError("cluster.backend=nccl needs cluster.device=cuda; use gloo on the CPU")
        dist.init_process_group(backend, timeout=timedelta(seconds=settings.timeout_s))
    try:
        yield World(rank, local_rank, size, local_size, device)
    finally:
        if size > 1:
            dist.destroy_process_group()


def _ranks() -> tuple[int, int, int, int]:
    """(rank, local rank, world size, ranks on this host) from the environment."""
    environment = os.environ
    if "RANK" in environment and "WORLD_SIZE" in environment:
        missing = {"LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"} - environment.keys()
        if missing:
            raise InputError(
                f"RANK and WORLD_SIZE are set but not {', '.join(sorted(missing))}; start with "
                "`torchrun --nproc-per-node N -m mace_train train ...`, or unset RANK"
            )
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
        rank, local_rank, size = (int(environment[name]) for name in names)
        return rank, local_rank, size, int(environment.get("LOCAL_WORLD_SIZE", size))
    tasks = launched_tasks()
    if tasks is not None:
        raise InputError(
            f"{tasks.variable}={tasks.size}: several tasks were started without torchrun's "
            "variables, each would train alone; start one task per node that runs "
            "`torchrun --nnodes ... --nproc-per-node ... -m mace_train train ...`"
        )
    return 0, 0, 1, 1


def _device(settings: ClusterSettings, local_rank: int, local_size: int) -> torch.device:
    """The device of this rank: its own GPU, or the CPU."""
    kind = settings.device
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cpu":
        return torch.device("cpu")
    n_gpus = torch.cuda.device_count()
    if n_gpus == 0:
        raise InputError("cluster.device=cuda but PyTorch sees no CUDA device; use device=cpu")
    if local_size > n_gpus and n_gpus > 1:
        raise InputError(
            f"{local_size} ranks on this host but {n_gpus} visible GPUs; "
            f"use torchrun --nproc-per-node {n_gpus}"
        )
    device = torch.device("cuda", local_rank % n_gpus)
    torch.cuda.set_device(device)
    return device
