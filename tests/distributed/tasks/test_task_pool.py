"""pool: the same results in the same order from one process, workers and MPI ranks."""

import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest

from mace_train.distributed.tasks.task_pool import open_task_pool
from mace_train.errors import InputError, InvalidStructureError
from tests.distributed.tasks.ranks import ROOT, mpiexec, square


@pytest.mark.parametrize("workers", [1, 2])
def test_results_are_in_order(workers):
    done = []
    with open_task_pool(workers) as pool:
        assert pool.map(square, [5, 6, 1], done.append) == [25, 36, 1]
        assert sorted(done) == [1, 25, 36]
        assert pool.map(square, [], done.append) == []
        with pytest.raises(InvalidStructureError, match="7 does not work") as error:
            pool.map(square, range(1000), done.append)
    assert error.value.kind == "seven or nine"
    assert len(done) < 3 + 9 + 2 * 2


SCRIPT = """
import sys, time
from mace_train.distributed.tasks.task_pool import open_task_pool
from tests.distributed.tasks.ranks import square

def slow(number):
    time.sleep(0.2 if number == 0 else 0.001)
    return number

with open_task_pool(1) as pool:
    if pool is not None:
        done = []
        assert pool.map(slow, range(60), done.append) == list(range(60))
        assert sorted(done) == list(range(60))
        if pool.size > 1:
            assert done[0] != 0, "the others go on while one task is long"
        try:
            pool.map(square, range(40), done.append)
        except ValueError as error:
            print(type(error).__name__, error.kind, pool.size)
        if sys.argv[1:]:
            pool.map(int, ["1", "x"], done.append)
"""


@pytest.mark.parametrize("n_ranks", [1, 3])
def test_mpi_ranks(tmp_path, n_ranks):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = mpiexec(n_ranks, str(tmp_path / "script.py"))
    assert done.stdout == f"InvalidStructureError seven or nine {n_ranks}\n", done.stderr
    assert done.returncode == 0


def test_a_fault_on_one_rank_ends_all(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = mpiexec(2, str(tmp_path / "script.py"), "fail")
    assert done.returncode == 1  # all have ended by themselves, so mpiexec has forwarded all
    assert "invalid literal for int()" in done.stderr


def test_workers_on_top_of_ranks(monkeypatch):
    monkeypatch.setenv("PMI_SIZE", "2")
    with pytest.raises(InputError, match="every rank is one worker"), open_task_pool(2):
        pass


def test_a_launcher_that_mpi_does_not_know(monkeypatch):
    """srun with the wrong --mpi starts tasks that each believe to be alone."""
    done = subprocess.run(
        [sys.executable, "-c", "from mace_train.distributed.tasks.task_pool import open_task_pool\n"
         "with open_task_pool(1): pass"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "SLURM_STEP_NUM_TASKS": "4", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert "SLURM_STEP_NUM_TASKS says 4 tasks, MPI connects 1" in done.stderr


SLEEPING = """
import os
import time
from mace_train.distributed.tasks.task_pool import open_task_pool

def sleep(index):
    os.write(1, b"started\\n")  # at once, as two processes share it
    time.sleep(600)

if __name__ == "__main__":
    with open_task_pool(2) as pool:
        pool.map(sleep, range(4), print)
"""


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_a_parent_that_is_killed(tmp_path, kind):
    (tmp_path / "script.py").write_text(SLEEPING)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py")],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["started\n"] * 2
        process.send_signal(kind)
        # the end of the output: no worker holds it open any more
        assert process.communicate(timeout=30)[0] == ""
        assert process.returncode == -kind
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


WORKER_DIES = """
import os
from mace_train.distributed.tasks.task_pool import open_task_pool

if __name__ == "__main__":
    try:
        with open_task_pool(2) as pool:
            pool.map(os._exit, [1, 1], print)
    except ValueError as error:
        print(error)
"""


def test_a_worker_that_is_killed(tmp_path):
    (tmp_path / "script.py").write_text(WORKER_DIES)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert "a worker process was killed" in done.stdout, done.stderr
