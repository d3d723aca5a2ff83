"""Launch detection and collectives, and the ports that ranks open."""

import errno

import pytest
import torch

from mace_train.distributed.world import World, open_world
from mace_train.errors import InputError, LostRankError, StorageError
from mace_train.settings import ClusterSettings
from mace_train.train.run import on_main
from tests.distributed.tasks.ranks import mpiexec
from tests.train.ranks import collectives, free_port, run_ranks


def test_one_process_needs_no_launcher(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with open_world(ClusterSettings(device="cpu")) as world:
        assert collectives(world) == ([1.0, 0.0], "from 0", [0], 1)


def test_three_ranks(tmp_path):
    results = run_ranks(3, collectives, tmp_path)
    for rank, (total, word, gathered, size) in enumerate(results):
        assert total == [3.0, 3.0]
        assert word == "from 0"
        assert gathered == ([0, 10, 20] if rank == 0 else [])
        assert size == 3


def exchanged(world: World) -> tuple[list, list, dict]:
    """Values of other lengths on each rank, by each collective that carries values."""
    own = {"rank": world.rank, "ids": list(range(50 * world.rank)), "x": torch.ones(world.rank)}
    return world.gather_all(own), world.gather((world.rank, "é" * world.rank)), world.broadcast(own)


def test_values_of_other_lengths_on_each_rank(tmp_path):
    for rank, (everywhere, there, of_main) in enumerate(run_ranks(3, exchanged, tmp_path)):
        assert [value["ids"] for value in everywhere] == [[], [*range(50)], [*range(100)]]
        assert [len(value["x"]) for value in everywhere] == [0, 1, 2]
        assert there == ([(0, ""), (1, "é"), (2, "éé")] if rank == 0 else [])
        assert (of_main["rank"], of_main["ids"], len(of_main["x"])) == (0, [], 0)


def failing(world: World, on_rank: int, error: Exception) -> list[tuple[str, int, str]]:
    """(class, exit code, message) of what each collective that carries an error raises here."""

    def fail() -> None:
        raise error

    failed = isinstance(error, InputError) and world.rank == on_rank
    results = []
    for raises in (
        lambda: world.broadcast_result(fail),
        lambda: world.raise_on_all_ranks(error if failed else None),
        lambda: on_main(world, fail),
    ):
        try:
            raises()
        except InputError as raised:
            results.append((type(raised).__name__, raised.exit_code, str(raised)))
    return results


@pytest.mark.parametrize("kind", [InputError, LostRankError, StorageError])
def test_an_error_ends_all_ranks_with_its_own_exit_code(kind, tmp_path):
    expected = [(kind.__name__, kind.exit_code, "what and where")] * 3
    assert run_ranks(2, failing, tmp_path, 1, kind("what and where")) == [expected, expected]


def test_an_error_of_the_system_on_rank_0_ends_all_with_one_message(tmp_path):
    error = OSError(errno.EIO, "Input/output error", "runs/a/checkpoints")
    first, second = run_ranks(2, failing, tmp_path, 1, error)
    assert first == second
    assert [(name, code) for name, code, _ in first] == [("StorageError", 74)] * 2
    assert all("runs/a/checkpoints: input/output error" in text for _, _, text in first)


LISTENING = """
import os
from pathlib import Path
from mace_train.distributed.world import open_world
from mace_train.settings import ClusterSettings

def listening():
    \"""Local addresses, in hexadecimal, of the sockets on which this process listens.\"""
    links = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    inodes = {link[8:-1] for link in links if link.startswith("socket:[")}
    rows = [row.split() for table in ("tcp", "tcp6")
            for row in Path("/proc/self/net", table).read_text().splitlines()[1:]]
    return {row[1] for row in rows if row[3] == "0A" and row[9] in inodes}

inherited = listening()  # from mpiexec
for attempt in range(2):  # the second uses the same port again
    with open_world(ClusterSettings(device="cpu", timeout_s=100)) as world:
        found = world.gather_all(list(listening() - inherited))
        if world.is_main:
            hosts = {address.split(":")[0] for one in found for address in one}
            print(*hosts, all(found), world.size)
"""


def test_ranks_of_one_host_open_no_port_to_the_network(tmp_path, monkeypatch):
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    (tmp_path / "script.py").write_text(LISTENING)
    done = mpiexec(2, str(tmp_path / "script.py"))
    assert done.stdout == "0100007F True 2\n" * 2, done.stderr  # 127.0.0.1


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "MASTER_ADDR"),
        ({"SLURM_NTASKS": "4"}, "srun"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "share a host"),
    ],
)
def test_a_wrong_launch_is_an_error(variables, words, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=words), open_world(ClusterSettings(device="cpu")):
        pass


def test_nccl_on_the_cpu_is_an_error(monkeypatch):
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")
    for name, value in zip(names, ("0", "0", "2", "1"), strict=True):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    settings = ClusterSettings(device="cpu", backend="nccl")
    with pytest.raises(InputError, match="gloo"), open_world(settings):
        pass


def test_the_default_world_is_alone():
    assert World().is_main
    assert World().size == 1
