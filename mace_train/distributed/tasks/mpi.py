"""MPI ranks: rank 0 distributes tasks and runs some itself, the others ask for the next one.

The only module that imports mpi4py. A thread of rank 0 answers the others while its main thread
works; it is the only one that calls MPI meanwhile. Waiting is by polling every millisecond, not by
MPI's busy loops, so ranks that wait leave their cores to those that work.

Tasks and results are pickled (mpi4py's lower-case methods): a task is a function of the package and
its argument, and both ends are processes that the launcher started as this user. MPI connects no
others; what guards its connections on the network is the MPI library's, as for every MPI program.

SIGINT may reach all ranks or any of them: rank 0 tidies up and ends all, the others tell it.
"""

import _thread
import logging
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypeVar

from mace_train import interrupts
from mace_train.distributed.launcher import Tasks
from mace_train.errors import InputError

Task = TypeVar("Task")
Result = TypeVar("Result")
_POLL = 1e-3  # s
_PATIENCE_S = 10.0  # for the tasks of the others, when a fault ends the run
_FORWARDED_S = 1.0  # in which mpiexec forwards what was written: it drops the rest after Abort
_INTERRUPTED = "interrupted"


def connect(tasks: Tasks) -> Any:
    """The communicator of all ranks.

    Raises:
        InputError: there is no MPI library, or MPI does not see all tasks.
    """
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # mpi4py's wheels open libmpi when imported
        reason = "; ".join(str(error).splitlines())
        raise InputError(
            f"{tasks.size} tasks were started ({tasks.variable}), but mpi4py finds no MPI library "
            f"({reason}): load the MPI module of the cluster, or pip install mpich; or start one "
            "task with workers=N"
        ) from None
    communicator = MPI.COMM_WORLD
    if communicator.Get_size() != tasks.size:
        raise InputError(
            f"{tasks.variable} says {tasks.size} tasks, MPI connects {communicator.Get_size()}: "
            "launcher and MPI library do not fit; try srun --mpi=pmi2 (MPICH) or --mpi=pmix "
            "(Open MPI), or the mpiexec that came with the library"
        )
    if communicator.Get_size() > 1 and MPI.Query_thread() < MPI.THREAD_SERIALIZED:
        raise InputError(
            "this MPI library does not allow calls from threads (MPI_THREAD_SERIALIZED); use "
            "another one, such as pip install mpich, or one task with workers=N"
        )
    return communicator


def serve(communicator: Any) -> None:
    """Run the tasks that rank 0 sends, until there are no more, or SIGINT."""
    try:
        _serve(communicator)
    except KeyboardInterrupt:
        communicator.isend(_INTERRUPTED, dest=0)
        time.sleep(interrupts.GRACE_S)  # in which rank 0 ends all, if it has not left
        communicator.Abort(interrupts.EXIT_CODE)


def _serve(communicator: Any) -> None:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)  # rank 0 reports, the launcher ends the others
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # rank 0 ends all of them in order
    logging.getLogger("mace_train").setLevel(logging.ERROR)
    answer: Any = None
    while True:
        communicator.send(answer, dest=0)
        task = _receive(communicator, 0)
        if task is None:
            return
        index, function, argument = task
        answer = (index, *_run_task(function, argument))


def _run_task(function: Callable[[Any], Any], argument: Any) -> tuple[Any, Any]:
    """(result, None), or (None, error); what is not an InputError comes with its trace."""
    try:
        return function(argument), None
    except (InputError, OSError) as error:  # of the input, or of the disk
        return None, error
    except Exception:  # the fault is reported by rank 0, which stops the run
        return None, RuntimeError(f"on {os.uname().nodename}:\n{traceback.format_exc()}")


def _receive(communicator: Any, source: int) -> Any:
    while not communicator.iprobe(source=source):
        time.sleep(_POLL)
    return communicator.recv(source=source)


class Ranks:
    """The pool of all ranks, on rank 0."""

    def __init__(self, communicator: Any) -> None:
        self.size: int = communicator.Get_size()
        self._communicator = communicator
        self._waiting: list[int] = []  # ranks that asked for a task and have none

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            interrupts.say()
            self._communicator.Abort(interrupts.EXIT_CODE)
        if kind is None or not issubclass(kind, Exception) or issubclass(kind, InputError):
            self._dismiss()
            return
        with suppress(Exception):  # MPI itself may be at fault
            if self._dismiss(_PATIENCE_S):
                return  # all ranks end by themselves, and this one with the error
        traceback.print_exception(error)
        sys.stderr.flush()
        time.sleep(_FORWARDED_S)
        self._communicator.Abort(1)

    def _dismiss(self, patience_s: float = math.inf) -> bool:
        """Let the others end when they have ended their tasks; False if they do not in time."""
        end = time.monotonic() + patience_s
        while len(self._waiting) < self.size - 1:
            if time.monotonic() > end:
                return False
            self._collect(_TaskQueue([], lambda result: None))
            time.sleep(_POLL)
        for rank in self._waiting:
            self._communicator.send(None, dest=rank)
        return True

    def map(
        self,
        function: Callable[[Task], Result],
        tasks: Sequence[Task],
        done: Callable[[Result], None],
    ) -> list[Result]:
        """See TaskPool."""
        queue = _TaskQueue(tasks, done)
        server = threading.Thread(target=self._serve, args=(queue, function), daemon=True)
        server.start()
        try:
            while (index := queue.take()) is not None:
                queue.put(index, *_run_task(function, tasks[index]))
        finally:
            queue.close()
            if not interrupts.received():  # else all ranks are ended in the middle of their tasks
                server.join()
        return queue.results()

    def _serve(self, queue: "_TaskQueue", function: Callable[[Any], Any]) -> None:
        """Answer the other ranks until no task is left and none is running."""
        try:
            while True:
                self._collect(queue)
                while self._waiting and (index := queue.take()) is not None:
                    rank = self._waiting.pop(0)
                    self._communicator.send((index, function, queue.tasks[index]), dest=rank)
                if queue.is_closed and len(self._waiting) == self.size - 1:
                    return
                time.sleep(_POLL)
        except BaseException as error:  # of this thread, to be raised by the main one
            queue.fail(error)

    def _collect(self, queue: "_TaskQueue") -> None:
        """Receive the answers that have arrived."""
        for rank in range(1, self.size):
            while rank not in self._waiting and self._communicator.iprobe(source=rank):
                answer = self._communicator.recv(source=rank)
                if answer == _INTERRUPTED:
                    _thread.interrupt_main()
                    return
                self._waiting.append(rank)
                if answer is not None:
                    queue.put(*answer)


class _TaskQueue:
    """Tasks and results, shared by the two threads of rank 0."""

    def __init__(self, tasks: Sequence[Any], done: Callable[[Any], None]) -> None:
        self.tasks = tasks
        self._done = done
        self._results: dict[int, Any] = {}
        self._errors: dict[int, BaseException] = {}
        self._next = 0
        self._closed = False
        self._lock = threading.Lock()

    def take(self) -> int | None:
        """The number of the next task; None if there is none, or one has failed."""
        with self._lock:
            if self._errors or self._closed or self._next >= len(self.tasks):
                return None
            self._next += 1
            return self._next - 1

    def put(self, index: int, result: Any, error: BaseException | None) -> None:
        """Store the result or the error of a task."""
        with self._lock:
            if error is not None:
                self._errors[index] = error
                return
            self._results[index] = result
            self._done(result)

    def fail(self, error: BaseException) -> None:
        """Store an error of the pool itself."""
        with self._lock:
            self._errors[-1] = error

    def close(self) -> None:
        """Stop giving tasks to this rank."""
        with self._lock:
            self._closed = True

    @property
    def is_closed(self) -> bool:
        """Whether rank 0 itself takes no more tasks."""
        with self._lock:
            return self._closed

    def results(self) -> list[Any]:
        """All results in order; the error of the first task that failed."""
        if self._errors:
            raise self._errors[min(self._errors)]
        return [self._results[index] for index in range(len(self.tasks))]
