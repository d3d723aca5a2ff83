"""Signals that ask a training to stop: SIGTERM and SIGUSR1, before a time limit or a preemption.

The handler only records the signal. The stop flag reaches all ranks with the counts of the next
step; they write a checkpoint together and end. The exit code is 75 (EX_TEMPFAIL: try again), but 0
under torchrun, which treats any other code as a failure and would start the ranks again.
"""

import os
import signal
import threading
from types import FrameType
from typing import Any

from mace_train.environment_variables import is_set

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Interruption:
    """In ``with`` blocks, which may be nested, records the first signal instead of terminating."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: list[dict[int, Any]] = []

    def __enter__(self) -> "Interruption":
        """Install the handler, in the main thread; elsewhere Python delivers no signals."""
        in_main = threading.current_thread() is threading.main_thread()
        numbers = SIGNALS if in_main else ()
        self._before.append({number: signal.signal(number, self._record) for number in numbers})
        return self

    def _record(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or number

    def __exit__(self, *exception: object) -> None:
        """Restore the handlers from before."""
        for number, handler in self._before.pop().items():
            signal.signal(number, handler)


def exit_code() -> int:
    """The exit code after a signal and its checkpoint."""
    return 0 if is_set("TORCHELASTIC_RUN_ID") else os.EX_TEMPFAIL
