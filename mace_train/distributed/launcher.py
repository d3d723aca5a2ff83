"""Which launcher started this process, from its environment variables alone.

``torchrun``, ``srun``, ``mpiexec`` (MPICH, Intel MPI, Open MPI, Cray PALS), ``jsrun`` of LSF, or
none. They differ in the names of four numbers: rank, number of ranks, and both within the host.
Where the ranks meet is MASTER_ADDR and MASTER_PORT if these are set (torchrun does), else the first
host that Slurm, PBS or LSF gave the job, and a port that follows from the job's number.
"""

import re
import socket
from dataclasses import dataclass

from mace_train import environment_variables
from mace_train.environment_variables import PROCESS, Variables, number
from mace_train.errors import InputError

# launcher: the variables of (number of ranks, rank, local rank, ranks of this host)
_SRUN = ("srun", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID",
         "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE")  # fmt: skip
_LAUNCHERS = (
    ("mpiexec", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK",
     "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("jsrun", "JSM_NAMESPACE_SIZE", "JSM_NAMESPACE_RANK",
     "JSM_NAMESPACE_LOCAL_RANK", "JSM_NAMESPACE_LOCAL_SIZE"),
    ("mpiexec", "PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ("mpiexec", "PMI_SIZE", "PMI_RANK", "PMI_LOCAL_RANK", "PMI_LOCAL_SIZE"),
    ("mpiexec", "PMIX_SIZE", "PMIX_RANK", "PMIX_LOCAL_RANK", "PMIX_LOCAL_SIZE"),
    _SRUN,
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


def check_environment(variables: Variables = PROCESS) -> None:
    """InputError for a variable that is wrong for every command, before expensive imports.

    PyTorch, OpenMP and CUDA go on without those that they cannot read.
    """
    launched_tasks(variables)
    _rank_below("RANK", "WORLD_SIZE", variables)
    _rank_below("LOCAL_RANK", "LOCAL_WORLD_SIZE", variables)
    number("TORCHELASTIC_RESTART_COUNT", variables)
    number("SLURM_ARRAY_TASK_ID", variables)
    environment_variables.threads(variables)
    environment_variables.check_devices(variables)
    environment_variables.folder("XDG_CACHE_HOME", variables)
    environment_variables.job(variables)
    environment_variables.job_token(variables)


def launched_tasks(variables: Variables = PROCESS) -> Tasks | None:
    """The tasks that mpiexec or srun started; None for one task, or under torchrun."""
    for _, size_name, rank_name, *_ in _LAUNCHERS:
        size = number(size_name, variables) or 1
        if size > 1:
            return Tasks(size_name, size, _rank_below(rank_name, size_name, variables))
    return None


def rank_of_process(variables: Variables = PROCESS) -> int:
    """This process's rank before anything is opened; 0 without a launcher, or a rank that is one.

    Raises nothing, so that messages about the environment can name the rank.
    """
    try:
        if {"RANK", "WORLD_SIZE"} <= variables.keys():
            return number("RANK", variables) or 0
        tasks = launched_tasks(variables)
    except InputError:
        return 0
    return 0 if tasks is None else tasks.rank


def detect(variables: Variables = PROCESS) -> Launch:
    """How this process was launched.

    Raises:
        InputError: a launch that cannot work: variables that are missing or hold no number, one
            process in a job of many tasks, several torchruns on one host, ranks on several hosts
            without a host that all can reach.
    """
    if {"RANK", "WORLD_SIZE"} <= variables.keys():
        launch = _torchrun(variables)
    else:
        launch = _tasks(variables)
    if launch.size == 1:
        if launch.launcher == "none":
            _check_single_process(variables)
        return launch
    if launch.host in _LOOPBACK and launch.local_size < launch.size:
        raise InputError(
            f"{launch.size} ranks, {launch.local_size} of them on {socket.gethostname()}, are to "
            f"meet at {launch.host}, where each host only finds itself; set MASTER_ADDR to the "
            "name of the first host, such as "
            '$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)'
        )
    return launch


def job_gpus(variables: Variables = PROCESS) -> str | None:
    """The variable with which a scheduler says that this job has GPUs, and its value."""
    for name in ("SLURM_STEP_GPUS", "SLURM_JOB_GPUS", "SLURM_GPUS_ON_NODE", "LSB_CUDA_DEVICES"):
        if variables.get(name, "") not in ("", "0", "(null)"):
            return f"{name}={environment_variables.text(name, variables)}"
    return None


def describe_launch(variables: Variables = PROCESS) -> str:
    """Launcher, scheduler and address of rank 0, as human-readable text."""
    launch = detect(variables)
    job = environment_variables.job(variables)
    words = "one process" if launch.size == 1 else f"{launch.launcher}, {launch.size} ranks"
    if launch.size > 1:
        words += f" meeting at {launch.host}:{launch.port}"
    return words + (f", {'='.join(job)}" if job else ", no scheduler")


def _torchrun(variables: Variables) -> Launch:
    missing = {"LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"} - variables.keys()
    if missing:
        raise InputError(
            f"RANK and WORLD_SIZE are set but not {', '.join(sorted(missing))}; start with "
            "`torchrun --nproc-per-node N -m mace_train train ...` or `srun mace-train train ...`, "
            "or unset RANK and WORLD_SIZE"
        )
    n_tasks = number("SLURM_STEP_NUM_TASKS", variables) or 1
    n_nodes = number("SLURM_STEP_NUM_NODES", variables) or 1
    if environment_variables.is_set("TORCHELASTIC_RUN_ID", variables) and n_tasks > n_nodes:
        raise InputError(
            f"srun started {n_tasks} times torchrun on {n_nodes} hosts, so ranks share GPUs; type "
            "`srun --ntasks-per-node=1 torchrun ...`, or `srun mace-train train ...` without "
            "torchrun and with one task per GPU"
        )
    rank = _rank_below("RANK", "WORLD_SIZE", variables)
    size = number("WORLD_SIZE", variables) or 1
    local_size = number("LOCAL_WORLD_SIZE", variables) or size
    local_rank, local_size = _within_host(
        "LOCAL_RANK", "LOCAL_WORLD_SIZE", local_size, size, variables
    )
    host = environment_variables.host("MASTER_ADDR", variables)
    port = number("MASTER_PORT", variables)
    assert host is not None
    assert port is not None
    return Launch("torchrun", rank, size, local_rank, local_size, host, port)


def _rank_below(rank_name: str, size_name: str, variables: Variables) -> int:
    """A rank, 0 if there is none; InputError if the number of ranks is there and too small."""
    rank, size = number(rank_name, variables) or 0, number(size_name, variables)
    if size is not None and rank >= size:
        raise InputError(
            f"{rank_name}={rank} with {size_name}={size} in the environment: {size} ranks have the "
            f"numbers 0 to {size - 1}; launchers set both, unset what was set by hand"
        )
    return rank


def _within_host(
    rank_name: str, size_name: str, local_size: int, size: int, variables: Variables
) -> tuple[int, int]:
    """(local rank, number of ranks of this host), which must be below those of all ranks."""
    local_rank = number(rank_name, variables) or 0
    if local_rank >= local_size or local_size > size:
        raise InputError(
            f"{rank_name}={local_rank} in the environment: rank {local_rank} of {local_size} on "
            f"this host ({size_name}), of {size} in all; ranks are numbered from 0, launchers set "
            "these variables, unset what was set by hand"
        )
    return local_rank, local_size


def _tasks(variables: Variables) -> Launch:
    """The ranks of any other launcher."""
    tasks = launched_tasks(variables)
    if tasks is None:
        _check_alone(variables)
        in_step = {"SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS"} <= variables.keys()
        return Launch("srun" if in_step else "none")
    row = next(
        (row for row in _LAUNCHERS if row[1] == tasks.variable and {*row[2:4]} <= variables.keys()),
        None,
    )
    rank = tasks.rank
    in_step = number(_SRUN[1], variables) == tasks.size and {*_SRUN[2:4]} <= variables.keys()
    if row is None and in_step:
        row = _SRUN  # srun --mpi=pmi2
        rank = _rank_below(row[2], row[1], variables)
    if row is None:
        raise InputError(
            f"{tasks.variable}={tasks.size}: several tasks were started, but nothing says which "
            "of them share a host; start with `srun mace-train ...`, the mpiexec of MPICH, Intel "
            "MPI or Open MPI, or `torchrun -m mace_train ...`"
        )
    launcher, _, _, local_rank_name, local_size_name = row
    if row is _SRUN:
        here = _tasks_of_node(local_size_name, variables)
    else:
        here = number(local_size_name, variables) or tasks.size
    local_rank, local_size = _within_host(
        local_rank_name, local_size_name, here, tasks.size, variables
    )
    host = _host(variables, launcher, is_one_host=local_size == tasks.size)
    port = number("MASTER_PORT", variables) or _port_of_job(variables)
    return Launch(launcher, rank, tasks.size, local_rank, local_size, host, port)


def _tasks_of_node(name: str, variables: Variables) -> int:
    """The tasks of this node, from the list of all nodes that srun gives."""
    counts = environment_variables.counts_of_nodes(name, variables) or [(1, 1)]
    node, n_nodes = number("SLURM_NODEID", variables) or 0, 0
    for count, times in counts:
        n_nodes += times
        if node < n_nodes:
            return count
    raise InputError(
        f"SLURM_NODEID={node} in the environment, but {n_nodes} nodes ({name}), which have the "
        f"numbers 0 to {n_nodes - 1}; srun sets both, unset what was set by hand"
    )


def _host(variables: Variables, launcher: str, is_one_host: bool) -> str:
    """Where rank 0 runs."""
    host = environment_variables.host("MASTER_ADDR", variables)
    if host is not None:
        return host
    if is_one_host:
        return "127.0.0.1"
    for name in ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"):
        node = environment_variables.first_of_nodes(name, variables)
        if node is not None:
            return node
    hosts = environment_variables.hosts_of_file("PBS_NODEFILE", variables)
    if hosts is not None:
        return hosts[0]
    hosts = environment_variables.hosts_and_slots("LSB_MCPU_HOSTS", variables)
    if hosts is not None:
        return hosts[1 if launcher == "jsrun" and len(hosts) > 1 else 0]  # jsrun: behind the batch
    raise InputError(
        "ranks on several hosts and no scheduler that names them: set MASTER_ADDR to the name of "
        "the host of rank 0, the same for all ranks (mpiexec -genv MASTER_ADDR NAME, or "
        "-x MASTER_ADDR with Open MPI)"
    )


def _port_of_job(variables: Variables) -> int:
    """The same port on all hosts of a job step, another one for its next step."""
    job = environment_variables.job(variables)
    if job is None:
        return 29500
    digits = re.match(r"[0-9]*", job[1])
    assert digits is not None
    step = number("SLURM_STEP_ID", variables) or 0
    return _PORTS[0] + (13 * int(digits[0] or "0") + step) % _PORTS[1]


def _check_alone(variables: Variables) -> None:
    """InputError for one process that torchrun would have started with others."""
    size = number("WORLD_SIZE", variables) or 1
    alone = [name for name in ("RANK", "WORLD_SIZE") if name in variables]
    if alone == ["RANK"] or size > 1:
        (other,) = {"RANK", "WORLD_SIZE"} - {*alone}
        raise InputError(
            f"{alone[0]}={variables[alone[0]]} is set but not {other}, so this process would run "
            "alone; start with `torchrun --nproc-per-node N -m mace_train train ...` or `srun "
            f"mace-train train ...`, or unset {alone[0]}"
        )


def _check_single_process(variables: Variables) -> None:
    """InputError for one process where the job has many tasks."""
    n_tasks = number("SLURM_NTASKS", variables) or 1
    if n_tasks > 1:
        raise InputError(
            f"the job has {n_tasks} tasks (SLURM_NTASKS) and this is one process outside of srun, "
            "which would run alone; type `srun mace-train ...`, or submit with --ntasks=1 "
            "--cpus-per-task=N for one process"
        )
    hosts = environment_variables.hosts_of_file("PBS_NODEFILE", variables)
    if hosts is None:
        hosts = environment_variables.hosts_and_slots("LSB_MCPU_HOSTS", variables) or []
    if len(set(hosts)) > 1:
        raise InputError(
            f"the job has {len(set(hosts))} hosts and this is one process, which would use one of "
            "them alone; type `mpiexec -n RANKS mace-train ...` (LSF: jsrun)"
        )
