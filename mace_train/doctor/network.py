"""Checks of the network between ranks: all-reduce, and the names of their hosts."""

import socket
import time

import torch
import torch.distributed as dist

from mace_train.distributed.world import World
from mace_train.doctor.check_result import CheckResult, Verdict, first_problem
from mace_train.settings import DoctorSettings

_SUMS = 5  # timed, after one that warms up
_SLOW_MB_PER_S = 50.0  # a gigabit network gives about 100


def all_reduce(world: World, settings: DoctorSettings) -> list[CheckResult]:
    """Time and bandwidth of a sum over all ranks, and whether it is right.

    The bandwidth is that of the busiest link: 2 (n - 1) / n times the size, per second.
    """
    if world.size == 1:
        return [CheckResult(Verdict.OK, "one rank: nothing to sum")]
    large = torch.full((int(settings.message_mb * 1e6 / 4),), 1.0, device=world.device)
    seconds = _seconds(world, large)
    latency = _seconds(world, torch.ones(1, device=world.device))
    is_right = bool((world.sum(torch.ones(3, device=world.device)) == world.size).all())
    size_mb = large.numel() * 4 / 1e6
    bandwidth = 2 * (world.size - 1) / world.size * size_mb / seconds
    text = (
        f"{dist.get_backend()}, {world.size} ranks: {size_mb:.3g} MB in {1e3 * seconds:.3g} ms, "
        f"{bandwidth:.4g} MB/s; one number in {1e6 * latency:.3g} us"
    )
    results = first_problem(
        world,
        None if is_right else f"rank {world.rank}: a sum over ranks is wrong",
        text,
        "run again with NCCL_DEBUG=INFO; try cluster.backend=gloo",
    )
    if bandwidth < _SLOW_MB_PER_S:
        remedy = "NCCL_DEBUG=INFO shows the network in use; set NCCL_SOCKET_IFNAME to the fast one"
        results.append(CheckResult(Verdict.WARN, f"{bandwidth:.3g} MB/s is slow", remedy))
    return results


def _seconds(world: World, tensor: torch.Tensor) -> float:
    """Seconds of one sum of ``tensor``."""
    dist.all_reduce(tensor.clone())
    world.barrier()
    start = time.monotonic()
    for _ in range(_SUMS):
        dist.all_reduce(tensor)
        tensor.fill_(1.0)
    if world.device.type == "cuda":
        torch.cuda.synchronize()
    return (time.monotonic() - start) / _SUMS


def names(world: World, settings: DoctorSettings) -> list[CheckResult]:
    """Whether every host finds an address of its own name that others can use."""
    name = socket.gethostname()
    try:
        address = socket.getaddrinfo(name, None)[0][4][0]
    except OSError as error:
        address = f"nothing ({error.strerror})"
    hosts = world.gather_all((name, str(address)))
    n_hosts = len({host for host, _ in hosts})
    local = [f"{host} -> {found}" for host, found in hosts if found.startswith(("127.", "nothing"))]
    text = f"{n_hosts} hosts: {', '.join(sorted({host for host, _ in hosts})[:4])}"
    if n_hosts > 1 and local:
        remedy = "set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the network between the hosts"
        return [
            CheckResult(Verdict.WARN, f"{text}; {local[0]} cannot be reached by others", remedy)
        ]
    return [CheckResult(Verdict.OK, text)]
