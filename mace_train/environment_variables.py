"""Environment variables: all that the package reads, each with a check.

What stands in them comes from launchers, schedulers and shells, and a wrong one must not start a
wrong run: ``WORLD_SIZE=2`` with a typing error would train two runs of one process each into one
folder. So each function returns a value in its range, ``None`` for a variable that is not set, or
raises ``InputError`` with the variable, what it holds, and the remedy.

Numbers are ASCII digits alone; ``int`` would take ``1_0``, and digits of other scripts. A variable
that is set but empty is an error where it is to be a number, an address or a file: it is what a
shell leaves of ``export MASTER_ADDR=$(command that failed)``.
"""

import os
import pwd
import re
from collections.abc import Mapping
from pathlib import Path

from mace_train.errors import InputError

Variables = Mapping[str, str]
PROCESS: Variables = os.environ  # of this process, as they are now

JOB_TOKEN = "MACE_TRAIN_JOB_TOKEN"  # noqa: S105 - the name of the variable, not a token
_MOST_TASKS = 1 << 20  # more than any machine has
_LONGEST_SHOWN = 60  # characters of a value in a message
_MOST_BYTES = 1 << 24  # of a file of host names

_INDEX = range(_MOST_TASKS)
_COUNT = range(1, _MOST_TASKS + 1)
_NUMBERS = {
    **dict.fromkeys(
        (
            *("RANK", "LOCAL_RANK"),
            *("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"),
            *("JSM_NAMESPACE_RANK", "JSM_NAMESPACE_LOCAL_RANK"),
            *("PMI_RANK", "PMI_LOCAL_RANK", "MPI_LOCALRANKID", "PMIX_RANK", "PMIX_LOCAL_RANK"),
            *("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"),
            "TORCHELASTIC_RESTART_COUNT",
        ),
        _INDEX,
    ),
    **dict.fromkeys(
        (
            *("WORLD_SIZE", "LOCAL_WORLD_SIZE"),
            *("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"),
            *("JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_LOCAL_SIZE"),
            *("PMI_SIZE", "PMI_LOCAL_SIZE", "MPI_LOCALNRANKS", "PMIX_SIZE", "PMIX_LOCAL_SIZE"),
            *("SLURM_NTASKS", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES"),
        ),
        _COUNT,
    ),
    "SLURM_STEP_ID": range(1 << 32),  # the highest are those of batch scripts and shells
    "SLURM_ARRAY_TASK_ID": range(1 << 32),
    "MASTER_PORT": range(1, 1 << 16),
    "OMP_NUM_THREADS": range(1, 1 << 16),
}
_REMEDIES = {
    "OMP_NUM_THREADS": "set it to the cores of one rank, or unset it",
    "MASTER_PORT": "set it to a free port, such as 29500, the same for all ranks, or unset it",
    "SLURM_ARRAY_TASK_ID": "Slurm sets it for the tasks of an array; unset it elsewhere",
}
_REMEDY = "launchers (torchrun, srun, mpiexec) set it; unset it where there is none"
_JOBS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID")


def is_set(name: str, variables: Variables = PROCESS) -> bool:
    """Whether the variable is there, with whatever value."""
    return name in variables


def set_default(name: str, value: str) -> None:
    """Set a variable of this process, and of those that it will start, unless it is set."""
    os.environ.setdefault(name, value)


def overrule(name: str, value: str) -> None:
    """Set a variable of this process, and of those that it will start, whatever it holds."""
    os.environ[name] = value


def number(name: str, variables: Variables = PROCESS) -> int | None:
    """A whole number in the range that this variable has."""
    if name not in variables:
        return None
    value, allowed = _digits(variables[name].strip(" ")), _NUMBERS[name]
    if value is None or value not in allowed:
        what = f"is not a number from {allowed[0]} to {allowed[-1]}"
        raise _error(name, variables, what, _REMEDIES.get(name, _REMEDY))
    return value


def threads(variables: Variables = PROCESS) -> int | None:
    """The number of CPU threads that OMP_NUM_THREADS asks for, the first of a list by level."""
    levels = variables.get("OMP_NUM_THREADS")
    if levels is None:
        return None
    counts = [number("OMP_NUM_THREADS", {"OMP_NUM_THREADS": level}) for level in levels.split(",")]
    return counts[0]


def text(name: str, variables: Variables = PROCESS) -> str | None:
    """Characters that can be printed, at least one."""
    if name not in variables:
        return None
    if not variables[name] or not variables[name].isprintable():
        raise _error(
            name, variables, "is empty, or holds control characters", "correct or unset it"
        )
    return variables[name]


def host(name: str, variables: Variables = PROCESS) -> str | None:
    """The name or address of a host."""
    if name in variables and not _is_host(variables[name]):
        remedy = "set it to the name or address of the host of rank 0, or unset it"
        raise _error(name, variables, "is no name of a host", remedy)
    return variables.get(name)


def job(variables: Variables = PROCESS) -> tuple[str, str] | None:
    """(variable, number) of the scheduler's job; the number may be used in the name of a file."""
    name = next((name for name in _JOBS if name in variables), None)
    if name is None:
        return None
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.\[\]-]{0,199}", variables[name]):
        raise _error(name, variables, "is no job of a scheduler", "unset it outside of a job")
    return name, variables[name]


def counts_of_nodes(name: str, variables: Variables = PROCESS) -> list[tuple[int, int]] | None:
    """Slurm's (count, number of nodes that have it) in the order of nodes, from ``4(x2),3``."""
    if name not in variables:
        return None
    counts = []
    for item in variables[name].split(","):
        found = re.fullmatch(r"([0-9]{1,7})(?:\(x([0-9]{1,7})\))?", item)
        count, times = (0, 0) if found is None else (int(found[1]), int(found[2] or 1))
        if count not in _COUNT or times not in _COUNT:
            what = "is no list of tasks per node, such as 4(x2),3"
            raise _error(name, variables, what, "srun sets it: start with `srun mace-train ...`")
        counts.append((count, times))
    return counts


def first_of_nodes(name: str, variables: Variables = PROCESS) -> str | None:
    """The first host of a Slurm node list, such as node007 of ``node[007-009,12],other1``."""
    if name not in variables:
        return None
    first = re.split(r",(?![^\[]*\])", variables[name])[0]
    first = re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first)
    if not _is_host(first) or "[" in first:
        raise _error(name, variables, "is no list of hosts", "set MASTER_ADDR to the first host")
    return first


def hosts_of_file(name: str, variables: Variables = PROCESS) -> list[str] | None:
    """The hosts in the file that the variable names, one for each slot."""
    if name not in variables:
        return None
    path, remedy = Path(variables[name]), "the scheduler sets it; unset it outside of its jobs"
    try:
        if not path.is_file():
            what = "is no file" if path.exists() else "is a file that does not exist here"
            raise _error(name, variables, what, remedy)
        with path.open("rb") as handle:
            content = handle.read(_MOST_BYTES + 1)
        hosts = content.decode().split()
    except UnicodeDecodeError:
        raise _error(name, variables, "is a file that is not UTF-8", remedy) from None
    except OSError as error:
        raise _error(name, variables, f"cannot be read ({error.strerror})", remedy) from None
    if not hosts or len(content) > _MOST_BYTES or not all(map(_is_host, hosts)):
        raise _error(name, variables, "is a file that does not list hosts", remedy)
    return hosts


def hosts_and_slots(name: str, variables: Variables = PROCESS) -> list[str] | None:
    """The hosts of LSF's ``host slots host slots ...``."""
    if name not in variables:
        return None
    words = variables[name].split()
    hosts, slots = words[::2], words[1::2]
    are_pairs = len(hosts) == len(slots) > 0 and None not in map(_digits, slots)
    if not are_pairs or not all(map(_is_host, hosts)):
        what = "is no list of hosts and their slots, such as `a 4 b 4`"
        raise _error(name, variables, what, "LSF sets it; unset it outside of its jobs")
    return hosts


def folder(name: str, variables: Variables = PROCESS) -> Path | None:
    """An absolute path that is a folder or can become one; an empty variable counts as unset."""
    if not variables.get(name):
        return None
    path = Path(variables[name])
    remedy = "set it to a folder, as an absolute path, or unset it"
    if not path.is_absolute() or not variables[name].isprintable():
        raise _error(name, variables, "is not an absolute path", remedy)
    try:
        at_hand = next(part for part in (path, *path.parents) if part.exists())
        is_folder = at_hand.is_dir()
    except OSError as error:
        raise _error(name, variables, f"cannot be used ({error.strerror})", remedy) from None
    if not is_folder:
        raise _error(name, variables, f"cannot be a folder, as {at_hand} is a file", remedy)
    return path


def home(variables: Variables = PROCESS) -> Path:
    """The user's own folder."""
    given = folder("HOME", variables)
    if given is not None:
        return given
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:  # as in a container that does not know the user
        raise InputError(
            f"HOME is not set, and user {os.getuid()} has no home folder; set HOME to a folder"
        ) from None


def job_token(variables: Variables = PROCESS) -> bytes:
    """The secret that the ranks of a job share, which no message shows; empty if there is none."""
    value = variables.get(JOB_TOKEN)
    if value is not None and not (16 <= len(value) <= 256 and value.isascii() and value.isalnum()):
        raise InputError(
            f"{JOB_TOKEN} in the environment must be 16 to 256 letters and digits, such as "
            "$(openssl rand -hex 16); set it so, the same for all ranks, or unset it"
        )
    return (value or "").encode()


def check_devices(variables: Variables = PROCESS) -> None:
    """InputError for a CUDA_VISIBLE_DEVICES that hides GPUs by a slip; an empty one hides all."""
    name = "CUDA_VISIBLE_DEVICES"
    value = variables.get(name, "")
    if value.lower() in ("", "-1", "none", "nodevfiles"):  # the last is Slurm's
        return
    gpus = [gpu.strip(" ") for gpu in value.removesuffix(",").split(",")]
    if not all(re.fullmatch(r"[0-9]{1,4}|(GPU|MIG)-[A-Za-z0-9/-]+", gpu) for gpu in gpus):
        remedy = "set it to numbers, such as 0,1, or unset it; -1 hides all GPUs"
        raise _error(name, variables, "is no list of GPUs, and CUDA would see none", remedy)


def _digits(value: str) -> int | None:
    return int(value) if re.fullmatch(r"[0-9]{1,18}", value) else None


def _is_host(value: str) -> bool:
    """Whether ``value`` can be the name or address of a host, with the zone of an IPv6 address."""
    return re.fullmatch(r"[A-Za-z0-9_:][A-Za-z0-9_.:%-]{0,254}", value) is not None


def _error(name: str, variables: Variables, what: str, remedy: str) -> InputError:
    value = variables[name]
    shown = value if len(value) <= _LONGEST_SHOWN else f"{value[:_LONGEST_SHOWN]}..."
    return InputError(f"{name}={shown!r} in the environment {what}; {remedy}")
