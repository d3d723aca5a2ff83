"""Checks of each rank's environment: libraries, devices, compiler, kernels, file system."""

import os
import platform
import socket
import subprocess
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from mace_train import __version__, environment_variables
from mace_train.data.statistics import open_split
from mace_train.distributed.world import World
from mace_train.doctor.check_result import CheckResult, Verdict, first_problem, same_everywhere
from mace_train.errors import InputError
from mace_train.model.compile_kernels import three_atoms
from mace_train.model.mace import MACE, Head, ModelData
from mace_train.ops.backends import describe_choice
from mace_train.ops.cpp.compiler import find_compiler
from mace_train.settings import DoctorSettings, ModelSettings
from mace_train.train.provenance import installed_version

_LIBRARIES = ("torch", "numpy", "ase", "e3nn", "h5py", "hydra-core", "mpi4py", "ortools", "wandb")
_OPTIONAL = {
    "tensorboard": "logger=tensorboard: pip install 'mace-train[loggers]'",
    "optuna": "mace-train tune: pip install 'mace-train[sweeps]'",
    "hydra-submitit-launcher": "--multirun on Slurm: pip install 'mace-train[sweeps]'",
}
_TOLERANCE = 1e-4  # relative, float32


def versions(world: World, settings: DoctorSettings) -> list[CheckResult]:
    """Program and libraries, which must be the same on all ranks."""
    own = [f"mace-train {__version__}", f"Python {platform.python_version()}"]
    own += [f"{name} {installed_version(name) or 'missing'}" for name in _LIBRARIES]
    remedy = "activate the same environment on all nodes, from a file system that they share"
    return same_everywhere(world, ", ".join(own), "", remedy)


def optional(world: World, settings: DoctorSettings) -> list[CheckResult]:
    """Optional libraries, and whether wandb has a key."""
    found = [f"{name} {installed_version(name)}" for name in _OPTIONAL if installed_version(name)]
    missing = [f"{name} ({use})" for name, use in _OPTIONAL.items() if not installed_version(name)]
    results = [CheckResult(Verdict.OK, ", ".join(found) or "nothing")]
    if missing:
        results.append(CheckResult(Verdict.OK, "not installed: " + "; ".join(missing)))
    if installed_version("wandb"):
        netrc = environment_variables.text("NETRC") or "~/.netrc"
        has_key = environment_variables.is_set("WANDB_API_KEY") or _mentions_wandb(netrc)
        how = "a key is set" if has_key else "no key: offline only, synchronise with `wandb sync`"
        results.append(CheckResult(Verdict.OK, f"wandb: {how}"))
    return results


def _mentions_wandb(netrc: str) -> bool:
    try:
        path = Path(netrc).expanduser()
        return path.is_file() and b"wandb" in path.read_bytes()
    except (OSError, RuntimeError):  # of somebody else, or of a user that is not known
        return False


def devices(world: World, settings: DoctorSettings) -> list[CheckResult]:
    """The device of each rank; that ranks do not share one was checked when they joined."""
    if world.device.type == "cpu":
        name = "cpu"
    else:
        properties = torch.cuda.get_device_properties(world.device)
        name = f"{properties.name}, {properties.total_memory / 1e9:.0f} GB"
    counts = Counter(world.gather_all(name))
    text = "; ".join(f"{n} x {device}" for device, n in counts.most_common())
    results = [CheckResult(Verdict.OK if len(counts) == 1 else Verdict.WARN, text)]
    if len(counts) > 1:
        results[0] = CheckResult(
            Verdict.WARN, text, "different devices: all ranks wait for the slowest"
        )
    if world.device.type == "cuda":
        nccl = ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]
        results += same_everywhere(
            world,
            f"{_driver()}, CUDA {torch.version.cuda}, NCCL {nccl}",
            "driver",
            "ask for nodes of one type, or the same software on all",
        )
    elif _has_nvidia():
        remedy = "install a PyTorch built for CUDA (pip install torch), and check nvidia-smi"
        if settings.cluster.device == "auto":
            results.append(
                CheckResult(Verdict.FAIL, "NVIDIA GPUs that PyTorch does not see", remedy)
            )
    return results


def _has_nvidia() -> bool:
    return Path("/proc/driver/nvidia/gpus").is_dir()


def _driver() -> str:
    try:
        text = Path("/sys/module/nvidia/version").read_text().strip()
    except OSError:
        text = "unknown"
    return text


def threads(world: World, settings: DoctorSettings) -> list[CheckResult]:
    """CPU threads of the ranks against the cores they may use."""
    n_cores = len(os.sched_getaffinity(0))
    own = (socket.gethostname(), n_cores, torch.get_num_threads())
    everyone = world.gather_all(own)
    n_ranks = Counter(host for host, _, _ in everyone)
    text = f"{own[2]} threads per rank, {n_cores} cores that this rank may use"
    crowded = [f"{h}: {n_ranks[h]} x {n}" for h, c, n in everyone if n_ranks[h] * n > c > 1]
    is_bound = any(c < (os.cpu_count() or 1) for _, c, _ in everyone)
    if crowded and not is_bound:
        remedy = "set OMP_NUM_THREADS or cluster.num_threads to cores divided by ranks"
        return [
            CheckResult(Verdict.WARN, f"{text}; more threads than cores on {crowded[0]}", remedy)
        ]
    return [CheckResult(Verdict.OK, text)]


def compiler(world: World, settings: DoctorSettings) -> list[CheckResult]:
    """The C++ compiler that CPU kernels need."""
    path = find_compiler()
    if path is None:
        verdict = Verdict.WARN if world.device.type == "cpu" else Verdict.OK
        remedy = "load a module with g++ or clang++; without it CPU training is much slower"
        return [CheckResult(verdict, "no working C++ compiler on the PATH", remedy)]
    command = [path, "--version"]
    first = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()[:1]
    return [CheckResult(Verdict.OK, f"{path}: {first[0] if first else 'unknown'}")]


def kernels(world: World, settings: DoctorSettings) -> list[CheckResult]:
    """Compiles and runs the kernels of a small model; they must agree with plain PyTorch."""
    problem: str | None = None
    text = ""
    try:
        text = describe_choice(settings.cluster.kernels, world.device).removeprefix("kernels: ")
        difference = _difference(settings, world.device)
        text += f"; differ from PyTorch by {difference:.1e}"
        if not difference < _TOLERANCE:
            problem = f"{socket.gethostname()}: kernels differ from PyTorch by {difference:.1e}"
    except (InputError, RuntimeError) as error:
        problem = f"{socket.gethostname()}: {str(error).splitlines()[0]}"
    remedy = "cluster.kernels=reference works everywhere, slowly"
    return first_problem(world, problem, text, remedy)


def _difference(settings: DoctorSettings, device: torch.device) -> float:
    """Largest relative difference of energies between the chosen kernels and plain PyTorch."""
    data = ModelData(
        r_max=4.0,
        atomic_numbers=(1, 8),
        avg_num_neighbors=2.0,
        heads=(Head(E0s=(0.0, 0.0), scale=1.0, shift=0.0),),
    )
    small = ModelSettings(num_channels=8, max_L=1, max_ell=2, correlation=2, radial_MLP=[8])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = MACE(small, data).to(device, torch.float32)
    energies = {}
    for kernels in ("reference", settings.cluster.kernels):
        model.kernels = kernels
        with torch.no_grad():
            energies[kernels] = model(**three_atoms(model)).double()
    ours, plain = energies[settings.cluster.kernels], energies["reference"]
    return float(((ours - plain).abs() / plain.abs().clamp(min=1e-3)).max())


def data(world: World, settings: DoctorSettings) -> list[CheckResult]:
    """How fast all ranks together read structures at random, as training does."""
    if settings.data_dir is None:
        return [CheckResult(Verdict.OK, "not measured: give data_dir=FOLDER of shards")]
    problem: str | None = None
    n_structures, n_bytes = 0, 0
    try:
        shards = open_split(Path(settings.data_dir), "train")
        random = np.random.default_rng(world.rank)
        world.barrier()
        end = time.monotonic() + settings.read_seconds
        while time.monotonic() < end:
            batch = shards.batch(np.sort(random.integers(len(shards), size=16)))
            n_structures += 16
            n_bytes += sum(v.nbytes for v in vars(batch).values() if isinstance(v, np.ndarray))
    except (InputError, OSError) as error:
        problem = f"{socket.gethostname()}: {error}"
    sums = world.all_reduce_async(torch.tensor([n_structures, n_bytes], dtype=torch.float64))()
    rate, mb = (sums / settings.read_seconds).tolist()
    text = (
        f"{settings.data_dir}: {rate:.4g} structures/s, {mb / 1e6:.4g} MB/s over {world.size} "
        "ranks (what the system has cached counts too)"
    )
    remedy = "data_dir must be on a file system that all nodes share"
    return first_problem(world, problem, text, remedy)
