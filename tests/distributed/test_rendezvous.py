"""The ranks of one attempt share a store that an earlier attempt has not written to."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch.distributed import HashStore

from mace_train.distributed import rendezvous
from mace_train.distributed.launcher import Launch
from mace_train.distributed.rendezvous import open_store
from mace_train.errors import InputError, LostRankError

SHORT, LONG = timedelta(seconds=1), timedelta(seconds=20)


def launch(rank: int, size: int, *, host: str = "127.0.0.1", port: int = 29500) -> Launch:
    return Launch(rank=rank, size=size, local_rank=rank, local_size=size, host=host, port=port)


@pytest.fixture
def store(monkeypatch) -> HashStore:
    """The store that torchrun would keep for all attempts."""
    kept = HashStore()
    monkeypatch.setattr(rendezvous, "rendezvous", lambda *_, **__: iter([(kept, 0, 1)]))
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


def test_ranks_that_do_not_come_are_named(store):
    with pytest.raises(LostRankError, match=r"^ranks 1, 2 of 3 did not appear within 1 s"):
        open_store(launch(0, 3), SHORT)


def test_a_rank_0_that_does_not_come(store):
    with pytest.raises(LostRankError, match=r"^rank 2: rank 0 did not appear within 1 s"):
        open_store(launch(2, 3), SHORT)


def test_a_host_that_has_no_address():
    with pytest.raises(InputError, match=r"rank 1: .*no\.such\.host\.invalid.*set MASTER_ADDR"):
        open_store(launch(1, 2, host="no.such.host.invalid"), SHORT)


def test_a_port_that_is_taken():
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        message = rf"rank 0 cannot listen at 127\.0\.0\.1:{port}: the port is taken"
        with pytest.raises(InputError, match=message):
            open_store(launch(0, 1, port=port), SHORT)
