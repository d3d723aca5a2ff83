"""Signals that ask a training to stop: SIGTERM and SIGUSR1, before a time limit or a preemption.

The handler only takes a note; the ranks agree on it with the next step's counts, write a checkpoint
together and end. The exit code is 75 (EX_TEMPFAIL: try again), but 0 under torchrun, which takes
any other code for a failure and would start the ranks again.
"""

import os
import signal
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Interruption:
    """Within ``with`` blocks, which may be nested, remembers the first signal and lives on."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: list[dict[int, Any]] = []

    def __enter__(self) -> "Interruption":
        """Take the signals over, in the main thread; elsewhere there are none to take."""
        in_main = threading.current_thread() is threading.main_thread()
        numbers = SIGNALS if in_main else ()
        self._before.append({number: signal.signal(number, self._note) for number in numbers})
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or number

    def __exit__(self, *exception: object) -> None:
        """Give the signals back."""
        for number, handler in self._before.pop().items():
            signal.signal(number, handler)


def exit_code() -> int:
    """What to end with after a checkpoint was written on request."""
    return 0 if "TORCHELASTIC_RUN_ID" in os.environ else os.EX_TEMPFAIL
