"""Signals that ask a training to stop: SIGTERM, SIGUSR1 and SIGHUP, and SIGINT within an epoch.

They come before a time limit or a preemption, when a terminal is closed, and with Ctrl-C.

The handler only records the signal. The stop flag reaches all ranks with the counts of the next
step; they write a checkpoint together and end. The exit code is 75 (EX_TEMPFAIL: try again), or 130
after SIGINT, but 0 under torchrun, which treats any other code as a failure and would start the
ranks again.
"""

import os
import signal
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from types import FrameType
from typing import Any

from mace_train import interrupts
from mace_train.environment_variables import is_set

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


def catch(number: int, handler: Callable[[int, FrameType | None], None] | Any) -> Any:
    """Install a handler, unless the signal is ignored (``nohup``); the handler from before."""
    before = signal.getsignal(number)
    if before != signal.SIG_IGN:
        signal.signal(number, handler)
    return before


class Interruption:
    """In ``with`` blocks, which may be nested, records the first signal instead of terminating."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: list[dict[int, Any]] = []

    def __enter__(self) -> "Interruption":
        """Install the handler, in the main thread; elsewhere Python delivers no signals."""
        in_main = threading.current_thread() is threading.main_thread()
        numbers = SIGNALS if in_main else ()
        self._before.append({number: catch(number, self._record) for number in numbers})
        return self

    def until_checkpoint(self) -> AbstractContextManager[None]:
        """In a ``with`` block, SIGINT too is recorded, as long as it waits (``interrupts``)."""
        return interrupts.deferred(partial(self._record, signal.SIGINT, None))

    @property
    def is_interrupt(self) -> bool:
        """Whether the signal is SIGINT."""
        return self.signal == signal.SIGINT

    def _record(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or number

    def __exit__(self, *exception: object) -> None:
        """Restore the handlers from before."""
        for number, handler in self._before.pop().items():
            signal.signal(number, handler)


def exit_code(*, interrupted: bool = False) -> int:
    """The exit code after a signal and its checkpoint."""
    if is_set("TORCHELASTIC_RUN_ID"):
        return 0
    return interrupts.EXIT_CODE if interrupted else os.EX_TEMPFAIL
