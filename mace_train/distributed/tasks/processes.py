"""Worker processes of this machine.

No worker outlives the process that started it, however that ends: each has a thread that waits
for the other end of a pipe to close, which the kernel does even for a process that is killed.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from types import TracebackType
from typing import Self, TypeVar

from mace_train.errors import InputError

Task = TypeVar("Task")
Result = TypeVar("Result")


class Processes:
    """A pool of worker processes."""

    def __init__(self, size: int) -> None:
        self.size = size
        # spawn: forking a process that has threads (torch, OpenMP, HDF5) can deadlock
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(size, mp_context=context, initializer=_begin_worker)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None and not issubclass(kind, Exception):  # a signal: now, not after a task
            for worker in list(self._pool._processes.values()):
                worker.kill()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def map(
        self,
        function: Callable[[Task], Result],
        tasks: Sequence[Task],
        done: Callable[[Result], None],
    ) -> list[Result]:
        """See TaskPool; at most two tasks per worker wait in the pool."""
        results: dict[int, Result] = {}
        running: dict[Future[Result], int] = {}
        failed: dict[int, InputError] = {}
        submitted = 0
        try:
            while running or (submitted < len(tasks) and not failed):
                while submitted < len(tasks) and len(running) < 2 * self.size and not failed:
                    with _without_interrupts():
                        future = self._pool.submit(function, tasks[submitted])
                    running[future] = submitted
                    submitted += 1
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    index = running.pop(future)
                    try:
                        results[index] = future.result()
                    except InputError as error:
                        failed[index] = error
                    else:
                        done(results[index])
        except BrokenProcessPool:
            raise InputError(
                "a worker process was killed (by the system, if memory ran out); the same command "
                "continues from here, with fewer workers if it was memory"
            ) from None
        if failed:
            raise failed[min(failed)]
        return [results[index] for index in range(len(tasks))]


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Workers that are started here never see Ctrl+C: the parent stops the pool and cleans up."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker() -> None:
    """End when the parent ends."""
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # at once, in the middle of a task: what it wrote has no name yet
