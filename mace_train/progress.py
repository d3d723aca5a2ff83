"""Progress bars on terminals; elsewhere a log line every 30 s, if asked for."""

import logging
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column

LOGGER = logging.getLogger("mace_train")
LOG_EVERY = 30.0  # s, where there is no terminal

_Item = TypeVar("_Item")


class ProgressBar:
    """Work of ``total`` units (steps, bytes) on stderr: ``over`` items, or ``advance`` in a block.

    ``counted`` names what is counted beside the units, such as "structures": its number and rate
    are shown. With ``log`` a line is logged every 30 s where there is no terminal.

    >>> bar = ProgressBar("epoch 1", 3)
    >>> for step in bar.over(range(3)):
    ...     bar.note(f"loss {1 / (step + 1):.2f}")
    """

    def __init__(
        self,
        label: str,
        total: int,
        *,
        enabled: bool = True,
        counted: str | None = None,
        log: bool = False,
    ) -> None:
        self.label, self.total, self.done, self.n_counted = label, max(total, 1), 0, 0
        self._counted, self._log = counted, log
        console = Console(stderr=True)
        self.enabled = enabled and console.is_terminal
        self._bar = Progress(*self._columns(), console=console, transient=True)
        self._start = self._last_line = time.monotonic()

    def _columns(self) -> Iterator[ProgressColumn]:
        yield TextColumn("{task.description}", table_column=Column(min_width=len(self.label)))
        yield BarColumn(bar_width=12)
        if self._counted is None:  # the number of units is worth showing
            width = 2 * len(str(self.total)) + 1
            yield MofNCompleteColumn(table_column=Column(min_width=width))
        yield TimeRemainingColumn(compact=True, table_column=Column(min_width=5))
        yield TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True))

    def __enter__(self) -> Self:
        self._task = self._bar.add_task(self.label, total=self.total, note="")
        if self.enabled:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.enabled:
            self._bar.stop()

    def over(self, items: Iterable[_Item]) -> Iterator[_Item]:
        """Yield ``items``, one unit each, while the bar is shown."""
        with self:
            for item in items:
                yield item
                self.advance()

    def note(self, text: str) -> None:
        """Show ``text`` beside the bar."""
        self._bar.update(self._task, note=text)

    def advance(self, units: int = 1, n_counted: int = 0) -> None:
        """Add finished units, and what is counted beside them."""
        self.done += units
        self.n_counted += n_counted
        self._bar.update(self._task, completed=self.done)
        if self._counted is None:
            return
        now = time.monotonic()
        rate = self.n_counted / max(now - self._start, 1e-9)
        text = f"{self.n_counted} {self._counted}, {rate:.0f} {self._counted}/s"
        self.note(text)
        if self._log and not self.enabled and now - self._last_line > LOG_EVERY:
            self._last_line = now
            share = self.done / self.total
            to_go = (now - self._start) * (1 / max(share, 1e-9) - 1) / 60
            LOGGER.info("%s: %.0f %%, %s, %.1f min to go", self.label, 100 * share, text, to_go)


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def seconds(self) -> float:
        """Seconds since the start, at least a nanosecond so that rates are finite."""
        return max(time.perf_counter() - self._start, 1e-9)
