"""Commands that are interrupted at a given moment, and what they must not leave behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
SECONDS = 2.0  # on a machine with a free core
_MARK = "MACE_TRAIN_TEST_OF_INTERRUPTS"
_TRACES = ("Traceback", "Exception ignored", "KeyboardInterrupt", "resource_tracker", "terminate")
_LITTER = ("*.tmp", "*.partial", "*.part", "*.incomplete", ".mace-train-*")


@dataclass
class Ended:
    """How an interrupted command ended."""

    code: int
    seconds: float  # from the signal to the end
    stretch: float  # seconds per second of work that this machine had to spare meanwhile
    errors: str
    sent: bool = True  # False: it had ended before
    orphans: list[str] = field(default_factory=list)
    litter: list[str] = field(default_factory=list)

    def problems(self, *, by_launcher: bool = False) -> list[str]:
        """What is wrong with it; a launcher has messages and exit codes of its own."""
        if not self.sent:
            return [] if self.code == 0 else [f"code {self.code} though not interrupted"]
        found = []
        if self.code not in (128 + signal.SIGINT, 0) and not by_launcher:
            found.append(f"code {self.code}")
        n_said = self.errors.count("interrupted")
        if n_said > 1 or (n_said == 0 and self.code != 0 and not by_launcher):
            found.append(f"said {n_said} times")
        if self.seconds > SECONDS * max(1.0, self.stretch):
            found.append(f"{self.seconds:.2f} s (stretch {self.stretch:.1f})")
        own = list(_own_traces(self.errors)) if by_launcher else [self.errors]
        found += [mark for mark in _TRACES if any(mark in text for text in own)]
        found += [f"orphan {who}" for who in self.orphans]
        return found + [f"left {path}" for path in self.litter]


def _own_traces(errors: str) -> Iterator[str]:
    """The tracebacks in which a file of ours appears."""
    for text in errors.split("Traceback")[1:]:
        if "mace_train/" in text:
            yield "Traceback" + text


def interrupted(
    command: list[str],
    folder: Path,
    delay: float,
    *,
    to: str = "group",
    allowed: tuple[str, ...] = (),
    number: int = signal.SIGINT,
    after: Callable[[], bool] | None = None,
) -> Ended:
    """Run ``command`` in ``folder`` and interrupt it ``delay`` seconds after it handles signals.

    Or after ``after()`` holds, if it is given.

    ``to`` is "group" (a terminal), "process" (the command alone) or "child" (the last rank that has
    started). ``allowed`` are names of files that may stay.
    """
    (folder / "tmp").mkdir(parents=True, exist_ok=True)
    mark = f"{os.getpid()}.{time.monotonic_ns()}"
    environment = os.environ | {
        _MARK: mark,
        "TMPDIR": str(folder / "tmp"),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    environment.setdefault("XDG_CACHE_HOME", str(folder / "cache"))
    with open(folder / "errors.txt", "w+") as errors:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
            # where & has started the tests, SIGINT is ignored
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
        )
        try:
            ready = after or (lambda: any(map(_handles_signals, _marked(mark))))
            sent = _wait(process, ready, delay)
            begin, spare = time.monotonic(), _Spare()
            programs = [pid for pid in _marked(mark) if _handles_signals(pid)]
            seconds: float | None = None
            if sent:
                _send(process, mark, to, number)
            while process.poll() is None:
                spare.measure()
                if seconds is None and not any(os.path.exists(f"/proc/{p}/exe") for p in programs):
                    seconds = time.monotonic() - begin  # a launcher takes longer
                if time.monotonic() - begin > 60:
                    break
            seconds = seconds or time.monotonic() - begin
            orphans = _orphans(mark)
        finally:
            for pid in _marked(mark):
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            process.wait()
        errors.seek(0)
        text = errors.read()
    litter = sorted({p for pattern in _LITTER for p in folder.rglob(pattern)})
    # torch's cache, logs of torchrun
    theirs = ("torchinductor_*", "torchelastic_*")
    litter += [p for p in (folder / "tmp").iterdir() if not any(map(p.match, theirs))]
    left = [str(p.relative_to(folder)) for p in litter if not any(map(p.match, allowed))]
    return Ended(process.returncode, seconds, spare.stretch, text, sent, orphans, left)


class _Spare:
    """How much longer work takes than it would on a free core."""

    def __init__(self) -> None:
        self._wall = self._cpu = 0.0

    def measure(self) -> None:
        """A little work, then a rest."""
        wall, cpu = time.monotonic(), time.process_time()
        while time.process_time() - cpu < 2e-2:  # less would be given precedence
            pass
        self._wall += time.monotonic() - wall
        self._cpu += time.process_time() - cpu
        time.sleep(0.02)

    @property
    def stretch(self) -> float:
        """At least 1."""
        return self._wall / self._cpu if self._cpu else 1.0


def _wait(process: "subprocess.Popen[bytes]", ready: Callable[[], bool], delay: float) -> bool:
    """Wait until it is ready, and ``delay`` longer; False if it ends meanwhile."""
    while process.poll() is None and not ready():
        time.sleep(2e-3)
    with suppress(subprocess.TimeoutExpired):
        process.wait(delay)
    return process.poll() is None


def _handles_signals(pid: int) -> bool:
    """Whether a process is the program behind its first lines, in which it catches SIGINT.

    Before, the interpreter starts, whose tracebacks are its own.
    """
    with suppress(OSError, StopIteration):
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        if b"torch.distributed.run" in command or b"mpiexec" in command.split(b"\0")[0]:
            return False
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        threads = int(next(line for line in lines if line.startswith("Threads")).split()[1])
        caught = int(next(line for line in lines if line.startswith("SigCgt")).split()[1], 16)
        return threads > 1 and bool(caught >> (signal.SIGINT - 1) & 1)
    return False


def _send(process: "subprocess.Popen[bytes]", mark: str, to: str, number: int) -> None:
    with suppress(OSError):
        if to == "group":
            os.killpg(process.pid, number)
        elif to == "process":
            os.kill(process.pid, number)
        else:
            os.kill([pid for pid in _marked(mark) if _handles_signals(pid)][-1], number)


def _marked(mark: str) -> list[int]:
    """Processes that were started with the mark in their environment, and those they started."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError):
                if f"{_MARK}={mark}".encode() in Path(f"/proc/{name}/environ").read_bytes():
                    found.append(int(name))
    return sorted(found)


def _orphans(mark: str) -> list[str]:
    """Those that still run half a second later."""
    end = time.monotonic() + 0.5
    while (left := _marked(mark)) and time.monotonic() < end:
        time.sleep(0.02)
    shown = []
    for pid in left:
        with suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
            shown.append(f"{pid} {' '.join(words)[:120]}")
    return shown


PROGRAM = [sys.executable, "-m", "mace_train"]
