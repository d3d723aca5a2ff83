"""Environment variables that launchers and users set, with values that nobody should set."""

import random
from pathlib import Path

from tests.fuzz.case import Case
from tests.fuzz.fixtures import Fixtures

NUMBERED = (
    *("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_PORT"),
    *("TORCHELASTIC_RESTART_COUNT", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
    *("SLURM_NODEID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES", "SLURM_JOB_ID"),
    *("SLURM_ARRAY_TASK_ID", "SLURM_JOB_NUM_NODES", "SLURM_CPUS_PER_TASK", "SLURM_STEP_ID"),
    *("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"),
    *("PMI_SIZE", "PMI_RANK", "PMIX_RANK", "PALS_RANKID"),
    *("PALS_LOCAL_RANKID", "MV2_COMM_WORLD_SIZE"),
    *("MPI_LOCALRANKID", "OMP_NUM_THREADS", "PBS_NUM_PPN", "LSB_DJOB_NUMPROC", "LSB_JOBID"),
    *("SLURM_JOB_END_TIME", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "COLUMNS", "LINES"),
)  # fmt: skip
NAMED = (
    *("MASTER_ADDR", "SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE", "SLURM_STEP_NODELIST"),
    *("SLURM_NODELIST", "SLURM_JOB_NODELIST", "SLURM_JOB_GPUS"),
    *("SLURM_STEP_GPUS", "SLURMD_NODENAME"),
    *("PBS_NODEFILE", "PBS_JOBID", "LSB_HOSTS", "LSB_MCPU_HOSTS", "LSB_DJOB_HOSTFILE", "HOME"),
    *("XDG_CACHE_HOME", "TMPDIR", "CXX", "MACE_TRAIN_LOG", "GLOO_SOCKET_IFNAME", "NETRC", "TERM"),
    *("PYTORCH_CUDA_ALLOC_CONF", "HYDRA_FULL_ERROR", "NO_COLOR", "FORCE_COLOR", "LANG", "LC_ALL"),
    *("MPLBACKEND", "MPLCONFIGDIR", "WANDB_API_KEY", "WANDB_MODE", "PATH", "USER"),
)  # fmt: skip
NUMBERS = (
    *(
        "",
        " ",
        "0",
        "1",
        "2",
        "3",
        "-1",
        "abc",
        "x",
        "1.5",
        "1e3",
        "nan",
        "inf",
        "0x2",
        "1_0",
        "+1",
    ),
    *(
        "9999999",
        "65535",
        "65536",
        "2147483648",
        "9" * 30,
        "1,2",
        "2(x3)",
        "null",
        "١",
        "２",
        "\t1\n",
    ),
)
TEXTS = (
    *("", " ", "nowhere", "/nowhere/at/all", "/dev/null"),
    *("/dev/full", "/proc/1/mem", "a b", "256.1.1.1"),
    *("localhost", "127.0.0.1", "::1", "node[1-", "node[1-3]"),
    *("node[3-1]", "node[1-99999999]", "2(x"),
    *("2(x2)", "(x2)", "2(x99999999999)", "2,", ",", "1,1,1", "-2"),
    *("host 2 host", "host 2", "日本", "a" * 2000),
    *("../..", "~", "$HOME", "; ls", "false", "/bin/false", "/bin/true", "'"),
)  # fmt: skip
TOGETHER = (  # what one launcher sets
    ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_NUM_TASKS",
     "SLURM_STEP_NODELIST", "SLURM_STEP_TASKS_PER_NODE", "SLURM_JOB_ID"),
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"),
    ("PMI_SIZE", "PMI_RANK", "PALS_LOCAL_RANKID", "PBS_NODEFILE", "PBS_JOBID"),
    ("LSB_JOBID", "LSB_HOSTS", "LSB_DJOB_NUMPROC", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
)  # fmt: skip
COMMANDS = (
    "train",
    "train",
    "train",
    "preprocess",
    "balance",
    "evaluate",
    "doctor",
    "report",
    "md",
)
UNAVAILABLE = 69  # the other rank of two, which is not there


def make(fixtures: Fixtures, rng: random.Random, work: Path) -> Case:
    """One variable, or several that one launcher sets."""
    environment = {}
    if rng.random() < 0.5:
        names = [rng.choice((*NUMBERED, *NAMED))]
    else:
        group = rng.choice(TOGETHER)
        names = rng.sample(group, rng.randint(2, len(group)))
    for name in names:
        if name in NUMBERED:
            few = len(names) > 1 and rng.random() < 0.7
            environment[name] = rng.choice(("0", "1", "2") if few else NUMBERS)
        else:
            environment[name] = rng.choice(TEXTS)
    command = rng.choice(COMMANDS)
    words = [command, *fixtures.base[command]]
    if command in ("train", "evaluate", "doctor"):
        words.append("cluster.timeout_s=3")
    shown = " ".join(f"{name}={value[:30]}" for name, value in environment.items())
    return Case(f"{command} {shown}", words, environment, codes=frozenset({0, 2, UNAVAILABLE}))
