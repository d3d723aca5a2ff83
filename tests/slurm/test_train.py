"""slurm/train.sbatch on real Slurm: the training of torchrun, through all that ends a job."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.slurm.cluster import Cluster, log_of
from tests.slurm.trainings import SETTINGS, TWO_NODES, numbers, torchrun, weights
from tests.train.processes import records_so_far

pytestmark = pytest.mark.slow


def assert_same_end(output: Path, reference: Path) -> None:
    assert numbers(output) == numbers(reference)
    assert weights(output) == weights(reference)


@pytest.fixture(scope="module")
def undisturbed(prepared, tmp_path_factory) -> Path:
    """Sixteen epochs on two ranks."""
    return torchrun(prepared, tmp_path_factory.mktemp("undisturbed") / "run", 2, 16)


def wait_for(condition: Any, what: str, timeout_s: float = 90.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.1)


def wait_for_epoch(output: Path, epoch: int) -> None:
    wait_for(lambda: len(records_so_far(output)) > epoch, f"no epoch {epoch} in {output}")


def submit(cluster: Cluster, folder: Path, options: list[str], *settings: str) -> str:
    return cluster.submit(
        "train.sbatch", folder, options, f"output={folder}/run", *SETTINGS, *settings
    )


def test_two_nodes_with_two_ranks_each_train_like_torchrun(cluster, prepared, folder):
    options = ["--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=2", "--cpus-per-task=1"]
    job = cluster.submit(
        "train.sbatch",
        folder,
        options,
        f"data_dir={prepared}",
        "output=run",
        "max_num_epochs=2",
        *SETTINGS,
        LOCAL_SCRATCH=str(cluster.scratch),
    )
    reference = torchrun(prepared, folder / "torchrun", 4, 2)
    assert cluster.wait(job) == ["COMPLETED"], log_of(folder, f"train-{job}.log")
    assert_same_end(folder / "run", reference)
    log = log_of(folder, f"train-{job}.log")
    assert "4 ranks on cpu" in log
    for name in ("learning.png", "metrics.csv", "checkpoints/best.safetensors"):  # what it promises
        assert str(folder / "run") in log
        assert name in log
        assert (folder / "run" / name).is_file()
    # the shards were read from the nodes' own disks, and are gone from there
    assert f"to {cluster.scratch}/mace-train-{job}-" in log
    assert not any(list(cluster.disk(node).iterdir()) for node in (1, 2, 3, 4))


def test_it_continues_exactly_after_everything_that_ends_a_job(
    cluster, prepared, folder, undisturbed
):
    """Requeue by an administrator, the signal before the time limit, a rank killed."""
    job = submit(cluster, folder, TWO_NODES, f"data_dir={prepared}", "max_num_epochs=16")
    output = folder / "run"
    wait_for_epoch(output, 0)
    cluster.run("scontrol", "requeue", job)
    wait_for(lambda: cluster.restarts(job) == 1, "it was not requeued")
    n_before = len(records_so_far(output))
    wait_for_epoch(output, n_before)
    cluster.run("scancel", "--signal=USR1", job)
    wait_for(lambda: cluster.restarts(job) == 2, "it did not go back to the queue")
    n_before = len(records_so_far(output))
    wait_for_epoch(output, n_before)
    os.kill(cluster.pids(2, "bin/mace-train train")[-1], signal.SIGKILL)
    assert cluster.wait(job) == ["COMPLETED"], log_of(folder, f"train-{job}.log")
    log = log_of(folder, f"train-{job}.log")
    assert "stopped with everything saved" in log
    assert "back to the queue" in log
    assert "starting again" in log
    assert cluster.restarts(job) == 2
    assert_same_end(output, undisturbed)
    assert {record["structures"] for record in records_so_far(output)} == {
        record["structures"] for record in records_so_far(undisturbed)
    }


def test_the_loss_of_a_node_costs_nothing(cluster, prepared, folder, undisturbed):
    job = submit(cluster, folder, TWO_NODES, f"data_dir={prepared}", "max_num_epochs=16")
    output = folder / "run"
    wait_for_epoch(output, 0)
    nodes = cluster.run("squeue", "-h", "-j", job, "-o", "%N")
    lost = int(cluster.run("scontrol", "show", "hostnames", nodes).split()[-1][-1])
    cluster.cut_power(lost)
    try:
        assert cluster.wait(job) == ["COMPLETED"], log_of(folder, f"train-{job}.log")
    finally:
        cluster.boot(lost)
    assert_same_end(output, undisturbed)


def test_the_next_job_of_a_chain_continues_where_requeue_is_not_allowed(
    cluster, prepared, folder, undisturbed
):
    options = [*TWO_NODES, "--no-requeue", "--dependency=singleton"]
    first, second = (
        submit(cluster, folder, options, f"data_dir={prepared}", "max_num_epochs=16")
        for _ in range(2)
    )
    wait_for_epoch(folder / "run", 0)
    assert cluster.states(second) == ["PENDING"]
    cluster.run("scancel", "--signal=USR1", first)
    assert cluster.wait(first) == ["FAILED"], log_of(folder, f"train-{first}.log")
    assert "ExitCode=75:0" in cluster.run("scontrol", "show", "job", first)
    assert cluster.wait(second) == ["COMPLETED"], log_of(folder, f"train-{second}.log")
    assert "stopped with everything saved" in log_of(folder, f"train-{first}.log")
    assert_same_end(folder / "run", undisturbed)


def test_bad_input_is_not_tried_again(cluster, prepared, folder):
    job = submit(cluster, folder, TWO_NODES, f"data_dir={prepared}", "max_num_epoch=2")
    assert cluster.wait(job) == ["FAILED"]
    log = log_of(folder, f"train-{job}.log")
    assert "did you mean max_num_epochs" in log
    assert "starting again" not in log
    assert "ExitCode=2:0" in cluster.run("scontrol", "show", "job", job)


def test_one_process_in_a_job_of_many_tasks_is_refused(cluster, prepared, folder):
    command = f"mace-train train data_dir={prepared} output=run cluster=cpu"
    script = folder / "wrong.sh"
    script.write_text(f"#!/bin/bash\ncd {folder}\n{command}\n")
    job = cluster.run("sbatch", "--parsable", "--ntasks=2", f"--output={folder}/wrong.log", script)
    assert cluster.wait(job) == ["FAILED"]
    assert "type `srun mace-train ...`" in log_of(folder, "wrong.log")


@pytest.mark.skipif(torch.cuda.is_available(), reason="PyTorch does see a GPU here")
def test_a_job_with_gpus_that_pytorch_does_not_see_is_refused(cluster, prepared, folder):
    job = submit(
        cluster, folder, TWO_NODES, f"data_dir={prepared}", "cluster=auto", "max_num_epochs=1"
    )
    assert cluster.wait(job) == ["FAILED"]
    log = log_of(folder, f"train-{job}.log")
    assert "the job has GPUs" in log
    assert not (folder / "run").exists()
