"""What the ranks' heartbeats say about the one that hangs."""

import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta

import pytest
from torch.distributed import HashStore

from mace_train.distributed import heartbeat
from mace_train.distributed.heartbeat import Heartbeat

BEAT_S = 0.05


@pytest.fixture
def quick(monkeypatch):
    """Signs every 50 ms."""
    monkeypatch.setattr(heartbeat, "INTERVAL_S", BEAT_S)


@pytest.fixture
def ranks(quick):
    """Three ranks of this process on one store."""
    store = HashStore()
    made = [Heartbeat(store, rank, 3) for rank in range(3)]
    yield made
    for rank in made:
        rank.stop()


def test_a_rank_without_signs_is_named_with_where_it_was(ranks):
    for rank in ranks:
        rank.step, rank.phase = 4, "backward"
    time.sleep(4 * BEAT_S)
    ranks[2].stop()
    found = ranks[1].missing()
    assert found.startswith(f"rank 2 (process {os.getpid()} on ")
    assert found.endswith(", step 4, backward) is stopped, dead or cut off")
    assert "rank 0" not in found


def test_a_rank_that_runs_but_is_behind(ranks):
    for rank, step in zip(ranks, (8, 7, 8), strict=True):
        rank.step = step
    time.sleep(4 * BEAT_S)
    found = ranks[0].missing()
    assert found.startswith("rank 1 (")
    assert found.endswith("runs but is behind the others (step 8)")


def test_all_ranks_at_the_same_step_blame_the_network(ranks):
    time.sleep(4 * BEAT_S)
    assert "the network between them is at fault" in ranks[1].missing()


class Store:
    """A store that takes signs and does not answer."""

    def __init__(self, answer: Callable[[], None]) -> None:
        self.answer = answer

    def set(self, key: str, value: str) -> None:
        pass

    def wait(self, keys: list[str], timeout: timedelta) -> None:
        self.answer()
        raise RuntimeError("Connection reset by peer")


def test_a_store_that_has_gone(quick):
    alone = Heartbeat(Store(lambda: None), 1, 2)
    assert "the store does not answer (Connection reset by peer)" in alone.missing()
    alone.stop()


def test_a_store_that_hangs(quick):
    release = threading.Event()
    alone = Heartbeat(Store(release.wait), 1, 2)
    start = time.monotonic()
    found = alone.missing(patience_s=0.2)
    assert found == "the store does not answer: rank 0 or its host is stopped, gone or cut off"
    assert 0.2 <= time.monotonic() - start < 5
    release.set()
    alone.stop()


def test_no_signs_after_stop(ranks):
    for rank in ranks:
        rank.stop()
    assert not any(thread.name == "heartbeat" and thread.is_alive()
                   for thread in threading.enumerate())  # fmt: skip
