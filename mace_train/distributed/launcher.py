"""Which launcher started this process, from its environment variables alone.

``torchrun``, ``srun``, ``mpiexec`` (MPICH, Intel MPI, Open MPI, Cray PALS), ``jsrun`` of LSF, or
none. They differ in the names of four numbers: rank, number of ranks, and both within the host.
Where the ranks meet is MASTER_ADDR and MASTER_PORT if these are set (torchrun does), else the first
host that Slurm, PBS or LSF gave the job, and a port that follows from the job's number.
"""

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mace_train.errors import InputError

# launcher: the variables of (number of ranks, rank, local rank, ranks of this host)
_LAUNCHERS = (
    ("mpiexec", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK",
     "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("jsrun", "JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_RANK",
     "JSM_NAMESPACE_LOCAL_RANK", "JSM_NAMESPACE_LOCAL_SIZE"),
    ("mpiexec", "PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ("mpiexec", "PMI_SIZE", "PMI_RANK", "PMI_LOCAL_RANK", "PMI_LOCAL_SIZE"),
    ("mpiexec", "PMIX_SIZE", "PMIX_RANK", "PMIX_LOCAL_RANK", "PMIX_LOCAL_SIZE"),
    ("srun", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID", ""),
)  # fmt: skip
_LOOPBACK = ("localhost", "127.0.0.1", "127.0.1.1", "::1")
_PORTS = (20000, 10000)  # first and number; below those that systems give to outgoing connections


@dataclass(frozen=True)
class Launch:
    """This process among those that its launcher started together."""

    launcher: str = "none"  # torchrun, srun, mpiexec, jsrun or none
    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    host: str = "127.0.0.1"  # where rank 0 listens
    port: int = 29500


@dataclass(frozen=True)
class Tasks:
    """Several tasks that a launcher other than torchrun started."""

    variable: str  # that says so
    size: int
    rank: int


def launched_tasks(environment: Mapping[str, str] = os.environ) -> Tasks | None:
    """The tasks that mpiexec or srun started; None for one task, or under torchrun."""
    for _, size_name, rank_name, *_ in _LAUNCHERS:
        size = _number(environment, size_name, 1)
        if size > 1:
            return Tasks(size_name, size, _number(environment, rank_name, 0))
    return None


def rank_of_process() -> int:
    """This process's rank before anything is opened; 0 without a launcher."""
    if "RANK" in os.environ:
        return _number(os.environ, "RANK", 0)
    tasks = launched_tasks()
    return 0 if tasks is None else tasks.rank


def detect(environment: Mapping[str, str] = os.environ) -> Launch:
    """How this process was launched.

    Raises:
        InputError: a launch that cannot work: variables that are missing, one process in a job of
            many tasks, several torchruns on one host, ranks on several hosts without a host that
            all can reach.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        launch = _torchrun(environment)
    else:
        launch = _tasks(environment)
    if launch.size == 1:
        if launch.launcher == "none":
            _check_single_process(environment)
        return launch
    if launch.host in _LOOPBACK and launch.local_size < launch.size:
        raise InputError(
            f"{launch.size} ranks, {launch.local_size} of them on {socket.gethostname()}, are to "
            f"meet at {launch.host}, where each host only finds itself; set MASTER_ADDR to the "
            "name of the first host, such as "
            '$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)'
        )
    return launch


def job_gpus(environment: Mapping[str, str] = os.environ) -> str | None:
    """The variable with which a scheduler says that this job has GPUs, and its value."""
    for name in ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "SLURM_GPUS_ON_NODE", "LSB_CUDA_DEVICES"):
        if environment.get(name, "") not in ("", "0", "(null)"):
            return f"{name}={environment[name]}"
    return None


def describe_launch(environment: Mapping[str, str] = os.environ) -> str:
    """Launcher, scheduler and address of rank 0, as human-readable text."""
    launch = detect(environment)
    job = next((n for n in ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID") if n in environment), None)
    words = "one process" if launch.size == 1 else f"{launch.launcher}, {launch.size} ranks"
    if launch.size > 1:
        words += f" meeting at {launch.host}:{launch.port}"
    return words + (f", {job}={environment[job]}" if job else ", no scheduler")


def _torchrun(environment: Mapping[str, str]) -> Launch:
    missing = {"LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"} - environment.keys()
    if missing:
        raise InputError(
            f"RANK and WORLD_SIZE are set but not {', '.join(sorted(missing))}; start with "
            "`torchrun --nproc-per-node N -m mace_train train ...` or `srun mace-train train ...`, "
            "or unset RANK"
        )
    size = _number(environment, "WORLD_SIZE", 1)
    n_tasks = _number(environment, "SLURM_STEP_NUM_TASKS", 1)
    n_nodes = _number(environment, "SLURM_STEP_NUM_NODES", 1)
    if "TORCHELASTIC_RUN_ID" in environment and n_tasks > n_nodes:
        raise InputError(
            f"srun started {n_tasks} times torchrun on {n_nodes} hosts, so ranks share GPUs; type "
            "`srun --ntasks-per-node=1 torchrun ...`, or `srun mace-train train ...` without "
            "torchrun and with one task per GPU"
        )
    return Launch(
        "torchrun",
        _number(environment, "RANK", 0),
        size,
        _number(environment, "LOCAL_RANK", 0),
        _number(environment, "LOCAL_WORLD_SIZE", size),
        environment["MASTER_ADDR"],
        _number(environment, "MASTER_PORT", 29500),
    )


def _tasks(environment: Mapping[str, str]) -> Launch:
    """The ranks of any other launcher."""
    tasks = launched_tasks(environment)
    if tasks is None:
        in_step = "SLURM_STEP_ID" in environment and "SLURM_STEP_NUM_TASKS" in environment
        return Launch("srun" if in_step else "none")
    names = next(
        (row for row in _LAUNCHERS if row[1] == tasks.variable and row[3] in environment), None
    )
    if names is not None and names[0] == "srun":
        local_rank = _number(environment, "SLURM_LOCALID", 0)
        local_size = _slurm_local_size(environment)
    elif names is not None:
        local_rank = _number(environment, names[3], 0)
        local_size = _number(environment, names[4], tasks.size)
    elif environment.get("SLURM_STEP_NUM_TASKS") == str(tasks.size):  # srun --mpi=pmi2
        local_rank = _number(environment, "SLURM_LOCALID", 0)
        local_size = _slurm_local_size(environment)
    else:
        raise InputError(
            f"{tasks.variable}={tasks.size}: several tasks were started, but nothing says which "
            "of them share a host; start with `srun mace-train ...`, the mpiexec of MPICH, Intel "
            "MPI or Open MPI, or `torchrun -m mace_train ...`"
        )
    launcher = names[0] if names is not None else "srun"
    host = _host(environment, launcher, is_one_host=local_size == tasks.size)
    port = _number(environment, "MASTER_PORT", _port_of_job(environment))
    return Launch(launcher, tasks.rank, tasks.size, local_rank, local_size, host, port)


def _host(environment: Mapping[str, str], launcher: str, is_one_host: bool) -> str:
    """Where rank 0 runs."""
    if environment.get("MASTER_ADDR"):
        return environment["MASTER_ADDR"]
    if is_one_host:
        return "127.0.0.1"
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST")
    if nodes:
        return first_host(nodes)
    if "PBS_NODEFILE" in environment:
        return Path(environment["PBS_NODEFILE"]).read_text().split()[0]
    if "LSB_MCPU_HOSTS" in environment:  # host slots host slots ...
        hosts = environment["LSB_MCPU_HOSTS"].split()[::2]
        return hosts[1 if launcher == "jsrun" and len(hosts) > 1 else 0]  # jsrun: behind the batch
    raise InputError(
        "ranks on several hosts and no scheduler that names them: set MASTER_ADDR to the name of "
        "the host of rank 0, the same for all ranks (mpiexec -genv MASTER_ADDR NAME, or "
        "-x MASTER_ADDR with Open MPI)"
    )


def first_host(nodes: str) -> str:
    """The first name of a Slurm node list, such as node007 of ``node[007-009,12],other1``."""
    first = re.split(r",(?![^\[]*\])", nodes)[0]
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first)


def _slurm_local_size(environment: Mapping[str, str]) -> int:
    """Tasks of this node, from a list such as ``4(x2),3`` that is ordered by node."""
    counts: list[int] = []
    for item in environment.get("SLURM_STEP_TASKS_PER_NODE", "1").split(","):
        count, times = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", item).groups()  # type: ignore[union-attr]
        counts += [int(count)] * int(times or 1)
    return counts[_number(environment, "SLURM_NODEID", 0)]


def _port_of_job(environment: Mapping[str, str]) -> int:
    """The same port on all hosts of a job step, another one for its next step."""
    job = next(
        (environment[n] for n in ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID") if n in environment),
        None,
    )
    if job is None:
        return 29500
    number = int(re.match(r"\d*", job)[0] or "0")  # type: ignore[index]
    step = _number(environment, "SLURM_STEP_ID", 0)
    return _PORTS[0] + (13 * number + step) % _PORTS[1]


def _check_single_process(environment: Mapping[str, str]) -> None:
    """InputError for one process where the job has many tasks."""
    n_tasks = _number(environment, "SLURM_NTASKS", 1)
    if n_tasks > 1:
        raise InputError(
            f"the job has {n_tasks} tasks (SLURM_NTASKS) and this is one process outside of srun, "
            "which would run alone; type `srun mace-train ...`, or submit with --ntasks=1 "
            "--cpus-per-task=N for one process"
        )
    file = environment.get("PBS_NODEFILE")
    hosts = environment.get("LSB_MCPU_HOSTS", "").split()[::2]
    if file is not None and Path(file).is_file():
        hosts = Path(file).read_text().split()
    if len(set(hosts)) > 1:
        raise InputError(
            f"the job has {len(set(hosts))} hosts and this is one process, which would use one of "
            "them alone; type `mpiexec -n RANKS mace-train ...` (LSF: jsrun)"
        )


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    """A variable as a number."""
    text = environment.get(name) or str(default)
    try:
        return int(text)
    except ValueError:
        raise InputError(f"{name}={text!r} in the environment is not a number") from None
