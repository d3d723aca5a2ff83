"""The doctor: what passes here, and the result of each check in a wrong environment."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from mace_train.distributed.world import World
from mace_train.doctor import doctor, environment, network
from mace_train.doctor.check_result import CheckResult, Verdict, same_everywhere
from mace_train.settings import ClusterSettings, DoctorSettings
from tests.conftest import run_command
from tests.train.ranks import run_ranks

HERE = DoctorSettings(
    read_seconds=0.1, message_mb=0.5, cluster=ClusterSettings(device="cpu", kernels="reference")
)


def test_this_machine_passes(prepared, capsys):
    settings = ["read_seconds=0.1", "cluster=cpu", "cluster.kernels=reference"]
    run_command("doctor", f"data_dir={prepared}", *settings)
    shown = capsys.readouterr().out
    assert "PASS: 0 failed" in shown
    for words in ("one process", f"torch {torch.__version__}", "structures/s", "1 x cpu"):
        assert words in shown


def test_a_failed_check_is_exit_code_1(capsys, monkeypatch):
    bad = CheckResult(Verdict.FAIL, "the disk is on fire", "water")
    monkeypatch.setattr(doctor, "CHECKS", (doctor.Check("disk", lambda world, settings: [bad]),))
    with pytest.raises(SystemExit) as end:
        run_command("doctor", "cluster=cpu")
    assert end.value.code == 1
    shown = capsys.readouterr().out
    assert "the disk is on fire" in shown
    assert "-> water" in shown
    assert "FAIL: 1 failed" in shown


def test_a_launch_that_cannot_work_is_the_finding(capsys, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "4")
    with pytest.raises(SystemExit) as end:
        run_command("doctor", "cluster=cpu")
    assert end.value.code == 2
    assert "doctor: FAIL: the job has 4 tasks" in capsys.readouterr().err


def test_kernels_that_compute_something_else_fail(monkeypatch):
    monkeypatch.setattr(environment, "_difference", lambda settings, device: 1e-3)
    (found,) = environment.kernels(World(), HERE)
    assert found.verdict is Verdict.FAIL
    assert "differ from PyTorch by 1.0e-03" in found.text


def test_the_difference_of_equal_kernels_is_nothing():
    assert environment._difference(HERE, torch.device("cpu")) == 0.0


def test_shards_that_are_not_there_fail(tmp_path):
    (found,) = environment.data(World(), replace(HERE, data_dir=str(tmp_path)))
    assert found.verdict is Verdict.FAIL


def examined(world: World) -> Any:
    """Findings over ranks, one of which lives elsewhere."""
    sums = network.all_reduce(world, HERE)
    names = network.names(world, HERE)
    other = same_everywhere(world, f"numpy {world.rank // 2}", "versions", "activate")
    return [(found.verdict.value, found.text) for found in (sums[0], names[0], other[0])]


def test_over_ranks(tmp_path):
    sums, names, other = run_ranks(3, examined, tmp_path)[0]
    assert sums[0] == "ok"
    assert sums[1].startswith("gloo, 3 ranks: 0.5 MB in ")
    assert names[1].startswith("1 hosts: ")
    assert other == ("fail", "versions differ: numpy 0 on 2 ranks; numpy 1 on 1 ranks")
