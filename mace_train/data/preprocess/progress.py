"""How far preprocess is: a bar over all processes on terminals, else a line now and then."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from mace_train.data.structure import LOGGER

LINE_EVERY = 30.0  # s, where there is no terminal


class Stage:
    """One stage of the work: ``done`` of ``total`` units (bytes, structures), and structures."""

    def __init__(self, label: str, total: int, bar: Progress | None) -> None:
        self.label, self.total, self.done, self.n_structures = label, max(total, 1), 0, 0
        self._start = self._last_line = time.monotonic()
        self._bar = bar
        self._task = None if bar is None else bar.add_task(label, total=self.total, rate="")

    def advance_structures(self, n_structures: int) -> None:
        """Note finished work whose unit is a structure."""
        self.advance(n_structures, n_structures)

    def advance(self, units: int, n_structures: int) -> None:
        """Note finished work."""
        self.done += units
        self.n_structures += n_structures
        now = time.monotonic()
        rate = self.n_structures / max(now - self._start, 1e-9)
        if self._bar is not None and self._task is not None:
            text = f"{self.n_structures} structures, {rate:.0f}/s"
            self._bar.update(self._task, completed=self.done, rate=text)
        elif now - self._last_line > LINE_EVERY:
            self._last_line = now
            to_go = (now - self._start) * (self.total / max(self.done, 1) - 1)
            LOGGER.info(
                "%s: %.0f %%, %d structures, %.0f structures/s, %.1f min to go",
                self.label,
                100 * self.done / self.total,
                self.n_structures,
                rate,
                to_go / 60,
            )


@contextmanager
def stage(label: str, total: int) -> Iterator[Stage]:
    """A stage with its bar on stderr."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Stage(label, total, None)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        yield Stage(label, total, bar)
