"""World: the processes of one run, their devices, and the few collectives that training uses.

launcher.py says which processes belong together. Ranks that share a GPU by mistake, or of which
only some have one, are an error: they would train slowly without a message.

What ranks send each other is never a pickle (messages.py). Pickled are only the tasks of tasks/,
between a process and the workers that it started, through pipes (processes.py), or over MPI, whose
launcher connects the ranks (mpi.py); and what a loader's workers return, through pipes as well.
"""

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore

from mace_train import environment_variables, interrupts
from mace_train.checks import check_cores
from mace_train.distributed.heartbeat import Heartbeat
from mace_train.distributed.launcher import Launch, detect, job_gpus
from mace_train.distributed.messages import decode, decode_record, encode, encode_record
from mace_train.distributed.rendezvous import open_store
from mace_train.errors import InputError, LostRankError, system_error, with_exit_code
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

# Threads of gloo drop the tensors of their last works, for which they need the GIL; PyTorch waits
# for these threads with the GIL held when a process group ends, so they must be done before.
_LAST_WORKS_S = 0.1

_LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class World:
    """Rank, size and device of this process in the run."""

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
        """The elementwise sum of ``tensor`` (any shape, the same everywhere) over all ranks."""
        if self.size > 1:
            tensor = tensor.detach().clone()
            dist.all_reduce(tensor)
        return tensor

    def all_reduce_async(self, values: Tensor) -> Callable[[], Tensor]:
        """Start to sum ``values`` (on the CPU, any shape); the function returned waits for it."""
        if self.size == 1:
            return lambda: values
        total = values.detach().clone()
        work = dist.all_reduce(total, group=self.control, async_op=True)

        def wait() -> Tensor:
            work.wait()
            return total

        return wait

    def broadcast(self, value: Any) -> Any:
        """Rank 0's ``value`` (plain values, arrays and tensors, see messages.py) on every rank."""
        if self.size == 1:
            return value
        own = _bytes_of(value if self.is_main else None, self.device)
        length = torch.tensor([len(own)], device=self.device)
        dist.broadcast(length, src=0)
        if not self.is_main:
            own = own.new_empty(int(length))
        dist.broadcast(own, src=0)
        return value if self.is_main else _value_of(own, 0)

    def gather_all(self, value: Any) -> list[Any]:
        """Every rank's ``value`` (as for broadcast) in rank order, on every rank."""
        if self.size == 1:
            return [value]
        own, lengths = self._padded(value)
        all_bytes = [torch.empty_like(own) for _ in lengths]
        dist.all_gather(all_bytes, own)
        return _values_of(all_bytes, lengths)

    def gather(self, value: Any) -> list[Any]:
        """Every rank's ``value`` in rank order on rank 0; an empty list on the others."""
        if self.size == 1:
            return [value]
        own, lengths = self._padded(value)
        all_bytes = [torch.empty_like(own) for _ in lengths] if self.is_main else None
        dist.gather(own, all_bytes, dst=0)
        return [] if all_bytes is None else _values_of(all_bytes, lengths)

    def _padded(self, value: Any) -> tuple[Tensor, list[int]]:
        """(bytes of the message, as many as the longest of all ranks has; the lengths of all)."""
        own = _bytes_of(value, self.device)
        lengths = torch.zeros(self.size, dtype=torch.int64, device=self.device)
        lengths[self.rank] = len(own)
        dist.all_reduce(lengths)
        longest = int(lengths.max())
        return torch.nn.functional.pad(own, (0, longest - len(own))), lengths.tolist()

    def broadcast_result(self, function: Callable[[], _Value]) -> _Value:
        """Rank 0's ``function()`` on every rank.

        Its ``InputError``, or error of the system, is raised on all, with the same exit code.
        """
        value: _Value | None = None
        failure: InputError | None = None
        if self.is_main:
            try:
                value = function()
            except Exception as error:
                failure = system_error(error)
                if failure is None:
                    raise
        value, failure_parts = self.broadcast((value, _parts(failure)))
        if failure_parts is not None:
            raise with_exit_code(*failure_parts)
        return cast(_Value, value)

    def raise_on_all_ranks(self, error: InputError | None) -> None:
        """The error of the first rank that has one, on every rank; costs one small all-reduce."""
        found = self.all_reduce_async(torch.tensor([int(error is not None)]))()
        if found.item():
            errors = [parts for parts in self.gather_all(_parts(error)) if parts is not None]
            more = f" (and {len(errors) - 1} ranks more)" if len(errors) > 1 else ""
            message, exit_code = errors[0]
            raise with_exit_code(message + more, exit_code)

    def report_progress(self, step: int, phase: str) -> None:
        """Set the step and phase that this rank's heartbeat shows to the others."""
        if self.heartbeat is not None:
            self.heartbeat.step, self.heartbeat.phase = step, phase

    def explain(self, error: Exception) -> InputError | None:
        """The error to raise when a collective failed; None if ``error`` is of another sort.

        Raises ``KeyboardInterrupt`` where it failed because a rank was interrupted.
        """
        text = str(error)
        if self.size == 1 or not any(mark in text for mark in _COLLECTIVE_ERRORS):
            return None
        assert self.heartbeat is not None
        if self.heartbeat.is_interrupted():
            raise KeyboardInterrupt from error
        waited = "timed out" in text.lower()
        what = f"no answer within cluster.timeout_s={self.timeout_s}" if waited else "a rank died"
        return LostRankError(
            f"{what}: {self.heartbeat.missing()}; restart_latest=true continues from the last "
            f"checkpoint ({text.splitlines()[0][:200]})"
        )

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            dist.all_reduce(torch.zeros(1, device=self.device))


def _parts(error: InputError | None) -> tuple[str, int] | None:
    """What of an error is sent to other ranks."""
    return None if error is None else (str(error), error.exit_code)


def _bytes_of(value: Any, device: torch.device) -> Tensor:
    """The message of ``value``, [n] uint8."""
    return torch.frombuffer(encode(value), dtype=torch.uint8).to(device)


def _value_of(message: Tensor, rank: int) -> Any:
    """The value that ``rank`` has sent."""
    try:
        return decode(message.cpu().numpy().data)
    except ValueError as error:
        raise LostRankError(f"what rank {rank} sent cannot be read: {error}") from None


def _values_of(messages: list[Tensor], lengths: list[int]) -> list[Any]:
    pairs = zip(messages, lengths, strict=True)
    return [_value_of(message[:length], rank) for rank, (message, length) in enumerate(pairs)]


@contextmanager
def open_world(settings: ClusterSettings) -> Iterator[World]:
    """Join the run that the launcher started; all ranks leave it together at the end."""
    check_cores("cluster.num_threads", settings.num_threads)
    check_cores("cluster.num_workers", settings.num_workers)
    launch = detect()
    device = _device(settings, launch)
    torch.set_num_threads(_threads(settings, launch))
    numbers = (launch.rank, launch.local_rank, launch.size, launch.local_size)
    world = World(*numbers, device, settings.timeout_s)
    if launch.size == 1:
        yield world
        return
    yield from _joined(world, launch, settings)


def _joined(world: World, launch: Launch, settings: ClusterSettings) -> Iterator[World]:
    """The world with its process groups, which are left at the end."""
    backend = settings.backend
    if backend == "auto":
        backend = "nccl" if world.device.type == "cuda" else "gloo"
    if backend == "nccl" and world.device.type != "cuda":
        raise InputError("cluster.backend=nccl needs cluster.device=cuda; use gloo on the CPU")
    timeout = timedelta(seconds=settings.timeout_s)
    store = open_store(launch, timeout)
    if launch.local_size == launch.size:  # gloo would listen to the network as well
        environment_variables.set_default("GLOO_SOCKET_IFNAME", _LOOPBACK)
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
    try:
        world.raise_on_all_ranks(device_conflict(store, world.rank, _name_of(world.device)))
        attempt = environment_variables.number("TORCHELASTIC_RESTART_COUNT") or 0
        attempts = world.all_reduce_async(torch.tensor([attempt]))()
        yield replace(world, restarted=bool(attempts.item()))
        _barrier_at_exit(world)
    except SystemExit as end:
        if end.code in (0, os.EX_TEMPFAIL, interrupts.EXIT_CODE):
            _barrier_at_exit(world)
        raise
    finally:
        heartbeat.stop()
        time.sleep(_LAST_WORKS_S)
        dist.destroy_process_group()


def _barrier_at_exit(world: World) -> None:
    """Wait for the slowest: a launcher may end the others some time after the first has left."""
    try:
        dist.barrier(group=world.control)
    except RuntimeError as error:
        raise world.explain(error) or error from error


def device_conflict(store: Any, rank: int, device: str) -> InputError | None:
    """An error if this rank shares its GPU with another, or only some ranks have one; else None.

    Each rank claims its device in the store, and the first to claim it has it: two requests a
    rank, however many there are.
    """
    host, kind = socket.gethostname(), device.split()[0]
    first = _first_claim(store, "device/kind", rank, kind)
    if first["kind"] != kind:
        return InputError(
            f"rank {rank} on {host} uses a {kind}, rank {first['rank']} a {first['kind']}: all "
            "ranks must use the same; check the driver of that host (nvidia-smi), or use "
            "cluster=cpu"
        )
    if kind == "cpu":
        return None
    owner = _first_claim(store, f"device/{host}/{device}", rank, kind)["rank"]
    if owner == rank:
        return None
    return InputError(
        f"ranks {owner} and {rank} on {host} share one GPU ({device}); start one rank per GPU: "
        "srun --ntasks-per-node=GPUS --gpus-per-node=GPUS, or torchrun --nproc-per-node GPUS"
    )


def _first_claim(store: Any, key: str, rank: int, kind: str) -> dict[str, Any]:
    """The record of the rank that claimed this first, which is this one if none has."""
    try:
        record = store.compare_set(key, "", encode_record(rank=rank, kind=kind))
        return decode_record(record, rank=int, kind=str)
    except ValueError as error:
        raise LostRankError(f"the ranks' store holds something else at {key}: {error}") from None


def _name_of(device: torch.device) -> str:
    """Kind and identity of a device, the same from every process that can use it."""
    if device.type == "cpu":
        return "cpu"
    return f"{device.type} {torch.cuda.get_device_properties(device).uuid}"


def _threads(settings: ClusterSettings, launch: Launch) -> int:
    """CPU threads of this process: as set, as the launcher says, or a share of the host."""
    if settings.num_threads is not None:
        return settings.num_threads
    if environment_variables.threads() is not None:
        return torch.get_num_threads()
    return max(1, torch.get_num_threads() // launch.local_size)


def _device(settings: ClusterSettings, launch: Launch) -> torch.device:
    """The device of this rank: its own GPU, or the CPU."""
    kind = settings.device
    n_gpus = torch.cuda.device_count()
    granted = job_gpus()
    if kind != "cpu" and n_gpus == 0 and granted is not None:
        raise InputError(
            f"the job has GPUs ({granted}) but PyTorch {torch.__version__} sees none (CUDA "
            f"{torch.version.cuda or 'not built in'}); install a PyTorch with CUDA, check "
            "nvidia-smi on this host, or say cluster=cpu to train on the CPU"
        )
    if kind == "auto":
        kind = "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cpu":
        return torch.device("cpu")
    if n_gpus == 0:
        raise InputError("cluster.device=cuda but PyTorch sees no CUDA device; use device=cpu")
    if launch.local_size > n_gpus > 1:
        raise InputError(
            f"{launch.local_size} ranks on this host but {n_gpus} visible GPUs; start one rank per "
            f"GPU: srun --ntasks-per-node={n_gpus}, or torchrun --nproc-per-node {n_gpus}"
        )
    device = torch.device("cuda", launch.local_rank % n_gpus)
    torch.cuda.set_device(device)
    return device
