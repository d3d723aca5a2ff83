"""Running jobs in a pool of processes, a bounded number at a time.

No worker outlives the process that started it, however that ends: each has a thread that waits
for the other end of a pipe to close, which the kernel does even for a process that is killed.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor

Job = Callable[[], None]


def run_jobs(jobs: Iterable[Job], workers: int) -> None:
    """Call every job; with ``workers`` > 1 in that many processes (jobs must then pickle).

    At most two jobs per worker exist at a time, so ``jobs`` may be a generator over more data than
    memory holds. After an error, or an interrupt, no job is running when this returns.
    """
    if workers == 1:
        for job in jobs:
            job()
        return
    # spawn: forking a process that has threads (torch, OpenMP, HDF5) can deadlock
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker)
    try:
        running: deque[Future[None]] = deque()
        for job in jobs:
            running.append(pool.submit(job))
            if len(running) >= 2 * workers:
                running.popleft().result()
        for future in running:
            future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin_worker() -> None:
    """Leave Ctrl+C to the parent, which stops the pool and cleans up, and end when it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # at once, in the middle of a job: its folder is removed by the next preprocess
