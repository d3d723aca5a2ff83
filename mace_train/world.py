"""World: the processes of one run, their devices, and the few collectives that training uses.

With launcher.py the only module that reads the launcher's environment. ``torchrun`` sets RANK,
LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT; without them the run is one process. A launcher
that starts several processes without these variables would give independent runs that overwrite
each other's files, so that is an error.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore

from mace_train.errors import InputError
from mace_train.heartbeat import Heartbeat
from mace_train.launcher import launched_tasks
from mace_train.rendezvous import meet
from mace_train.settings import ClusterSettings

# What the messages of a collective that failed contain.
_COLLECTIVE_ERRORS = (
    "imed out",
    "Connection closed by peer",
    "Connection reset",
    "Broken pipe",
    "Read error",
    "Write error",
    "NCCL",
    "gloo",
)

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class World:
    """This process's place among the processes of the run."""

    rank: int = 0
    local_rank: int = 0
    size: int = 1
    local_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    timeout_s: int = 600
    restarted: bool = False  # by torchrun, after the failure of a rank
    heartbeat: Heartbeat | None = None
    control: Any = None  # gloo group for small messages that no GPU has to wait for

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

    def sum_later(self, values: Tensor) -> Callable[[], Tensor]:
        """Start to sum ``values`` (on the CPU) over all ranks; the returned function waits."""
        if self.size == 1:
            return lambda: values
        total = values.detach().clone()
        work = dist.all_reduce(total, group=self.control, async_op=True)

        def wait() -> Tensor:
            work.wait()
            return total

        return wait

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

    def from_main(self, function: Callable[[], _Value]) -> _Value:
        """Rank 0's ``function()`` on every rank; its ``InputError`` is raised on all of them."""
        outcome: tuple[_Value | None, str | None] = (None, None)
        if self.is_main:
            try:
                outcome = function(), None
            except InputError as error:
                outcome = None, str(error)
        value, message = self.broadcast(outcome)
        if message is not None:
            raise InputError(message)
        return value

    def signal_life(self, step: int, phase: str) -> None:
        """Note for the others what this rank is about to do."""
        if self.heartbeat is not None:
            self.heartbeat.step, self.heartbeat.phase = step, phase

    def explain(self, error: Exception) -> InputError | None:
        """What to tell the user when a collective failed; None if it is no such error."""
        text = str(error)
        if self.size == 1 or not any(mark in text for mark in _COLLECTIVE_ERRORS):
            return None
        assert self.heartbeat is not None
        waited = "timed out" in text.lower()
        what = f"no answer within cluster.timeout_s={self.timeout_s}" if waited else "a rank died"
        return InputError(
            f"{what}: {self.heartbeat.missing()}; restart_latest=true continues from the last "
            f"checkpoint ({text.splitlines()[0][:200]})"
        )

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
    world = World(rank, local_rank, size, local_size, device, settings.timeout_s)
    if size == 1:
        yield world
        return
    yield from _joined(world, settings)


def _joined(world: World, settings: ClusterSettings) -> Iterator[World]:
    """The world with its process groups, which are left at the end."""
    backend = settings.backend
    if backend == "auto":
        backend = "nccl" if world.device.type == "cuda" else "gloo"
    if backend == "nccl" and world.device.type != "cuda":
        raise InputError("cluster.backend=nccl needs cluster.device=cuda; use gloo on the CPU")
    timeout = timedelta(seconds=settings.timeout_s)
    store = meet(timeout)
    dist.init_process_group(
        backend,
        store=PrefixStore("groups", store),
        rank=world.rank,
        world_size=world.size,
        timeout=timeout,
    )
    heartbeat = Heartbeat(store.clone(), world.rank, world.size)
    control = dist.new_group(backend="gloo", timeout=timeout)
    world = replace(world, heartbeat=heartbeat, control=control)
    attempts = world.gather_all(int(os.environ.get("TORCHELASTIC_RESTART_COUNT") or "0"))
    try:
        yield replace(world, restarted=any(attempts))
    finally:
        heartbeat.stop()
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
