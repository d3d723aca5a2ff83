"""Folders and new files that settings name: checked, made, or locked by one process."""

import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from mace_train.errors import InputError, system_error

LOGGER = logging.getLogger("mace_train")


def existing_folder(name: str, value: str) -> Path:
    """The folder a setting names, or an error that says it is not there."""
    path = Path(value)
    if not path.is_dir():
        raise InputError(f"{name}={value}: no such folder")
    return path


def make_folder(name: str, path: Path) -> None:
    """Make the folder a setting names, or an error that says why it cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        kind = type(system_error(error) or InputError())
        raise kind(
            f"{name}={path}: cannot make this folder ({error.strerror}); choose another {name}"
        ) from None
    if not os.access(path, os.W_OK):
        raise InputError(f"{name}={path}: no permission to write here; choose another {name}")


def new_file(name: str, value: str, suffixes: tuple[str, ...]) -> Path:
    """The file to write that a setting names; InputError if it is there, or has another suffix."""
    path = Path(value)
    if path.suffix not in suffixes:
        raise InputError(f"{name}={value}: the name of the file ends in {' or '.join(suffixes)}")
    try:
        is_there = path.exists()
    except OSError as error:  # such as too long a name
        raise system_error(error, path) or InputError(f"{name}={value}: {error}") from None
    if is_there:
        raise InputError(f"{name}={value} is already there; choose another name")
    return path


def lock_folder(name: str, path: Path) -> IO[str]:
    """Lock ``path`` for this process until the returned file is closed or the process ends.

    Raises ``InputError`` when another process holds it, or the file system cannot lock.
    """
    with ExitStack() as opened:
        try:
            handle = opened.enter_context(open(path / ".lock", "a+"))
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(handle.fileno(), 0)
            os.write(handle.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
        except BlockingIOError:
            handle.seek(0)
            holder = handle.read().strip() or "another process"
            raise InputError(
                f"{name}={path} is in use by {holder}; wait for it to end or choose another {name}"
            ) from None
        except OSError as error:
            raise system_error(error, path / ".lock") or InputError(
                f"{name}={path}: this file system cannot lock files ({error.strerror}); choose "
                f"another {name}"
            ) from None
        opened.pop_all()  # locked: it stays open
    return handle


def is_locked(path: Path) -> bool:
    """Whether a process has locked ``path`` (``lock_folder``)."""
    try:
        with open(path / ".lock") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


@contextmanager
def lock_file(path: Path, work: str) -> Iterator[None]:
    """Hold the lock of a file, which stays; waits, with a notice about ``work`` of another process.

    Raises ``OSError`` where the file cannot be made, or the file system cannot lock.
    """
    with open(path, "a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            LOGGER.info("waiting for %s in another process", work)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
