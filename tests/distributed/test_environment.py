"""Wrong environment variables: one line and exit code 2 on every rank, before expensive imports."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tree import ROOT

TRAIN = ["train", "data_dir=nowhere", "output=run"]
Environment = dict[str, str]


def torchrun(rank: int) -> Environment:
    """One of two ranks on this host."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29400",
    }


def srun(rank: int) -> Environment:
    """One of two tasks of one node."""
    return {
        "SLURM_JOB_ID": "17",
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_STEP_TASKS_PER_NODE": "2",
        "SLURM_STEP_NODELIST": "node7",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
        "SLURM_NODEID": "0",
    }


def mpiexec(rank: int) -> Environment:
    """One of two ranks, each on a host of its own."""
    return {
        "PMI_SIZE": "2",
        "PMI_RANK": str(rank),
        "PMI_LOCAL_RANK": "0",
        "PMI_LOCAL_SIZE": "1",
    }


def alone(rank: int) -> Environment:
    """A process without a launcher."""
    return {}


# (launcher, variable, value, what the message says)
FAULTS: list[tuple[Callable[[int], Environment], str, str, str]] = [
    *((torchrun, "WORLD_SIZE", value, "is not a number from 1 to 1048576")
      for value in ("abc", "", "0", "-2", "2.0", "1_0", "²", "٢", "0x2", "9" * 30, "9" * 5000)),
    *((torchrun, "RANK", value, "is not a number from 0 to") for value in ("x", "", "-1", "1e0")),
    (torchrun, "RANK", "5", "RANK=5 with WORLD_SIZE=2 in the environment: 2 ranks have"),
    (torchrun, "LOCAL_RANK", "2", "LOCAL_RANK=2 with LOCAL_WORLD_SIZE=2"),
    (torchrun, "LOCAL_RANK", "", "is not a number from 0 to"),
    (torchrun, "LOCAL_WORLD_SIZE", "9", "of 9 on this host (LOCAL_WORLD_SIZE), of 2 in all"),
    *((torchrun, "MASTER_PORT", value, "is not a number from 1 to 65535")
      for value in ("9999999", "0", "abc", "", "-1")),
    *((torchrun, "MASTER_ADDR", value, "is no name of a host")
      for value in ("", "a b", "http://node1", "node\n1")),
    *((torchrun, "TORCHELASTIC_RESTART_COUNT", value, "is not a number from 0 to")
      for value in ("x", "-1", "")),
    (torchrun, "MACE_TRAIN_JOB_TOKEN", "short", "must be 16 to 256 letters and digits"),
    *((srun, "SLURM_STEP_TASKS_PER_NODE", value, "is no list of tasks per node")
      for value in ("junk", "", "2,", "2(x", "4(x0)", "0", "²", "1(x99999999999)")),
    (srun, "SLURM_NODEID", "3", "SLURM_NODEID=3 in the environment, but 1 nodes"),
    (srun, "SLURM_LOCALID", "7", "rank 7 of 2 on this host (SLURM_STEP_TASKS_PER_NODE)"),
    (srun, "SLURM_PROCID", "2", "SLURM_PROCID=2 with SLURM_STEP_NUM_TASKS=2"),
    (srun, "SLURM_STEP_NUM_TASKS", "two", "is not a number from 1 to"),
    (srun, "SLURM_STEP_ID", "x", "is not a number from 0 to"),
    *((srun, "SLURM_JOB_ID", value, "is no job of a scheduler")
      for value in ("../../home", "", "1 2", "x" * 300)),
    *((mpiexec, "SLURM_JOB_NODELIST", value, "is no list of hosts") for value in ("", "[", "a[")),
    *((mpiexec, "LSB_MCPU_HOSTS", value, "is no list of hosts and their slots")
      for value in ("", "a", "a b", "a 4 b", "a 4 /x 4")),
    *((alone, "LSB_MCPU_HOSTS", value, "is no list of hosts and their slots")
      for value in ("a b", "a 4 b")),
    (alone, "SLURM_NTASKS", "x", "is not a number from 1 to"),
    *((alone, "OMP_NUM_THREADS", value, "is not a number from 1 to 65535")
      for value in ("abc", "", "0", "-1", "4,x", "1_0", "99999999999")),
    *((alone, "CUDA_VISIBLE_DEVICES", value, "is no list of GPUs")
      for value in ("abc", "0;1", "0,,1", "²", "0,GPU")),
    *((alone, "XDG_CACHE_HOME", value, "is not an absolute path") for value in ("cache", "~/x")),
    (alone, "XDG_CACHE_HOME", __file__, "cannot be a folder, as "),
    (alone, "XDG_CACHE_HOME", f"{__file__}/below", "cannot be a folder, as "),
    (alone, "SLURM_ARRAY_TASK_ID", "x", "is not a number from 0 to"),
    (alone, "WORLD_SIZE", "2", "WORLD_SIZE=2 is set but not RANK"),
    (alone, "RANK", "0", "RANK=0 is set but not WORLD_SIZE"),
]  # fmt: skip


def run(commands: list[tuple[list[str], Environment]], folder: Path) -> list[tuple[int, str]]:
    """(exit code, stderr) of ``mace-train`` with these words in these environments."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.distributed.forked_commands"],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    return [(code, stderr) for code, stderr in json.loads(done.stdout)]


@pytest.fixture(scope="module")
def node_files(tmp_path_factory) -> dict[str, str]:
    """Wrong PBS_NODEFILEs, and the message about each."""
    folder = tmp_path_factory.mktemp("nodes")
    (folder / "empty").write_text("\n")
    (folder / "latin").write_bytes(b"n\xf6de1\n")
    (folder / "junk").write_text("<html>\n")
    os.mkfifo(folder / "pipe")
    return {
        str(folder / "missing"): "is a file that does not exist",
        str(folder): "is no file",
        str(folder / "pipe"): "is no file",
        str(folder / "empty"): "does not list hosts",
        str(folder / "junk"): "does not list hosts",
        str(folder / "latin"): "is a file that is not UTF-8",
        "": "is no file",
        "x" * 5000: "cannot be read (",
    }


def test_every_fault_is_one_line_and_exit_code_2_on_every_rank(node_files, tmp_path):
    faults = [*FAULTS]
    for path, words in node_files.items():
        faults += [(mpiexec, "PBS_NODEFILE", path, words), (alone, "PBS_NODEFILE", path, words)]
    cases = [
        (rank, launcher(rank) | {variable: value}, variable, words)
        for launcher, variable, value, words in faults
        for rank in ((0,) if launcher is alone else (0, 1))
    ]
    done = run([(TRAIN, variables) for _, variables, _, _ in cases], tmp_path)
    for (rank, variables, variable, words), (code, stderr) in zip(cases, done, strict=True):
        assert code == 2, (variables, stderr)
        (line,) = stderr.splitlines()
        assert "error: " in line
        assert variable in line
        assert words in line
        assert len(line) < 500
        if variable not in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"):
            assert ("[rank 1]" in line) == (rank == 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["preprocess", "inspect", "tune", "report", "doctor"])
def test_commands_that_are_no_training_say_so_too(command, tmp_path):
    faults = [
        {"RANK": "x"}, {"WORLD_SIZE": "abc"}, {"PMI_SIZE": "x"}, {"OMP_NUM_THREADS": "abc"},
        {"SLURM_ARRAY_TASK_ID": "x"}, {"XDG_CACHE_HOME": "here"}, {"CUDA_VISIBLE_DEVICES": "abc"},
    ]  # fmt: skip
    for code, stderr in run([([command], variables) for variables in faults], tmp_path):
        assert code == 2, stderr
        assert stderr.startswith("mace-train: error: ")
        assert stderr.count("\n") == 1
        assert "in the environment" in stderr


def test_version_and_help_work_whatever_the_environment_holds(tmp_path):
    wrong = {"RANK": "x", "WORLD_SIZE": "", "PMI_SIZE": "²", "OMP_NUM_THREADS": "abc"}
    wrong |= {"SLURM_STEP_TASKS_PER_NODE": "junk", "XDG_CACHE_HOME": "here", "HOME": "here"}
    commands = [["--version"], ["--help"], ["train", "--help"], ["doctor", "-h"], []]
    for code, stderr in run([(words, wrong) for words in commands], tmp_path):
        assert (code, stderr) == (0, "")


def test_what_launchers_and_schedulers_really_set_is_no_fault(tmp_path):
    """The message is the next one: there is no such setting."""
    right = [
        {"CUDA_VISIBLE_DEVICES": value} for value in
        ("", "-1", "0", "0,1,2,3", "NoDevFiles", "none", "GPU-8932f937-d72c", "MIG-3eb87630-93d5")
    ]  # fmt: skip
    right += [{"OMP_NUM_THREADS": value} for value in ("1", "4,2", " 8 ")]
    right += [{"WORLD_SIZE": "1"}, {"XDG_CACHE_HOME": ""}, {"XDG_CACHE_HOME": "/nowhere/yet"}]
    right += [{"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"}]
    right += [{"PBS_JOBID": "12[3].server-1.site"}, {"SLURM_ARRAY_TASK_ID": "4000000"}]
    for (code, stderr), variables in zip(
        run([(["train", "such=1"], variables) for variables in right], tmp_path), right, strict=True
    ):
        assert code == 2
        assert "such" in stderr, variables
        assert "environment" not in stderr


@pytest.mark.parametrize("backend", ["127.0.0.1", "module://matplotlib_inline.backend_inline", ""])
def test_a_backend_of_matplotlib_is_not_needed(backend, tmp_path):
    words = ["evaluate", "checkpoint=none", "test_file=none.xyz", "output=out"]
    [(code, stderr)] = run([(words, {"MPLBACKEND": backend})], tmp_path)
    assert code == 2, stderr
    assert "none" in stderr


def test_threads_are_checked_before_a_library_reads_them(tmp_path):
    """A real start: OpenMP itself only writes a line of its own and takes another number."""
    done = subprocess.run(
        [sys.executable, "-m", "mace_train", *TRAIN],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "abc"},
    )
    assert done.returncode == 2
    assert done.stderr == (
        "mace-train: error: OMP_NUM_THREADS='abc' in the environment is not a number from 1 to "
        "65535; set it to the cores of one rank, or unset it\n"
    )
