"""One command in a forked child of this process, or in a process of its own, with limits.

A fork has everything imported already and takes tens of milliseconds where a new process takes
seconds. ``fair_seconds`` is the time since the start without the time that the process waited for a
core, so that a busy machine makes no case look like a hang.
"""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

MOST_SECONDS = 10.0  # fair ones; then it counts as hanging
SECONDS_TO_STOP = 5.0  # fair ones, after SIGINT
MOST_MEMORY = 12 << 30  # bytes of address space
MOST_TASKS = 200  # processes and threads of one case


@dataclass
class Result:
    """How a command ended."""

    code: int  # negative: the signal that ended it
    out: str
    err: str
    seconds: float
    fate: str = ""  # "hang" or "tasks" where it was stopped for that, "interrupted" by our SIGINT


@dataclass
class Running:
    """A command that has been started."""

    pid: int
    folder: Path
    box: float  # fair seconds until it is interrupted
    start: float = field(default_factory=time.monotonic)
    fate: str = ""
    interrupted_at: float = 0.0
    waited: dict[int, float] = field(default_factory=dict)  # seconds by process
    look_at: float = field(default_factory=lambda: time.monotonic() + 0.5)  # reads all of /proc

    def fair_seconds(self) -> float:
        """Seconds since the start, without those that its processes waited for a core."""
        for pid in (self.pid, *_members(self.pid)):
            with contextlib.suppress(OSError, IndexError, ValueError):
                text = Path(f"/proc/{pid}/schedstat").read_text()
                self.waited[pid] = int(text.split()[1]) / 1e9
        return time.monotonic() - self.start - sum(self.waited.values())

    def poll(self) -> Result | None:
        """The result, if it has ended; stops it where a limit is passed."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            end_session(self.pid)
            return self._result(os.waitstatus_to_exitcode(status))
        if time.monotonic() < self.look_at:
            return None
        self.look_at = time.monotonic() + 0.5
        seconds = self.fair_seconds()
        if count_tasks(self.pid) > MOST_TASKS:
            self.kill("tasks")
        elif not self.interrupted_at and seconds > self.box * self._patience():
            self.interrupted_at = seconds
            self.fate = "interrupted"
            os.kill(self.pid, signal.SIGINT)
        elif self.interrupted_at and seconds > self.interrupted_at + SECONDS_TO_STOP * crowd():
            self.kill("hang")
        return None

    def _patience(self) -> float:
        """1 where a case may run for long, and is interrupted anyway."""
        return crowd() if self.box >= MOST_SECONDS else 1.0

    def kill(self, fate: str) -> None:
        self.fate = fate
        end_session(self.pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def _result(self, code: int) -> Result:
        out, err = (
            (self.folder / name).read_text(errors="replace") for name in ("stdout", "stderr")
        )
        return Result(code, out, err, time.monotonic() - self.start, self.fate)


def fork(words: list[str], environment: Mapping[str, str], folder: Path, box: float) -> Running:
    """Run ``mace-train WORDS`` in a child that begins as a copy of this process.

    ``folder`` gets stdout and stderr; the command runs in ``folder/work``.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Running(pid, folder, box)
    code = 70
    try:
        _enter(folder, environment)
        from mace_train.__main__ import run

        sys.argv = ["mace-train", *words]
        code = _exit_code(run)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except BaseException:
                code = code or 71
        os._exit(code)


def _exit_code(run: Callable[[], None]) -> int:
    """What the interpreter would exit with."""
    try:
        run()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return (end.code or 0) & 0xFF
        sys.stderr.write(f"{end.code}\n")
        return 1
    except KeyboardInterrupt:
        traceback.print_exc()
        return 130
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _enter(folder: Path, environment: Mapping[str, str]) -> None:
    """Become what a new process in ``folder/work`` would be."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    limit()
    for number, name, flags in (
        (0, Path(os.devnull), os.O_RDONLY),
        (1, folder / "stdout", os.O_WRONLY | os.O_CREAT),
        (2, folder / "stderr", os.O_WRONLY | os.O_CREAT),
    ):
        opened = os.open(name, flags)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin = open(0)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False, errors="backslashreplace")  # noqa: SIM115
    os.chdir(folder / "work")
    os.environ.clear()
    os.environ.update(environment)


def limit() -> None:
    """No more memory than a case may take, and no core files."""
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def start(words: list[str], environment: Mapping[str, str], folder: Path, box: float) -> Running:
    """Run ``mace-train WORDS`` as a user does: in a new process; imports are not counted."""
    with open(folder / "stdout", "wb") as out, open(folder / "stderr", "wb") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "mace_train", *words],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            cwd=folder / "work",
            env=dict(environment),
            start_new_session=True,
            preexec_fn=limit,
        )
    process.returncode = 0  # Running waits for it
    return Running(process.pid, folder, box + 60.0)


def crowd() -> float:
    """Processes that want a core, per core: disks and memory are as slow, which no clock shows."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def count_tasks(session: int) -> int:
    """Processes and threads of a session."""
    return sum(_tasks_of(pid) for pid in _members(session))


def end_session(session: int) -> None:
    """Kill what is left of a session but its first process."""
    for pid in _members(session):
        if pid != session:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _members(session: int) -> Iterator[int]:
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session:
                yield int(entry)


def _tasks_of(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return 0
