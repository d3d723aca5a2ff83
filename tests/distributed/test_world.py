"""Launch detection and collectives."""

import pytest

from mace_train.distributed.world import World, open_world
from mace_train.errors import InputError
from mace_train.settings import ClusterSettings
from tests.train.ranks import collectives, run_ranks


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
