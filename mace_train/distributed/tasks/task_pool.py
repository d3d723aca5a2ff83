"""A pool of workers that run tasks; results come in the order of the tasks.

    pool.map(function, tasks, done) == [function(task) for task in tasks]

This process, worker processes of this machine, or MPI ranks run the same tasks, and what a task
does may not depend on who runs it. Tasks are started in order, so long ones early in the list do
not keep the others waiting at its end. If tasks fail with an InputError, the error of the first of
them is raised after the tasks before it have ended, so the message does not depend on the pool.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from mace_train.distributed.launcher import launched_tasks
from mace_train.distributed.tasks.mpi import Ranks, connect, serve
from mace_train.distributed.tasks.processes import Processes
from mace_train.errors import InputError

Task = TypeVar("Task")
Result = TypeVar("Result")


class TaskPool(Protocol):
    """Interface of all pools."""

    size: int

    def map(
        self,
        function: Callable[[Task], Result],
        tasks: Sequence[Task],
        done: Callable[[Result], None],
    ) -> list[Result]:
        """The results in the order of ``tasks``; ``done`` is called with each as it arrives."""
        ...


class InProcess:
    """Runs tasks one by one in this process."""

    size = 1

    def map(
        self,
        function: Callable[[Task], Result],
        tasks: Sequence[Task],
        done: Callable[[Result], None],
    ) -> list[Result]:
        """See TaskPool."""
        results = []
        for task in tasks:
            results.append(function(task))
            done(results[-1])
        return results


@contextmanager
def open_task_pool(workers: int) -> Iterator[TaskPool | None]:
    """The pool of this run; None on an MPI rank other than 0, after it ran its tasks.

    Raises:
        InputError: several tasks were started that MPI does not connect, or worker processes
            were asked for on top of MPI ranks.
    """
    tasks = launched_tasks()
    if tasks is None:
        if workers == 1:
            yield InProcess()
            return
        with Processes(workers) as processes:
            yield processes
        return
    if workers > 1:
        raise InputError(
            f"workers={workers} in {tasks.size} MPI ranks: every rank is one worker; start "
            f"{workers} times as many ranks with workers=1"
        )
    communicator: Any = connect(tasks)
    if communicator.Get_rank() > 0:
        serve(communicator)
        yield None
        return
    with Ranks(communicator) as ranks:
        yield ranks
