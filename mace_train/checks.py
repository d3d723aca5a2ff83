"""Checks of single settings, each with the message a user needs."""

import fcntl
import os
import socket
from pathlib import Path
from typing import IO, Any

from mace_train.errors import InputError


def check_choice(name: str, value: str, valid: tuple[str, ...]) -> None:
    """InputError unless ``value`` is one of the ``valid`` names."""
    if value not in valid:
        raise InputError(f"{name}={value!r} is not known; valid choices are: {', '.join(valid)}")


def check_at_least(name: str, value: float | None, least: float, *, strictly: bool = False) -> None:
    """InputError unless ``value`` is None, at least ``least``, or (``strictly``) greater."""
    if value is None:
        return
    if not (value > least if strictly else value >= least):
        relation = "greater than" if strictly else "at least"
        raise InputError(f"{name}={value} is out of range; it must be {relation} {least}")


def as_files(name: str, value: Any) -> list[str]:
    """A list of paths from a setting that may hold one path, several, or none."""
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return list(value)
    raise InputError(f"{name}={value!r} must be a path or a list of paths, such as [a.xyz,b.xyz]")


def files_by_head(name: str, value: Any) -> dict[str, list[str]]:
    """Paths by head, from a setting that holds them so, or paths of the head Default."""
    if not isinstance(value, dict):
        return {"Default": as_files(name, value)}
    return {str(head): as_files(f"{name}.{head}", files) for head, files in value.items()}


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
        raise InputError(
            f"{name}={path}: cannot make this folder ({error.strerror}); choose another {name}"
        ) from None
    if not os.access(path, os.W_OK):
        raise InputError(f"{name}={path}: no permission to write here; choose another {name}")


def lock_folder(name: str, path: Path) -> IO[str]:
    """Hold ``path`` for this process until the returned file is closed or the process ends.

    Raises ``InputError`` when another process holds it.
    """
    handle = open(path / ".lock", "a+")  # noqa: SIM115 (held until the run ends)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        handle.seek(0)
        holder = handle.read().strip() or "another process"
        handle.close()
        raise InputError(
            f"{name}={path} is in use by {holder}; wait for it to end or choose another {name}"
        ) from None
    handle.truncate(0)
    handle.write(f"process {os.getpid()} on {socket.gethostname()}")
    handle.flush()
    return handle


def is_locked(path: Path) -> bool:
    """Whether a process holds ``path`` (``lock_folder``)."""
    try:
        with open(path / ".lock") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
