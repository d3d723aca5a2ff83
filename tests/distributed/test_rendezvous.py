"""The ranks of one attempt share a store that an earlier attempt has not written to."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from torch.distributed import HashStore, TCPStore

from mace_train.distributed import rendezvous
from mace_train.distributed.launcher import Launch
from mace_train.distributed.rendezvous import open_store
from mace_train.environment_variables import JOB_TOKEN
from mace_train.errors import InputError, LostRankError
from tests.train.ranks import free_port

SHORT, LONG = timedelta(seconds=1), timedelta(seconds=20)


def launch(rank: int, size: int, *, host: str = "127.0.0.1", port: int = 29500) -> Launch:
    return Launch(rank=rank, size=size, local_rank=rank, local_size=size, host=host, port=port)


@pytest.fixture
def store(monkeypatch) -> HashStore:
    """The store that torchrun would keep for all attempts."""
    kept = HashStore()
    monkeypatch.setattr(rendezvous, "_connect", lambda *_: kept)
    return kept


def attempt(size: int):
    """The stores of the ranks of one attempt; rank 0 comes last, when the others have asked."""
    with ThreadPoolExecutor(size) as pool:
        asking = [pool.submit(open_store, launch(rank, size), LONG) for rank in range(1, size)]
        time.sleep(0.1)
        first = open_store(launch(0, size), LONG)
        return [first, *(future.result() for future in asking)]


def test_all_ranks_share_a_store_of_their_own_attempt(store):
    for number in range(3):  # the second and third after a rank was killed
        ranks = attempt(4)
        assert not ranks[3].check(["address"])  # nothing of the attempt before
        ranks[0].set("address", str(number))
        assert [rank.get("address").decode() for rank in ranks] == [str(number)] * 4


def test_an_answer_to_a_dead_predecessor_is_not_taken(store):
    store.set("asks/1", "word-of-the-dead")
    store.set("answer/word-of-the-dead", "name-of-the-dead")
    ranks = attempt(2)
    ranks[0].set("key", "new")
    assert ranks[1].get("key") == b"new"
    assert not store.check(["name-of-the-dead/here/1"])


def tokens(monkeypatch, of_ranks: list[str | None]):
    """What ranks with these tokens come to: "met", or the error of each."""
    of_rank = dict(enumerate(of_ranks))
    monkeypatch.setattr(
        rendezvous.environment_variables, "job_token", lambda: (of_rank[own.rank] or "").encode()
    )

    def join(rank: int) -> str:
        own.rank = rank
        try:
            open_store(launch(rank, len(of_ranks)), LONG).set("key", "value")
        except InputError as error:
            return str(error)
        return "met"

    with ThreadPoolExecutor(len(of_ranks)) as pool:
        return list(pool.map(join, of_rank))


own = threading.local()
SECRET, OTHER = "0123456789abcdef", "fedcba9876543210"


def test_ranks_with_the_same_token_meet(store, monkeypatch):
    assert tokens(monkeypatch, [SECRET] * 3) == ["met"] * 3
    assert SECRET not in str([store.get(f"asks/{rank}") for rank in (1, 2)])


@pytest.mark.parametrize(
    ("of_ranks", "who"),
    [
        ([SECRET, SECRET, OTHER], "rank 2"),
        ([SECRET, None, SECRET], "rank 1"),
        ([None, SECRET, OTHER], r"rank 1 \(and 1 ranks more\)"),
    ],
)
def test_ranks_with_another_token_or_none_are_one_message_on_all(store, monkeypatch, of_ranks, who):
    start = time.monotonic()
    messages = tokens(monkeypatch, of_ranks)
    assert time.monotonic() - start < 15
    assert len(set(messages)) == 1
    assert re.match(rf"{who} has another MACE_TRAIN_JOB_TOKEN in the environment than rank 0, or "
                    r"only one of them has any; export the same", messages[0])  # fmt: skip
    assert SECRET not in messages[0]


JOIN = """
import sys
from mace_train.distributed.world import open_world
from mace_train.errors import InputError
from mace_train.settings import ClusterSettings
try:
    with open_world(ClusterSettings(device="cpu", timeout_s=100)):
        pass
except InputError as error:
    sys.exit(f"{error.exit_code} {error}")
"""


def test_processes_with_another_token_are_refused():
    launched = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", JOIN],
            env={**os.environ, **launched, "RANK": rank, "LOCAL_RANK": rank, JOB_TOKEN: token},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, token in (("0", SECRET), ("1", OTHER))
    ]
    for rank in ranks:
        _, stderr = rank.communicate(timeout=200)
        assert stderr.startswith(f"2 rank 1 has another {JOB_TOKEN} in the environment than rank 0")
        assert rank.returncode == 1


def test_an_answer_of_somebody_without_the_token_is_not_taken(store, monkeypatch):
    monkeypatch.setenv("MACE_TRAIN_JOB_TOKEN", SECRET)
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(open_store, launch(1, 2), LONG)
        while not store.check(["asks/1"]):
            time.sleep(0.01)
        nonce = json.loads(store.get("asks/1"))["nonce"]
        answer = {"prefix": "mine", "proof": "0" * 64, "refused": 0, "first": 0}
        store.set(f"answer/{nonce}", json.dumps(answer))
        with pytest.raises(InputError, match=r"is not from rank 0 of this job"):
            asking.result()
    assert not store.check(["mine/here/1"])


@pytest.mark.parametrize("junk", ["junk", "{}", "[" * 9000, '{"nonce": 1, "proof": "x"}'])
def test_junk_in_the_store_is_not_a_rank(store, junk):
    store.set("asks/1", junk)
    with pytest.raises(LostRankError, match=r"^ranks 1 of 2 did not appear within 1 s"):
        open_store(launch(0, 2), SHORT)


def test_ranks_that_do_not_come_are_named(store):
    with pytest.raises(LostRankError, match=r"^ranks 1, 2 of 3 did not appear within 1 s"):
        open_store(launch(0, 3), SHORT)


def test_a_rank_0_that_does_not_come(store):
    with pytest.raises(LostRankError, match=r"^rank 2: rank 0 did not appear within 1 s"):
        open_store(launch(2, 3), SHORT)


def test_a_host_that_has_no_address():
    with pytest.raises(InputError, match=r"rank 1: .*no\.such\.host\.invalid.*set MASTER_ADDR"):
        open_store(launch(1, 2, host="no.such.host.invalid"), SHORT)


def listening(port: int) -> list[str]:
    """The addresses at which this host listens at ``port``."""
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            address, number = local.split(":")
            if state == "0A" and int(number, 16) == port:
                words = [address[i : i + 8] for i in range(0, len(address), 8)]
                family = socket.AF_INET if table == "tcp" else socket.AF_INET6
                packed = b"".join(bytes.fromhex(word)[::-1] for word in words)
                found.append(socket.inet_ntop(family, packed))
    return found


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_ranks_of_one_host_listen_to_that_host_alone(host):
    port = free_port()
    store = open_store(launch(0, 1, host=host, port=port), SHORT)
    store.set("key", "value")
    (address,) = listening(port)
    assert address in ("127.0.0.1", "::1")


def test_ranks_of_several_hosts_listen_at_the_address_of_the_job_where_it_is_the_only_one(
    monkeypatch,
):
    where = ("10.1.2.3", 0)
    found = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", where)]
    bound = []
    monkeypatch.setattr(socket.socket, "bind", lambda self, where: bound.append(where))
    several = Launch(rank=0, size=4, local_size=2, host="node7")
    listener = rendezvous._listener(several, found)
    assert listener is not None
    listener.close()
    assert bound == [where]
    # others know this host by another address than 127.0.1.1, or by any of several
    debian = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.1.1", 0))]
    two = [*found, (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("10.9.2.3", 0))]
    assert rendezvous._listener(several, debian) is None
    assert rendezvous._listener(several, two) is None
    assert bound == [where]


def test_an_address_that_this_host_does_not_have_is_listened_for_on_all():
    found = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("192.0.2.1", 0))]  # of documentation
    assert rendezvous._listener(Launch(size=4, local_size=2), found) is None


def test_the_store_of_torchrun_is_joined_and_not_hosted(monkeypatch):
    port = free_port()
    kept = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    open_store(launch(0, 1, port=port), SHORT).set("key", "value")
    assert kept.num_keys() == 1


def test_a_port_that_is_taken():
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        message = rf"rank 0 cannot listen at 127\.0\.0\.1:{port}: the port is taken"
        with pytest.raises(InputError, match=message):
            open_store(launch(0, 1, port=port), SHORT)
