"""Settings of batching, logging, checkpoints, processes and devices."""

from dataclasses import dataclass

from mace_train.checks import check_at_least, check_choice
from mace_train.errors import InputError

PACKERS = ("balanced", "algorithm1", "first_fit", "fixed_count")


@dataclass(kw_only=True)
class BatchingSettings:
    """Which structures share one step of one GPU."""

    packer: str = "balanced"
    """balanced (atoms and edges even), algorithm1 (of arXiv 2504.10700), first_fit (random order)
    or fixed_count (batch_size each)."""
    batch_size: int = 10
    """Structures per GPU and step: exactly (fixed_count), or on average when max_atoms is null."""
    valid_batch_size: int = 10
    """The same for validation and evaluation; it changes no result."""
    max_atoms: int | None = None
    """Capacity of one GPU and step, atoms; null: batch_size mean structures plus 10 %."""
    max_edges: int | None = None
    """Capacity of one GPU and step, edges; null derives it from max_atoms."""
    max_memory_gb: float | None = None
    """Capacity of one GPU and step, GB (10^9 bytes): by the memory of cost_model, null: no limit;
    with capacity=auto as measured, null: what the device has."""
    cost_model: str | None = None
    """JSON file with measured time and memory per atom and edge (scripts/measure_costs.py)."""
    accumulate: int = 1
    """Bins of every rank whose gradients add up to one step of the optimizer."""
    capacity: str = "given"
    """given (by batch_size, max_atoms, max_edges), or auto: what the memory of the device holds,
    measured before the first step."""
    static_shapes: bool = False
    """Pad every bin to the capacity with atoms that change nothing, so that all steps have one
    shape; the padding costs time."""

    def __post_init__(self) -> None:
        check_choice("batching.packer", self.packer, PACKERS)
        check_choice("batching.capacity", self.capacity, ("given", "auto"))
        if self.capacity == "auto" and self.packer == "fixed_count":
            raise InputError("batching.capacity=auto cannot be kept with packer=fixed_count")
        for name in ("batch_size", "valid_batch_size", "max_atoms", "max_edges", "accumulate"):
            check_at_least(f"batching.{name}", getattr(self, name), 1)
        check_at_least("batching.max_memory_gb", self.max_memory_gb, 0.0, strictly=True)
        is_measured = self.capacity == "auto" or self.cost_model is not None
        if self.max_memory_gb is not None and not is_measured:
            raise InputError(
                "batching.max_memory_gb needs batching.capacity=auto, or batching.cost_model, the "
                "file that says how much memory atoms and edges take; scripts/measure_costs.py "
                "writes it"
            )


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
    timeout_s: int = 600
    """Seconds after which a collective that a rank does not join is an error."""
    kernels: str = "auto"
    """Fused operations: auto (compiled where possible), cpp (CPU), cuda (NVIDIA) or reference."""
    cuda_graphs: bool = False
    """Capture the gradient of a bin (energies, forces, loss, both backward passes) once and replay
    it for every bin: no time to launch kernels; needs a GPU and batching.static_shapes."""
    num_threads: int | None = None
    """CPU threads per process; null leaves PyTorch's choice, divided by the ranks of the host."""
    num_workers: int = 0
    """Processes per rank that read and batch structures ahead of the step."""
    stage_to: str | None = None
    """Folder on a disk of each node that data_dir is copied to before the first step and removed
    from at the end; null reads data_dir where it is."""

    def __post_init__(self) -> None:
        check_choice("cluster.device", self.device, ("auto", "cpu", "cuda"))
        check_choice("cluster.backend", self.backend, ("auto", "nccl", "gloo"))
        check_choice("cluster.kernels", self.kernels, ("auto", "cpp", "cuda", "reference"))
        check_at_least("cluster.timeout_s", self.timeout_s, 1)
        check_at_least("cluster.num_threads", self.num_threads, 1)
        check_at_least("cluster.num_workers", self.num_workers, 0)


@dataclass(kw_only=True)
class CheckpointSettings:
    """When the state of a training is written, and how long it is kept."""

    every_minutes: float | None = 30.0
    """Minutes between checkpoints within an epoch; the end of an epoch always gives one."""
    every_steps: int | None = None
    """Steps between checkpoints, beside those."""
    keep: int = 2
    """Newest checkpoints that are kept; at least two, so that one may be damaged."""
    keep_every: int | None = None
    """Epochs between checkpoints that are kept for good, as epoch-N.safetensors."""
    head: str | None = None
    """Head whose validation loss decides which checkpoint is best, when to reduce the learning rate
    and when to stop; null: the loss over all heads."""

    def __post_init__(self) -> None:
        check_at_least("checkpoints.every_minutes", self.every_minutes, 0.0, strictly=True)
        for name, least in (("every_steps", 1), ("keep", 2), ("keep_every", 1)):
            check_at_least(f"checkpoints.{name}", getattr(self, name), least)
