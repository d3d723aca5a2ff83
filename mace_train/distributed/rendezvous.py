"""How the ranks of a run connect through the launcher's key-value store.

``torchrun`` keeps one store for all attempts of a run, so after a rank was killed the restarted
ranks would read the addresses that the old ones left there, and every restart would fail. Here rank
0 of an attempt draws a random prefix, and every other rank asks for it with a random nonce: an
answer can only come from the rank 0 that runs now, and only to a rank that runs now. All further
keys have that prefix. Cost: a few requests per rank, once.

Any program that reaches the port of the store can read and write all of it: it knows no password.
So it listens on the address of the job alone where that is possible (``_listener``), which for
ranks on one host is the loopback interface; torchrun's own store listens on all addresses. With
MACE_TRAIN_JOB_TOKEN in the environment of all ranks, each proves that it knows the token before it
gets the prefix, and rank 0 does so to the others: processes of other jobs cannot join by mistake,
and nobody can who does not watch the store. It does not make a hostile network safe.
"""

import hashlib
import hmac
import secrets
import socket
import time
from contextlib import suppress
from datetime import timedelta
from typing import Any, NoReturn

import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import PrefixStore

from mace_train import environment_variables
from mace_train.distributed.launcher import Launch
from mace_train.distributed.messages import decode_record, encode_record
from mace_train.environment_variables import JOB_TOKEN
from mace_train.errors import InputError, LostRankError

_PAUSE_S = 0.01
_GRACE_S = 30.0  # for the other ranks to ask, when one has another token, so that all are told
_TOLD_S = 5.0
_QUEUE = 4096  # connections that wait to be accepted


def open_store(launch: Launch, timeout: timedelta) -> Any:
    """The store of this attempt, empty and shared by its ranks.

    Raises ``InputError`` for an address that cannot be used and for ranks with another token of
    the job, ``LostRankError`` when a rank does not come within ``timeout``.
    """
    token = environment_variables.job_token()
    store = _connect(launch, timeout)
    try:
        if launch.rank == 0:
            return PrefixStore(_answer(store, launch.size, token, timeout), store)
        return PrefixStore(_ask(store, launch, token, timeout), store)
    except dist.DistError as error:  # the store ends with the process that keeps it
        raise LostRankError(
            f"rank {launch.rank}: the store at {launch.host}:{launch.port} does not answer any "
            f"more ({_first_line(error)}); see the output of rank 0"
        ) from None


def _connect(launch: Launch, timeout: timedelta) -> Any:
    """The launcher's store, hosted by torchrun, or by rank 0 where there is no torchrun."""
    address = f"{launch.host}:{launch.port}"
    by_torchrun = environment_variables.text("TORCHELASTIC_USE_AGENT_STORE") == "True"
    is_server = launch.rank == 0 and not by_torchrun
    try:
        found = socket.getaddrinfo(launch.host, launch.port, type=socket.SOCK_STREAM)
        listener = _listener(launch, found) if is_server else None
        return TCPStore(
            launch.host,
            launch.port,
            is_master=is_server,
            timeout=timeout,
            wait_for_workers=False,
            multi_tenant=True,  # a store that this process keeps there already is used again
            master_listen_fd=None if listener is None else listener.detach(),
        )
    except socket.gaierror as error:
        raise InputError(
            f"rank {launch.rank}: the ranks are to meet at {launch.host}, which "
            f"{socket.gethostname()} cannot resolve ({error.strerror}); set MASTER_ADDR to a name "
            "or address of the first host that all hosts know"
        ) from None
    except (OSError, dist.DistError) as error:
        text = _first_line(error)
        if is_server and "in use" in str(error):
            raise InputError(
                f"rank 0 cannot listen at {address}: the port is taken ({text}); set MASTER_PORT "
                "to another one, the same for all ranks"
            ) from None
        raise LostRankError(
            f"rank {launch.rank} on {socket.gethostname()} cannot reach rank 0 at {address} "
            f"({text}); set MASTER_ADDR to the host of rank 0, by the address that other hosts know"
        ) from None


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200]


def _listener(launch: Launch, found: list[Any]) -> socket.socket | None:
    """A socket that listens on the address of the job alone; None for one on all addresses.

    Other hosts may know this one by another of its addresses. So where ranks run on several hosts
    the name must have a single address here, not a loopback one as on many Debian hosts.
    """
    addresses = {where[0]: (family, where) for family, _, _, _, where in found}
    is_loopback = [address == "::1" or address.startswith("127.") for address in addresses]
    alone = launch.local_size == launch.size and all(is_loopback)
    if not alone and (len(addresses) > 1 or any(is_loopback)):
        return None
    for family, where in addresses.values():
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # after a restart
            listener.bind(where)
            listener.listen(_QUEUE)
            return listener
        except OSError:
            listener.close()
    return None  # not an address of this host's own, as behind a translating router; or in use


def _proof(token: bytes, *words: str) -> str:
    """What only those can compute who know the token."""
    return hmac.new(token, "\0".join(words).encode(), hashlib.sha256).hexdigest()


def _ask(store: Any, launch: Launch, token: bytes, timeout: timedelta) -> str:
    """The prefix of the attempt, from rank 0."""
    nonce, rank = secrets.token_hex(8), launch.rank
    store.set(f"asks/{rank}", encode_record(nonce=nonce, proof=_proof(token, "ask", nonce)))
    try:
        store.wait([f"answer/{nonce}"], timeout)
    except dist.DistStoreError:
        raise LostRankError(
            f"rank {rank}: rank 0 did not appear within {timeout.total_seconds():.0f} s; see its "
            "output, or raise cluster.timeout_s"
        ) from None
    try:
        answer = decode_record(
            store.get(f"answer/{nonce}"), prefix=str, proof=str, refused=int, first=int
        )
    except ValueError:
        answer = {"prefix": "", "proof": "", "refused": 0}
    if answer["refused"]:
        store.set(f"refused/{rank}", "1")
        raise InputError(_refusal(answer["refused"], answer["first"]))
    if not hmac.compare_digest(answer["proof"], _proof(token, "answer", nonce, answer["prefix"])):
        raise InputError(
            f"rank {rank}: the answer at {launch.host}:{launch.port} is not from rank 0 of this "
            f"job ({JOB_TOKEN}); set MASTER_PORT to another port, the same for all ranks"
        )
    store.set(f"{answer['prefix']}/here/{rank}", "1")
    return str(answer["prefix"])


def _answer(store: Any, size: int, token: bytes, timeout: timedelta) -> str:
    """Draw the prefix of the attempt and send it to all others, once all have asked."""
    prefix = secrets.token_hex(16)
    answered: set[str] = set()
    missing = set(range(1, size))
    end = time.monotonic() + timeout.total_seconds()
    end_of_grace = end
    while missing:
        asks = {rank: ask for rank in sorted(missing) if (ask := _nonce(store, rank, token))}
        others = [rank for rank, (_, is_ours) in asks.items() if not is_ours]
        if others:
            end_of_grace = min(end_of_grace, time.monotonic() + _GRACE_S)
        if others and (len(asks) == len(missing) or time.monotonic() > end_of_grace):
            _refuse(store, asks, others)
        if len(asks) == len(missing):
            for nonce in {nonce for nonce, _ in asks.values()} - answered:
                # the nonce may be that of an earlier attempt: the rank will ask again
                proof = _proof(token, "answer", nonce, prefix)
                answer = encode_record(prefix=prefix, proof=proof, refused=0, first=0)
                store.set(f"answer/{nonce}", answer)
                answered.add(nonce)
            missing = {rank for rank in missing if not store.check([f"{prefix}/here/{rank}"])}
        if missing and time.monotonic() > end:
            who = ", ".join(map(str, sorted(missing - asks.keys() or missing)[:8]))
            raise LostRankError(
                f"ranks {who} of {size} did not appear within {timeout.total_seconds():.0f} s; see "
                "their output, or raise cluster.timeout_s"
            )
        time.sleep(_PAUSE_S)
    return prefix


def _nonce(store: Any, rank: int, token: bytes) -> tuple[str, bool] | None:
    """(nonce, whether it comes with the token of this job) if the rank has asked, else None."""
    key = f"asks/{rank}"
    if not store.check([key]):
        return None
    try:
        ask = decode_record(store.get(key), nonce=str, proof=str)
    except ValueError:  # of something else
        return None
    return ask["nonce"], hmac.compare_digest(ask["proof"], _proof(token, "ask", ask["nonce"]))


def _refuse(store: Any, asks: dict[int, tuple[str, bool]], others: list[int]) -> NoReturn:
    """Tell the ranks that have asked, then raise the same InputError here."""
    record = encode_record(prefix="", proof="", refused=len(others), first=others[0])
    for nonce, _ in asks.values():
        store.set(f"answer/{nonce}", record)
    with suppress(dist.DistStoreError):  # until they have read it: the store ends with this process
        store.wait([f"refused/{rank}" for rank in asks], timedelta(seconds=_TOLD_S))
    raise InputError(_refusal(len(others), others[0]))


def _refusal(n_ranks: int, first: int) -> str:
    more = f" (and {n_ranks - 1} ranks more)" if n_ranks > 1 else ""
    return (
        f"rank {first}{more} has another {JOB_TOKEN} in the environment than rank 0, or only one "
        "of them has any; export the same to all ranks, or unset it everywhere"
    )
