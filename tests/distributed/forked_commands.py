"""``mace-train`` in many environments: each command a process, forked when the imports are done.

    python forked_commands.py < [[[word, ...], {variable: value}], ...] > [[exit code, stderr], ...]

Some run at once. Variables of launchers that this process was started with are left out.
"""

import json
import os
import sys
from typing import Any

from mace_train.cli import main

OF_LAUNCHERS = ("SLURM_", "PMI", "OMPI_", "JSM_", "PBS_", "LSB_", "MPI_", "TORCHELASTIC_")
MOST_AT_ONCE = 8


def start(words: list[str], variables: dict[str, str], stderr: int) -> int:
    """The number of the process."""
    process = os.fork()
    if process:
        return process
    code: Any = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(stderr, 2)
        os.environ |= variables
        main(words)
        code = 0
    except SystemExit as end:
        code = end.code
    finally:
        sys.stderr.flush()
        os._exit(code)


def result(process: int, stderr: int) -> tuple[int, str]:
    """(exit code, stderr) of a process, when it has ended."""
    _, status = os.waitpid(process, 0)
    os.lseek(stderr, 0, os.SEEK_SET)
    with open(stderr, "rb") as file:
        return os.waitstatus_to_exitcode(status), file.read().decode()


if __name__ == "__main__":
    for name in [name for name in os.environ if name.startswith(OF_LAUNCHERS)]:
        del os.environ[name]
    running: list[tuple[int, int]] = []
    done = []
    for words, variables in json.load(sys.stdin):
        if len(running) == MOST_AT_ONCE:
            done.append(result(*running.pop(0)))
        stderr = os.memfd_create("stderr")
        running.append((start(words, variables, stderr), stderr))
    json.dump([*done, *(result(*one) for one in running)], sys.stdout)
