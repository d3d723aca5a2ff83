"""Files that are whole or not there: killed at any place, on a full disk, without permission."""

import errno
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from safetensors import SafetensorError

from mace_train.atomic_files import (
    append_text,
    remove_leftovers,
    replaced,
    temporary_name,
    write_text,
    written_together,
)
from mace_train.errors import InputError, StorageError, system_error
from mace_train.folders import lock_folder, make_folder
from tests.killed import events, killed_at, limited_files


def half(place: AbstractContextManager[Path], name: str) -> None:
    """Write to ``name`` in ``place``, and fail."""
    with place as path:
        (path / name).write_text("half")
        raise RuntimeError("no more")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    write_text(path, "before")
    with pytest.raises(RuntimeError, match="no more"):
        half(replaced(path), "")
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_kill_at_any_place_leaves_the_old_or_the_new_file(tmp_path):
    path = tmp_path / "a.json"
    write_text(path, "before")
    n_events = events(tmp_path, lambda: write_text(path, "after!"))
    assert n_events >= 4
    seen = set()
    for number in range(n_events):
        write_text(path, "before")
        killed_at(number, tmp_path, lambda: write_text(path, "after!"))
        seen.add(path.read_text())
        write_text(tmp_path / "b", "")  # the next writer removes what was left
        assert sorted(os.listdir(tmp_path)) == ["a.json", "b"]
    assert seen == {"before", "after!"}


def test_files_written_together_keep_the_others_and_what_was_before(tmp_path):
    (tmp_path / "other").write_text("x")
    with written_together(tmp_path) as new:
        (new / "a").write_text("1")
        (new / "b").write_text("1")
    with pytest.raises(RuntimeError, match="no more"):
        half(written_together(tmp_path), "a")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a": "1", "b": "1", "other": "x"}


def test_leftovers_of_running_processes_stay_unless_the_folder_is_locked(tmp_path):
    mine, earlier = tmp_path / temporary_name("a"), tmp_path / f".a.json.{os.getpid()}.tmp"
    mine.mkdir()
    earlier.mkdir()  # as an earlier version names it
    foreign = [tmp_path / name for name in (".a.tmp", ".x.y.tmp", ".keep", "a.12.tmp")]
    for path in foreign:
        path.touch()
    (tmp_path / ".b.safetensors.4194305.tmp").touch()  # above the largest number of a process
    remove_leftovers(tmp_path)
    assert set(tmp_path.iterdir()) == {mine, earlier, *foreign}
    remove_leftovers(tmp_path, locked=True)
    assert set(tmp_path.iterdir()) == set(foreign)


def test_leftovers_of_other_hosts_and_containers_stay_for_a_day(tmp_path):
    """A process number says nothing there: 4194305 is one that no process has."""
    here = tmp_path / temporary_name("a").replace(str(os.getpid()), "4194305")
    place = re.fullmatch(r"\.a\.([0-9a-f]{8})-4194305\.tmp", here.name)[1]
    other = "00000000" if place != "00000000" else "11111111"
    new, old = (tmp_path / f".{name}.{other}-4194305.tmp" for name in ("new", "old"))
    busy = tmp_path / f".{other}-4194306.tmp"  # an old folder whose file has just been written to
    for folder in (here, new, old, busy):
        folder.mkdir()
    (busy / "file").touch()
    for folder in (old, busy):
        os.utime(folder, (time.time() - 90_000,) * 2)
    remove_leftovers(tmp_path)
    assert set(tmp_path.iterdir()) == {new, busy}
    remove_leftovers(tmp_path, locked=True)
    assert not list(tmp_path.iterdir())


def test_a_writer_in_another_container_is_not_disturbed(tmp_path):
    """A real process in a space of process numbers of its own, where ours are not seen."""
    program = (
        "import sys; from pathlib import Path; from mace_train.atomic_files import write_text\n"
        "write_text(Path(sys.argv[1]), 'other')"
    )
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", program]
    with replaced(tmp_path / "a") as path:
        path.write_text("mine")
        for folder in tmp_path.glob(".*.tmp"):  # a number that is free there, and here is ours
            assert str(os.getpid()) in folder.name
        done = subprocess.run([*command, str(tmp_path / "b")], capture_output=True, text=True)
        if done.returncode != 0 and "unshare:" in done.stderr:
            pytest.skip("needs root, to make a container")
        assert done.returncode == 0, done.stderr
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"a": "mine", "b": "other"}


def test_an_append_that_fails_leaves_no_half_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_text(path, "one\n")
    with limited_files(6), pytest.raises(StorageError, match=r"metrics\.jsonl: file too large"):
        append_text(path, "two\n")
    assert path.read_text() == "one\n"
    append_text(path, "two\n")
    assert path.read_text() == "one\ntwo\n"


def test_an_append_to_a_device_without_space_says_so():
    with pytest.raises(StorageError, match="/dev/full: no space left on device; free space"):
        append_text(Path("/dev/full"), "one\n", durable=False)


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (OSError(errno.ENOSPC, "x", "out/a.png"), StorageError, "out/a.png: no space left on"),
        (OSError(errno.EDQUOT, "x", "a"), StorageError, "a: disk quota exceeded; free space"),
        (OSError(errno.EMFILE, "x", "a"), StorageError, "ulimit -n"),
        (OSError(errno.EROFS, "x", "a"), InputError, "a: read-only file system; choose another"),
        (PermissionError(errno.EACCES, "x", "a"), InputError, "a: permission denied; change its"),
        (
            RuntimeError("Can't decrement (filename = 'a.h5', fd = 5, errno = 28, buf = 0x1)"),
            StorageError,
            r"a\.h5: no space left",
        ),
        (SafetensorError("I/O error: No space (os error 28)"), StorageError, "no space left"),
    ],
)
def test_errors_of_the_system_are_named_with_a_remedy(error, kind, words):
    explained = system_error(error)
    assert type(explained) is kind
    with pytest.raises(kind, match=words):
        raise explained
    assert explained.exit_code == (74 if kind is StorageError else 2)


@pytest.mark.parametrize("error", [ValueError("x"), OSError("x"), ConnectionRefusedError(111, "x")])
def test_other_errors_are_not_explained_away(error):
    assert system_error(error) is None


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become somebody else")
def test_the_folder_of_somebody_else_is_one_message():
    words = "permission denied; change its permissions, or choose another place"
    with TemporaryDirectory() as name:  # pytest's folders are for their user alone
        folder = Path(name)
        folder.chmod(0o755)
        (folder / ".lock").touch()
        assert words in said_by_nobody(lambda: write_text(folder / "a", "x"))
        assert words in said_by_nobody(lambda: append_text(folder / "a", "x"))
        assert words in said_by_nobody(lambda: lock_folder("output", folder))
        text = said_by_nobody(lambda: make_folder("output", folder))
        assert "no permission to write here; choose another output" in text
        assert os.listdir(folder) == [".lock"]


def said_by_nobody(action: Callable[[], object]) -> str:
    """The message of the error of ``action`` in a process of another user."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.setgid(65534)
        os.setuid(65534)
        try:
            action()
        except InputError as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return text


def test_killed_processes_of_these_tests_are_killed(tmp_path):
    """The harness: a kill is a real one, and a number beyond the last event kills nothing."""
    assert killed_at(0, tmp_path, lambda: write_text(tmp_path / "a", "")) == -signal.SIGKILL
    assert killed_at(99, tmp_path, lambda: write_text(tmp_path / "a", "")) == 0
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with limited_files(1):
        assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == 1
    assert resource.getrlimit(resource.RLIMIT_FSIZE) == before
