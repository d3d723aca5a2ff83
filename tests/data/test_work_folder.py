"""staging and jobs: whole or nothing, in order, bounded, and clean after errors."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from mace_train.data.jobs import run_jobs
from mace_train.data.staging import staged_folder
from mace_train.errors import InputError

EXPECTED = frozenset({"a", "b"})


def make(output, content="new", *, overwrite=False, error=None):
    with staged_folder(output, EXPECTED, overwrite=overwrite) as folder:
        (folder / "a").write_text(content)
        assert not (output / "a").exists() or (output / "a").read_text() != content
        if error:
            raise error


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_appears_at_the_end(tmp_path):
    make(tmp_path / "x" / "out")
    assert names(tmp_path / "x") == ["out"]
    assert (tmp_path / "x" / "out" / "a").read_text() == "new"


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(1)])
def test_nothing_stays_after_an_error(tmp_path, error):
    with pytest.raises(type(error)):
        make(tmp_path / "out", error=error)
    assert names(tmp_path) == []
    make(tmp_path / "out", "old")
    with pytest.raises(type(error)):
        make(tmp_path / "out", overwrite=True, error=error)
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "a").read_text() == "old"


def test_overwrite(tmp_path):
    make(tmp_path / "out", "old")
    with pytest.raises(InputError, match="already holds data; set overwrite=true"):
        make(tmp_path / "out")
    make(tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "a").read_text() == "new"
    assert names(tmp_path) == ["out"]


def test_a_link_stays_a_link(tmp_path):
    make(tmp_path / "real", "old")
    (tmp_path / "out").symlink_to(tmp_path / "real")
    make(tmp_path / "out", overwrite=True)
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "real" / "a").read_text() == "new"
    assert names(tmp_path) == ["out", "real"]


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "out").mkdir()
    make(tmp_path / "out")
    assert names(tmp_path / "out") == ["a"]


def test_other_files_are_never_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match=r"holds other files \(thesis\.tex\)"):
        make(tmp_path / "out", overwrite=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        make(tmp_path / "file", overwrite=True)
    with pytest.raises(InputError, match="cannot write there"):
        make(tmp_path / "file" / "below")
    assert names(tmp_path) == ["file", "out"]


def dead_process() -> int:
    return int(subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                              capture_output=True, check=True).stdout)  # fmt: skip


def leftover(tmp_path: Path, pid: int, host: str = socket.gethostname(), end: str = "") -> Path:
    folder = tmp_path / f".out.partial-{host}-{pid}{end}"
    folder.mkdir()
    (folder / "a").write_text("old")
    return folder


def test_leftovers_of_dead_processes_are_removed(tmp_path):
    dead = leftover(tmp_path, dead_process())
    alive = leftover(tmp_path, os.getppid())
    elsewhere = leftover(tmp_path, 1, host="other-host")
    make(tmp_path / "out")
    assert not dead.exists()
    assert alive.exists()
    assert elsewhere.exists()


def test_what_was_moved_away_is_restored(tmp_path):
    leftover(tmp_path, dead_process(), end="-replaced")
    with pytest.raises(InputError, match="already holds data"):
        make(tmp_path / "out")
    assert (tmp_path / "out" / "a").read_text() == "old"


def job(folder: Path, index: int) -> None:
    if index == 7:
        raise InputError("job 7 does not work")
    (folder / str(index)).write_text("x")


@pytest.mark.parametrize("workers", [1, 2])
def test_jobs(tmp_path, workers):
    run_jobs((partial(job, tmp_path, i) for i in range(6)), workers)
    assert names(tmp_path) == [str(i) for i in range(6)]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_stops_the_jobs(tmp_path, workers):
    with pytest.raises(InputError, match="job 7 does not work"):
        run_jobs((partial(job, tmp_path, i) for i in range(1000)), workers)
    assert len(names(tmp_path)) < 7 + 2 * 2 + 1


def test_no_more_jobs_exist_than_are_needed(tmp_path):
    made = []

    def jobs():
        for i in range(7):
            made.append(i)
            finished = len(names(tmp_path))
            assert len(made) - finished <= 2 * 2 + 1
            yield partial(job, tmp_path, 100 + i)

    run_jobs(jobs(), workers=2)
    assert len(made) == 7


SLEEPING = """
import sys, time
from functools import partial
from mace_train.data.jobs import run_jobs

def sleep(index):
    print("started", flush=True)
    time.sleep(600)

if __name__ == "__main__":
    run_jobs((partial(sleep, i) for i in range(4)), 2)
"""


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_a_parent_that_is_killed(tmp_path, kind):
    (tmp_path / "script.py").write_text(SLEEPING)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py")],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
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
