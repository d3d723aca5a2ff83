"""Folders of settings: found, made, or held for one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mace_train.errors import InputError
from mace_train.folders import existing_folder, is_locked, lock_folder, make_folder

LOCK = """
import sys
from pathlib import Path
from mace_train.errors import InputError
from mace_train.folders import is_locked, lock_folder

print(is_locked(Path(sys.argv[1])))
try:
    lock_folder("output", Path(sys.argv[1]))
    print("held")
except InputError as error:
    print(error)
"""


def in_another_process(folder: Path) -> list[str]:
    """Whether the folder is locked, and what locking it gives, seen by another process."""
    command = [sys.executable, "-c", LOCK, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_an_existing_folder(tmp_path):
    assert existing_folder("data_dir", str(tmp_path)) == tmp_path
    for missing in (tmp_path / "absent", tmp_path / "file"):
        (tmp_path / "file").touch()
        with pytest.raises(InputError, match=f"data_dir={missing}: no such folder"):
            existing_folder("data_dir", str(missing))


def test_a_folder_is_made_with_those_above_it(tmp_path):
    make_folder("output", tmp_path / "a" / "b")
    make_folder("output", tmp_path / "a" / "b")  # it may be there
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot make this folder .*choose another output"):
        make_folder("output", tmp_path / "file" / "b")


def test_a_folder_without_permission_to_write(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)  # root may write
    with pytest.raises(InputError, match=f"output={tmp_path}: no permission to write here"):
        make_folder("output", tmp_path)


def test_a_folder_is_held_until_the_file_is_closed(tmp_path):
    assert not is_locked(tmp_path)
    handle = lock_folder("output", tmp_path)
    assert is_locked(tmp_path)
    locked, message = in_another_process(tmp_path)
    assert locked == "True"
    assert message.startswith(f"output={tmp_path} is in use by process {os.getpid()} on ")
    with pytest.raises(InputError, match="choose another output"):
        lock_folder("output", tmp_path)
    handle.close()
    assert not is_locked(tmp_path)
    assert in_another_process(tmp_path) == ["False", "held"]
    lock_folder("output", tmp_path).close()  # that process has ended
