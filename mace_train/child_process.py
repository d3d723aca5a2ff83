"""Child processes that end when this program is interrupted or terminated, and all theirs.

Each has a process group of its own. A terminal's Ctrl-C does not reach it, so that a compiler does
not fail before this program knows why, and a launcher's ranks are ended with it.
"""

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

from mace_train import interrupts

_running: dict[int, None] = {}  # process groups
_TRAINING_S = 20.0  # that a training has for its checkpoint after SIGTERM


def run_child(
    command: Sequence[str],
    *,
    input: str | None = None,
    is_training: bool = False,
    check: bool = False,
    capture_output: bool = False,
    stdout: Any = None,
    stderr: Any = None,
) -> "subprocess.CompletedProcess[str]":
    """``subprocess.run`` of text; the whole process group ends if an exception ends the wait.

    With ``is_training`` it is asked first, by the signal that this program has got, and waited for.
    """
    pipe = subprocess.PIPE if capture_output else None
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
        stdout=stdout or pipe,
        stderr=stderr or pipe,
        text=True,
        process_group=0,
    ) as child:
        _running[child.pid] = None
        try:
            out, err = child.communicate(input)
        except BaseException as error:
            if is_training:
                _ask(child, error)
            _end(child.pid)
            raise
        finally:
            _running.pop(child.pid, None)
    done = subprocess.CompletedProcess(command, child.returncode, out, err)
    if check:
        done.check_returncode()
    return done


@contextmanager
def children_end_with(pool: ThreadPoolExecutor) -> Iterator[None]:
    """If an exception leaves the block, end the children that threads of ``pool`` wait for."""
    try:
        yield
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for group in list(_running):
            _end(group)
        raise


def _ask(child: "subprocess.Popen[str]", error: BaseException) -> None:
    """Pass the signal on, and wait as long as there is time."""
    interrupted = isinstance(error, KeyboardInterrupt)
    _signal(child.pid, signal.SIGINT if interrupted else signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        child.wait(interrupts.GRACE_S - 0.1 if interrupted else _TRAINING_S)


def _end(group: int) -> None:
    """Ask a process group to end, so that a compiler removes its files, then kill it."""
    for _ in range(10):
        if not _signal(group, signal.SIGTERM):
            return
        time.sleep(0.02)
    _signal(group, signal.SIGKILL)


def _signal(group: int, number: int) -> bool:
    """Whether there was somebody to send it to."""
    try:
        os.killpg(group, number)
    except OSError:
        return False
    return True
