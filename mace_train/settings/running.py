"""Settings of batching, logging, checkpoints, processes and devices."""

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from mace_train.checks import check_choice
from mace_train.errors import InputError
from mace_train.settings.ranges import COUNT, Range, bounded, check_ranges

_BATCH = Range(1, 10**6, reason="a step holds all of its structures in memory")
_CAPACITY = Range(1, 2**31 - 1, reason="counts of a step have 32 bits")
_PROCESSES = 4096  # more than the cores of any host; train compares with those of its own
PACKERS = ("balanced", "algorithm1", "first_fit", "fixed_count")
_SAMPLING_RATIO = Range(
    1e-6,
    10_000,
    reason="to leave a head out, leave it out of the data; more repeats are more epochs",
)
_FRACTION = re.compile(r"(\d{1,9})/(\d{1,9})")


@dataclass(kw_only=True)
class BatchingSettings:
    """Which structures share one step of one GPU."""

    packer: str = "balanced"
    """balanced (atoms and edges even), algorithm1 (of arXiv 2504.10700), first_fit (random order)
    or fixed_count (batch_size each)."""
    batch_size: int = bounded(10, _BATCH)
    """Structures per GPU and step: exactly (fixed_count), or on average when max_atoms is null."""
    valid_batch_size: int = bounded(10, _BATCH)
    """The same for validation and evaluation; it changes no result."""
    max_atoms: int | None = bounded(None, _CAPACITY)
    """Capacity of one GPU and step, atoms; null: batch_size mean structures plus 10 %."""
    max_edges: int | None = bounded(None, _CAPACITY)
    """Capacity of one GPU and step, edges; null derives it from max_atoms."""
    max_memory_gb: float | None = bounded(
        None,
        Range(
            0,
            2000,
            exclude_minimum=True,
            reason="no device has more; kilobytes of a step have 32 bits",
        ),
    )
    """Capacity of one GPU and step, GB (10^9 bytes): by the memory of cost_model, null: no limit;
    with capacity=auto as measured, null: what the device has."""
    cost_model: str | None = None
    """JSON file with measured time and memory per atom and edge (scripts/measure_costs.py)."""
    accumulate: int = bounded(1, Range(1, 10**6, reason="more bins in one step are a typing error"))
    """Bins of every rank whose gradients add up to one step of the optimizer."""
    capacity: str = "given"
    """given (by batch_size, max_atoms, max_edges), or auto: what the memory of the device holds,
    measured before the first step."""
    static_shapes: bool = False
    """Pad every bin to the capacity with atoms that change nothing, so that all steps have one
    shape; the padding costs time."""
    head_sampling_ratios: Any = bounded(None, _SAMPLING_RATIO)
    """How often an epoch of training holds the structures of a head, such as {new: 4, old: 1/3}; 1
    for a head that is not named. With 4 each comes four times per epoch, with 1/3 once in three
    epochs, with 2.5 two or three times in one and five times in two."""

    def __post_init__(self) -> None:
        check_choice("batching.packer", self.packer, PACKERS)
        check_choice("batching.capacity", self.capacity, ("given", "auto"))
        if self.capacity == "auto" and self.packer == "fixed_count":
            raise InputError("batching.capacity=auto cannot be kept with packer=fixed_count")
        check_ranges(self, "batching.")
        is_measured = self.capacity == "auto" or self.cost_model is not None
        if self.max_memory_gb is not None and not is_measured:
            raise InputError(
                "batching.max_memory_gb needs batching.capacity=auto, or batching.cost_model, the "
                "file that says how much memory atoms and edges take; scripts/measure_costs.py "
                "writes it"
            )
        self.ratios_by_head()

    def ratios_by_head(self) -> dict[str, Fraction]:
        """The exact sampling ratios of the heads that are named."""
        given = {} if self.head_sampling_ratios is None else self.head_sampling_ratios
        if not isinstance(given, dict):
            raise InputError(
                f"batching.head_sampling_ratios={given!r} must map heads to numbers, such as "
                "'{new: 4, old: 1/3}'"
            )
        return {
            str(head): _ratio(f"batching.head_sampling_ratios.{head}", value)
            for head, value in given.items()
        }


def _ratio(name: str, value: Any) -> Fraction:
    """A sampling ratio from a number, as it is written, or from a fraction in text."""
    ratio = None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        ratio = Fraction(str(value))
    elif isinstance(value, str) and (found := _FRACTION.fullmatch(value)) and int(found[2]):
        ratio = Fraction(int(found[1]), int(found[2]))
    if ratio is None:
        raise InputError(
            f"{name}={value!r} must be a number, or a fraction such as 1/3; it must be "
            f"{_SAMPLING_RATIO}"
        )
    _SAMPLING_RATIO.check(name, float(ratio))
    return ratio


@dataclass(kw_only=True)
class LoggerSettings:
    """Where metrics go, beside metrics.jsonl and metrics.csv, which are always written."""

    progress: bool = True
    """Show a progress bar (rank 0, terminals only; otherwise one line per epoch)."""
    tensorboard: bool = False
    """Write TensorBoard event files to OUTPUT/tensorboard."""
    wandb: bool = False
    """Log to Weights & Biases from rank 0."""
    wandb_project: str = "mace-train"
    """Project of the run."""
    wandb_entity: str | None = None
    """Team or user of the run."""
    wandb_name: str | None = None
    """Name of the run; null takes the training's name."""
    wandb_mode: str = "offline"
    """offline (synchronise later with `wandb sync`), online or disabled."""
    noise_scale: bool = False
    """Measure the gradient noise scale (arXiv 1812.06162): structures per step above which larger
    steps hardly pay; needs at least two ranks."""

    def __post_init__(self) -> None:
        check_choice("logger.wandb_mode", self.wandb_mode, ("offline", "online", "disabled"))


@dataclass(kw_only=True)
class ClusterSettings:
    """Processes, devices and their communication."""

    device: str = "auto"
    """auto (CUDA if there is one), cpu or cuda."""
    backend: str = "auto"
    """Collectives: auto (nccl on CUDA, gloo on CPU), nccl or gloo."""
    timeout_s: int = bounded(600, Range(1, 31536000, reason="a year"))
    """Seconds after which a collective that a rank does not join is an error."""
    kernels: str = "auto"
    """Fused operations: auto (compiled where possible), cpp (CPU), cuda (NVIDIA) or reference."""
    cuda_graphs: bool = False
    """Capture the gradient of a bin (energies, forces, loss, both backward passes) once and replay
    it for every bin: no time to launch kernels; needs a GPU and batching.static_shapes."""
    num_threads: int | None = bounded(
        None, Range(1, _PROCESSES, reason="no host has so many cores")
    )
    """CPU threads per process; null leaves PyTorch's choice, divided by the ranks of the host."""
    num_workers: int = bounded(0, Range(0, _PROCESSES, reason="no host has so many cores"))
    """Processes per rank that read and batch structures ahead of the step."""
    stage_to: str | None = None
    """Folder on a disk of each node that data_dir is copied to before the first step and removed
    from at the end; null reads data_dir where it is."""

    def __post_init__(self) -> None:
        check_choice("cluster.device", self.device, ("auto", "cpu", "cuda"))
        check_choice("cluster.backend", self.backend, ("auto", "nccl", "gloo"))
        check_choice("cluster.kernels", self.kernels, ("auto", "cpp", "cuda", "reference"))
        check_ranges(self, "cluster.")


@dataclass(kw_only=True)
class CheckpointSettings:
    """When the state of a training is written, and how long it is kept."""

    every_minutes: float | None = bounded(
        30.0, Range(0, 1e9, exclude_minimum=True, reason="null for never")
    )
    """Minutes between checkpoints within an epoch; the end of an epoch always gives one."""
    every_steps: int | None = bounded(None, COUNT)
    """Steps between checkpoints, beside those."""
    keep: int = bounded(2, Range(2, 10**9, reason="one of two may be damaged"))
    """Newest checkpoints that are kept; at least two, so that one may be damaged."""
    keep_every: int | None = bounded(None, COUNT)
    """Epochs between checkpoints that are kept for good, as epoch-N.safetensors."""
    head: str | None = None
    """Head whose validation loss decides which checkpoint is best, when to reduce the learning rate
    and when to stop; null: the loss over all heads."""

    def __post_init__(self) -> None:
        check_ranges(self, "checkpoints.")
