"""A cable is cut: hosts in network namespaces of their own, joined by a bridge (Linux, root)."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mace_train.errors import LostRankError
from tests.conftest import TINY_MODEL
from tests.train.processes import LINUX, REFERENCE, records_so_far, wait_for

N_HOSTS = 3
TIMEOUT_S = 6
NAME = f"mt{os.getpid()}"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def within(host: str, *words: str) -> None:
    ip("netns", "exec", f"{NAME}-{host}", *words)


@pytest.fixture
def hosts() -> Iterator[None]:
    """Hosts 0, 1, 2 with the addresses 10.91.0.1, .2, .3, and a hub with their ports."""
    names = ["hub", *map(str, range(N_HOSTS))]
    try:
        try:
            for name in names:
                ip("netns", "add", f"{NAME}-{name}")
            within("hub", "ip", "link", "add", "bridge", "type", "bridge")
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"network namespaces are not permitted here ({error})")
        within("hub", "ip", "link", "set", "bridge", "up")
        for host in map(str, range(N_HOSTS)):
            here, there = ("netns", f"{NAME}-{host}"), ("netns", f"{NAME}-hub")
            ip("-n", here[1], "link", "add", "eth0", "type", "veth", "peer", f"port{host}", *there)
            within("hub", "ip", "link", "set", f"port{host}", "master", "bridge", "up")
            within(host, "ip", "address", "add", f"10.91.0.{int(host) + 1}/24", "dev", "eth0")
            within(host, "ip", "link", "set", "eth0", "up")
            within(host, "ip", "link", "set", "lo", "up")
        yield
    finally:
        for name in names:
            subprocess.run(
                ["ip", "netns", "del", f"{NAME}-{name}"], check=False, capture_output=True
            )


def start(host: int, prepared: Path, output: Path, log: Path) -> "subprocess.Popen[bytes]":
    """One rank on one host."""
    place = {"RANK": str(host), "WORLD_SIZE": str(N_HOSTS), "LOCAL_RANK": "0"}
    place |= {"LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "10.91.0.1", "MASTER_PORT": "29511"}
    environment = os.environ | place | {"GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1"}
    command = ["ip", "netns", "exec", f"{NAME}-{host}", sys.executable, "-m", "mace_train", "train"]
    command += [f"data_dir={prepared}", f"output={output}", "cluster=cpu", REFERENCE, *TINY_MODEL]
    command += [f"cluster.timeout_s={TIMEOUT_S}", "batching.batch_size=2", "max_num_epochs=1000"]
    with open(log, "w") as handle:
        return subprocess.Popen(command, env=environment, stdout=handle, stderr=handle)


@pytest.mark.slow
@LINUX
def test_a_rank_whose_cable_is_cut_is_named_within_the_timeout(hosts, prepared, tmp_path):
    logs = [tmp_path / f"{host}.txt" for host in range(N_HOSTS)]
    output = tmp_path / "run"
    ranks = [start(host, prepared, output, logs[host]) for host in range(N_HOSTS)]
    try:
        wait_for(lambda: records_so_far(output), ranks[0], 90)
        within("hub", "ip", "link", "set", f"port{N_HOSTS - 1}", "down")
        cut = time.monotonic()
        codes = [rank.wait(timeout=90) for rank in ranks]
        seconds = time.monotonic() - cut
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    said = [log.read_text() for log in logs]
    assert codes == [LostRankError.exit_code] * N_HOSTS, said
    assert f"no answer within cluster.timeout_s={TIMEOUT_S}" in "".join(said[:2])
    assert f"rank {N_HOSTS - 1} (process {ranks[-1].pid} on " in said[0]
    assert "is stopped, dead or cut off" in said[0]
    assert "the store does not answer" in said[-1]
    assert seconds < 60  # ten minutes is the default
