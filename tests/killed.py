"""Processes killed at their k-th change of a folder, files that cannot grow, small disks.

An audit hook of Python sees a file being opened, made, renamed, linked or removed before it
happens. A child process that is forked for one action kills itself there, with SIGKILL, so that
nothing of it runs afterwards, as when a node is lost.
"""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_CHANGES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate")


def events(folder: Path, action: Callable[[], object]) -> int:
    """How often ``action`` changes something below ``folder``; it is carried out in a child."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        count = [0]
        _watch(folder, lambda: count.__setitem__(0, count[0] + 1))
        _carry_out(action, lambda: os.write(write, str(count[0]).encode()))
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    return int(text)


def killed_at(number: int, folder: Path, action: Callable[[], object]) -> int:
    """Carry ``action`` out in a child that is killed before change ``number``; its exit status."""
    child = os.fork()
    if child == 0:
        left = [number]

        def count_down() -> None:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        _watch(folder, count_down)
        _carry_out(action, lambda: None)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _carry_out(action: Callable[[], object], end: Callable[[], object]) -> None:
    code = 1
    try:
        action()
        end()
        code = 0
    finally:
        os._exit(code)  # nothing of pytest runs in the child


def _watch(folder: Path, note: Callable[[], None]) -> None:
    start = str(folder)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event not in _CHANGES or not str(arguments[0]).startswith(start):
            return
        reads = event == "open" and not int(str(arguments[2])) & (os.O_WRONLY | os.O_RDWR)
        if not reads:
            note()

    sys.addaudithook(hook)


@contextmanager
def limited_files(n_bytes: int) -> Iterator[None]:
    """No file can grow beyond that size: writes fail as on a full disk, in any container."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """A file system of that size; skips where none can be mounted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"file systems cannot be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)
