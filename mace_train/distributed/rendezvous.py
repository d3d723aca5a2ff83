"""How the ranks of a run connect through the launcher's key-value store.

``torchrun`` keeps one store for all attempts of a run, so after a rank was killed the restarted
ranks would read the addresses that the old ones left there, and every restart would fail. Here rank
0 of an attempt draws a random prefix, and every other rank asks for it with a random token: an
answer can only come from the rank 0 that runs now, and only to a rank that runs now. All further
keys have that prefix. Cost: a few requests per rank, once.
"""

import secrets
import socket
import time
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from mace_train.distributed.launcher import Launch
from mace_train.errors import InputError, LostRankError

_PAUSE_S = 0.01


def open_store(launch: Launch, timeout: timedelta) -> Any:
    """The store of this attempt, empty and shared by its ranks.

    Raises ``InputError`` for an address that cannot be used, ``LostRankError`` when a rank
    does not come within ``timeout``.
    """
    store = _connect(launch, timeout)
    if launch.rank == 0:
        return PrefixStore(_answer(store, launch.size, timeout), store)
    return PrefixStore(_ask(store, launch.rank, timeout), store)


def _connect(launch: Launch, timeout: timedelta) -> Any:
    """The launcher's store, hosted by torchrun, or by rank 0 where there is no torchrun."""
    address = f"{launch.host}:{launch.port}"
    try:
        socket.getaddrinfo(launch.host, launch.port)
    except OSError as error:
        raise InputError(
            f"rank {launch.rank}: the ranks are to meet at {launch.host}, which "
            f"{socket.gethostname()} cannot resolve ({error.strerror}); set MASTER_ADDR to a name "
            "or address of the first host that all hosts know"
        ) from None
    host = f"[{launch.host}]" if ":" in launch.host else launch.host
    url = f"tcp://{host}:{launch.port}?rank={launch.rank}&world_size={launch.size}"
    try:
        store, _, _ = next(iter(rendezvous(url, timeout=timeout)))
    except dist.DistNetworkError as error:
        text = str(error).splitlines()[0][:200]
        if launch.rank == 0 and "in use" in str(error):
            raise InputError(
                f"rank 0 cannot listen at {address}: the port is taken ({text}); set MASTER_PORT "
                "to another one, the same for all ranks"
            ) from None
        raise LostRankError(
            f"rank {launch.rank} on {socket.gethostname()} cannot reach rank 0 at {address} "
            f"({text}); is MASTER_ADDR the host of rank 0, and reachable from here?"
        ) from None
    return store


def _ask(store: Any, rank: int, timeout: timedelta) -> str:
    """The prefix of the attempt, from rank 0."""
    token = secrets.token_hex(8)
    store.set(f"asks/{rank}", token)
    try:
        store.wait([f"answer/{token}"], timeout)
    except dist.DistStoreError:
        raise LostRankError(
            f"rank {rank}: rank 0 did not appear within {timeout.total_seconds():.0f} s; see its "
            "output, or raise cluster.timeout_s"
        ) from None
    prefix = str(store.get(f"answer/{token}").decode())
    store.set(f"{prefix}/here/{rank}", "1")
    return prefix


def _answer(store: Any, size: int, timeout: timedelta) -> str:
    """Draw the prefix of the attempt and send it to all others."""
    prefix, answered = secrets.token_hex(8), set()
    missing = set(range(1, size))
    end = time.monotonic() + timeout.total_seconds()
    while missing:
        for rank in sorted(missing):
            if not store.check([f"asks/{rank}"]):
                continue
            token = store.get(f"asks/{rank}").decode()
            if token not in answered:  # the last token may be that of an earlier attempt
                store.set(f"answer/{token}", prefix)
                answered.add(token)
            if store.check([f"{prefix}/here/{rank}"]):
                missing.discard(rank)
        if missing and time.monotonic() > end:
            who = ", ".join(map(str, sorted(missing)[:8]))
            raise LostRankError(
                f"ranks {who} of {size} did not appear within {timeout.total_seconds():.0f} s; see "
                "their output, or raise cluster.timeout_s"
            )
        time.sleep(_PAUSE_S)
    return prefix
