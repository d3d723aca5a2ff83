"""The other batch scripts on real Slurm: preprocess over MPI, evaluate, sweeps, and the doctor."""

import json
import re
import subprocess
import sys

import pytest

from mace_train.data.statistics import Statistics
from mace_train.settings import SweepSettings
from mace_train.sweep.sweep import summarise
from tests.conftest import run_command
from tests.slurm.cluster import ROOT, edited, log_of
from tests.slurm.trainings import SETTINGS, TWO_NODES, numbers

pytestmark = pytest.mark.slow

TWO_BY_TWO = ["--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=1"]


def test_preprocessing_over_mpi_ranks_of_two_nodes_writes_the_same_bytes(
    cluster, prepared, xyz, folder
):
    job = cluster.submit(
        "preprocess.sbatch",
        folder,
        TWO_BY_TWO,
        f"data.train_file={xyz}",
        "data.valid_fraction=0.25",
        "r_max=4.0",
        "structures_per_shard=9",
        "output=prepared",
    )
    assert cluster.wait(job) == ["COMPLETED"], log_of(folder, f"preprocess-{job}.log")
    ours, reference = folder / "prepared", prepared
    for path in reference.rglob("*"):
        if path.suffix == ".h5":
            assert (ours / path.relative_to(reference)).read_bytes() == path.read_bytes()
    hashes = [Statistics.read(f / "statistics.json").dataset_hash for f in (ours, reference)]
    assert hashes[0] == hashes[1]


def test_a_wrong_mpi_plugin_is_an_error_and_not_four_single_ranks(cluster, xyz, folder):
    arguments = (f"data.train_file={xyz}", "r_max=4.0", "output=prepared")
    variables = {"SRUN_OPTIONS": "--mpi=none"}
    job = cluster.submit("preprocess.sbatch", folder, TWO_BY_TWO, *arguments, **variables)
    assert cluster.wait(job) == ["FAILED"]
    assert "srun --mpi=pmi2" in log_of(folder, f"preprocess-{job}.log")
    assert not list(folder.glob("prepared/**/*.h5"))


def test_evaluation_over_ranks_is_that_of_one_process(cluster, trained, xyz, folder):
    arguments = [f"checkpoint={trained}", f"test_file={xyz}", "cluster=cpu", "plots=false"]
    job = cluster.submit("evaluate.sbatch", folder, TWO_BY_TWO, *arguments, "output=many")
    run_command("evaluate", *arguments, f"output={folder}/one")
    assert cluster.wait(job) == ["COMPLETED"], log_of(folder, f"evaluate-{job}.log")
    many, one = (json.loads((folder / n / "errors.json").read_text()) for n in ("many", "one"))
    assert many["n_structures"] == one["n_structures"]
    for ours, reference in zip(many["errors"], one["errors"], strict=True):
        assert ours.keys() == reference.keys()
        numeric = {k: v for k, v in reference.items() if isinstance(v, float)}
        assert {k: ours[k] for k in numeric} == pytest.approx(numeric, rel=1e-5, abs=1e-9)

    def comments(name: str) -> list[str]:
        lines = (folder / name / "predictions.extxyz").read_text().splitlines()
        return [re.findall(r"REF_energy=\S+", line)[0] for line in lines if "REF_energy=" in line]

    assert comments("many") == comments("one")


SWEEP = ("optimizer.lr=0.01,0.003", "seed=1,2")


def test_a_sweep_as_a_job_array_is_collected_and_continues(cluster, prepared, folder, capsys):
    settings = [f"data_dir={prepared}", "output=sweep", "max_num_epochs=2", *SETTINGS]
    one = ["--nodes=1", "--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1"]
    bad = ("batching.batch_size=2,0", *SWEEP)  # jobs 4 to 7 cannot run
    job = cluster.submit("sweep.sbatch", folder, ["--array=0,1,4,8%2", *one], *settings, *bad)
    states = cluster.wait(job)
    assert sorted(states) == ["COMPLETED", "COMPLETED", "FAILED", "FAILED"]
    rows = summarise(SweepSettings(folder=str(folder / "sweep")))
    shown = capsys.readouterr().out
    assert [row["state"] for row in rows] == ["done", "done", "failed"]
    assert rows[0]["error"] <= rows[1]["error"]
    assert rows[0]["settings"].keys() == {"seed", "batching.batch_size"}
    for row in rows[2:]:
        assert "batching.batch_size" in row["why"]
        assert f"job {row['job']} failed: " in shown
    assert (folder / "sweep/sweep.png").stat().st_size > 5000
    assert "the sweep has 8 jobs, 0 to 7" in log_of(folder, f"sweep-{job}_8.log")
    record = json.loads((folder / "sweep/0/job.json").read_text())
    assert record["log"] == str(folder / f"sweep-{job}_0.log")
    best = numbers(folder / "sweep/0")
    again = cluster.submit("sweep.sbatch", folder, ["--array=0", *one], *settings, *bad)
    assert cluster.wait(again) == ["COMPLETED"]
    assert "nothing to do" in log_of(folder, f"sweep-{again}_0.log")
    assert numbers(folder / "sweep/0") == best


def test_the_doctor_on_two_nodes(cluster, prepared, folder):
    script = folder / "doctor.sh"
    arguments = f"data_dir={prepared} read_seconds=0.2 message_mb=1 cluster=cpu"
    script.write_text(f"#!/bin/bash\ncd {folder}\nsrun mace-train doctor {arguments}\n")
    job = cluster.run("sbatch", "--parsable", *TWO_NODES, f"--output={folder}/doctor.log", script)
    assert cluster.wait(job) == ["COMPLETED"], log_of(folder, "doctor.log")
    log = log_of(folder, "doctor.log")
    assert "PASS: 0 failed" in log
    assert re.search(r"gloo, 2 ranks: 1 MB in [\d.]+ ms, [\d.]+ MB/s", log)
    assert "2 hosts: node1, node2" in log
    assert "structures/s" in log


def test_a_multirun_through_submitit(cluster, prepared, folder):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    launcher = ["hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=10"]
    launcher += ["hydra.launcher.nodes=2", "hydra.launcher.tasks_per_node=1"]
    settings = [f"data_dir={prepared}", "output=sweep", "max_num_epochs=1", "seed=1,2"]
    command = [sys.executable, "-m", "mace_train", "train", "--multirun"]
    done = subprocess.run(
        [*command, *launcher, *settings, *SETTINGS],
        cwd=folder,
        env=cluster.environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = summarise(SweepSettings(folder=str(folder / "sweep")))
    assert [row["state"] for row in rows] == ["done", "done"]
    assert {row["settings"]["seed"] for row in rows} == {"1", "2"}
    provenance = json.loads((folder / "sweep/0/provenance.json").read_text())
    assert provenance[0]["ranks"] == 2


@pytest.mark.parametrize("script", ["train", "preprocess", "evaluate", "sweep"])
def test_a_script_differs_from_its_edited_copy_in_three_lines(script, tmp_path):
    original = (ROOT / f"slurm/{script}.sbatch").read_text().splitlines()
    copy = edited(f"{script}.sbatch", tmp_path).read_text().splitlines()
    assert sum(a != b for a, b in zip(original, copy, strict=True)) == 3
    subprocess.run(["bash", "-n", tmp_path / "slurm" / f"{script}.sbatch"], check=True)
