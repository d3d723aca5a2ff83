"""Which launcher started this process, from its environment alone."""

import os
from dataclasses import dataclass

# (number of tasks, rank) in the environment of launchers other than torchrun
_TASKS = (
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("PMI_SIZE", "PMI_RANK"),
    ("PMIX_SIZE", "PMIX_RANK"),
    ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
)


@dataclass(frozen=True)
class Tasks:
    """Several tasks that a launcher other than torchrun started."""

    variable: str  # that says so
    size: int
    rank: int


def launched_tasks() -> Tasks | None:
    """The tasks that mpiexec or srun started; None for one task, or under torchrun."""
    for size_name, rank_name in _TASKS:
        size = int(os.environ.get(size_name) or "1")
        if size > 1:
            return Tasks(size_name, size, int(os.environ.get(rank_name) or "0"))
    return None


def rank_of_process() -> int:
    """This process's rank before anything is opened; 0 without a launcher."""
    if "RANK" in os.environ:
        return int(os.environ["RANK"] or "0")
    tasks = launched_tasks()
    return 0 if tasks is None else tasks.rank
