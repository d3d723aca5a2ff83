"""Ctrl-C (SIGINT): the program ends within two seconds, whatever it is doing, and leaves nothing.

While a command works, the first SIGINT raises KeyboardInterrupt in the main thread, so that
``finally`` blocks run; a training first writes a checkpoint (``deferred``). A thread of its own
ends the program after GRACE_S, or at a second SIGINT: it kills the child processes and removes the
unfinished files. It can where the main thread cannot react, such as in a collective. Before and
after the work there is nothing to tidy, and SIGINT ends the program at once.

Only the program installs this (``__main__``); for a caller of the library SIGINT is what it was.
It imports little, because it is imported first.
"""

import _thread
import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

EXIT_CODE = 128 + signal.SIGINT
GRACE_S = 1.5  # from the first SIGINT to the end
SAVING_S = 0.9  # of these, for what is ``deferred``
SAME_S = 0.3  # a launcher sends once more what the terminal has sent to all processes
_RANKS = (
    "RANK",
    "OMPI_COMM_WORLD_RANK",
    "JSM_NAMESPACE_RANK",
    "PMI_RANK",
    "PMIX_RANK",
    "SLURM_PROCID",
)


class _State:
    """What has happened so far; set by assignments, which no signal can interrupt."""

    installed = False
    working = False
    received = False  # a SIGINT
    raised = False  # KeyboardInterrupt
    overdue = False  # the time of ``deferred`` is over
    said = False
    finished = False  # the work
    together = False  # all ranks end
    n_own = 0  # signals of this program to itself that are under way
    deferred: Callable[[], None] | None = None
    tell_ranks: Callable[[], None] | None = None
    exit_code = EXIT_CODE
    ending = threading.Lock()
    unfinished: dict[str, None] = {}  # noqa: RUF012 (there is one state)


def install() -> None:
    """Handle SIGINT from now on, unless it is ignored, as it is for ``nohup mace-train ... &``."""
    if _State.installed or signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        return
    _State.installed = True
    signal.signal(signal.SIGINT, _handle)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader,), name="interrupts", daemon=True).start()
    atexit.register(_at_exit)
    os.register_at_fork(after_in_child=_in_child)
    sys.unraisablehook = _once_more
    threading.excepthook = _of_thread


def begin_work() -> None:
    """From now on there is something to tidy before the end."""
    _State.working = True


def end_work(exit_code: int) -> None:
    """From now on there is nothing to tidy any more, and nothing to say."""
    _State.exit_code, _State.said, _State.finished = exit_code, True, True
    _State.working = _State.received


def tell_by(tell_ranks: Callable[[], None]) -> None:
    """Call this, in a thread, when SIGINT comes: it may have come to this rank alone."""
    _State.tell_ranks = tell_ranks


def received() -> bool:
    """Whether this program is being interrupted."""
    return _State.received


@contextmanager
def deferred(record: Callable[[], None]) -> Iterator[None]:
    """In the block, the first SIGINT calls ``record``; KeyboardInterrupt comes SAVING_S later."""
    _State.deferred = record
    try:
        yield
    finally:
        _State.deferred = None


@contextmanager
def unfinished(path: str | os.PathLike[str]) -> Iterator[None]:
    """A file or folder that is removed where the program ends at once, in the block."""
    name = os.fspath(path)
    _State.unfinished[name] = None
    try:
        yield
    finally:
        _State.unfinished.pop(name, None)


def say() -> None:
    """Tell the user once, on one rank."""
    rank = next((os.environ[name] for name in _RANKS if name in os.environ), "0")
    if _State.said or rank != "0":
        return
    _State.said = True
    # behind the ^C that a terminal shows, whose cursor a progress bar has hidden
    before = b"\033[?25h\n" if os.isatty(2) else b""
    with suppress(OSError):
        os.write(2, before + b"mace-train: interrupted\n")


def told() -> None:
    """The user has been told in other words, and all ranks end together."""
    _State.said = _State.together = True


def leave() -> None:
    """End at once: no ``finally`` block runs any more."""
    if not _State.ending.acquire(blocking=False):
        return  # another thread does
    say()
    kill(descendants(os.getpid()))
    for name in list(_State.unfinished):
        if os.path.isdir(name):
            from shutil import rmtree

            rmtree(name, ignore_errors=True)
        with suppress(OSError):
            os.unlink(name)
    is_rank = any(name in os.environ for name in _RANKS[1:])
    if is_rank and not _State.together and _State.exit_code == EXIT_CODE:
        _die()
    os._exit(_State.exit_code)


def _die() -> None:
    """Of SIGINT, in any thread: an mpiexec ends all ranks then, but not after an exit code.

    A shell shows the same exit code.
    """
    import ctypes

    ctypes.CDLL(None).signal(int(signal.SIGINT), None)  # SIG_DFL is 0
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(1)


def descendants(process: int) -> list[int]:
    """Child processes and theirs, as far as the system shows them (Linux)."""
    found: list[int] = []
    with suppress(OSError):
        for task in os.listdir(f"/proc/{process}/task"):
            with suppress(OSError), open(f"/proc/{process}/task/{task}/children") as file:
                found += map(int, file.read().split())
    return found + [below for child in found for below in descendants(child)]


def kill(processes: list[int]) -> None:
    """SIGKILL."""
    for process in processes:
        with suppress(OSError):
            os.kill(process, signal.SIGKILL)


def _handle(number: int, frame: object) -> None:
    """In the main thread, as soon as it can."""
    _State.received = True
    if not _State.working:
        leave()
    elif _State.deferred is not None and not _State.overdue:
        _State.deferred()
    elif not _State.raised:
        _State.raised = True
        raise KeyboardInterrupt


def _watch(reader: int) -> None:
    """Wait for signals; the interpreter writes a byte for each, even where no handler can run."""
    first: float | None = None
    while True:
        n_received = os.read(reader, 64).count(signal.SIGINT)
        n_own = min(_State.n_own, n_received)
        _State.n_own -= n_own
        if n_received == n_own:
            continue
        _State.received = True
        if not _State.working:
            leave()
        elif first is None:
            first = time.monotonic()
            threading.Thread(target=_end_after_grace, daemon=True).start()
            if _State.tell_ranks is not None:
                threading.Thread(target=_State.tell_ranks, daemon=True).start()
        elif time.monotonic() - first > SAME_S:
            leave()


def _end_after_grace() -> None:
    time.sleep(SAVING_S)
    _State.overdue = True
    if not _State.raised:
        _interrupt_main()
    time.sleep(GRACE_S - SAVING_S)
    leave()


def _interrupt_main() -> None:
    """As another SIGINT would."""
    _State.n_own += 1
    _thread.interrupt_main(signal.SIGINT)


def _once_more(unraisable: "sys.UnraisableHookArgs") -> None:
    """Where KeyboardInterrupt was raised in a destructor or a callback, which swallow it."""
    if _State.raised and unraisable.exc_type is KeyboardInterrupt:
        threading.Thread(target=_raise_again, daemon=True).start()
    elif not _State.received:
        sys.__unraisablehook__(unraisable)


def _raise_again() -> None:
    time.sleep(0.01)  # in which the main thread returns from where nothing can be raised
    _State.raised = False
    _interrupt_main()


def _of_thread(arguments: threading.ExceptHookArgs) -> None:
    """No traces of threads whose children were interrupted, or that met a full disk."""
    if _State.received:
        return
    if not isinstance(arguments.exc_value, OSError):
        threading.__excepthook__(arguments)
        return
    with suppress(OSError):
        sys.stderr.write(f"warning: a thread failed: {arguments.exc_value}\n")


def _at_exit() -> None:
    """The last of the exit functions: only modules are left to take down, for a second."""
    if received():
        leave()
    if _State.finished and "mpi4py.MPI" not in sys.modules:  # which MPI has to be told
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(_State.exit_code)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _in_child() -> None:
    """A forked process is ended by its parent; a terminal interrupts both at once."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _State.received = _State.working = False
    _State.unfinished = {}
