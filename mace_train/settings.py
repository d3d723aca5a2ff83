"""The one schema of all settings: every name, type, default, unit and limit stands here.

YAML files under ``configs/`` state differences from these defaults, the command line overrides
both, and ``mace-train COMMAND --help`` prints this page. Names follow ``mace_run_train`` wherever
the concept is the same. The string under a field is its help text.
"""

from dataclasses import dataclass, field
from typing import Any

from mace_train.checks import as_files, check_at_least, check_choice
from mace_train.errors import InputError

MISSING: Any = "???"  # OmegaConf's mark of a value that the user must give


@dataclass(kw_only=True)
class DataSettings:
    """Input files, the names of their labels, and the energies of isolated atoms."""

    train_file: Any = MISSING
    """File(s) that ASE reads, also patterns like dir/*.xyz; validation: see valid_fraction."""
    valid_file: Any = None
    """File or files for validation; without them valid_fraction of train_file is split off."""
    test_file: Any = None
    """File or files for testing, kept apart from training."""
    valid_fraction: float = 0.1
    """Share of train_file that is split off for validation when valid_file is not given."""
    energy_key: str = "REF_energy"
    """Name of the energy (eV) in the files; falls back to what ASE parsed, announced."""
    forces_key: str = "REF_forces"
    """Name of the forces (eV/Å); falls back to what ASE parsed, announced."""
    stress_key: str = "REF_stress"
    """Name of the stress (eV/Å^3, ASE's sign); falls back to what ASE parsed, announced."""
    virials_key: str = "REF_virials"
    """Name of the virials (eV), read as stress = -virials / volume where there is no stress."""
    E0s: Any = None
    """Isolated-atom energies: null takes them from isolated-atom structures in train_file,
    'average' fits them by least squares, a mapping {1: -13.6, 8: ...} or a JSON file gives them."""
    keep_isolated_atoms: bool = False
    """Train on the isolated-atom structures too, instead of using them for E0s only."""

    def __post_init__(self) -> None:
        for name in ("train_file", "valid_file", "test_file"):
            if getattr(self, name) != MISSING:
                as_files(f"data.{name}", getattr(self, name))
        if not 0.0 <= self.valid_fraction < 1.0:
            raise InputError(f"data.valid_fraction={self.valid_fraction} must be in [0, 1)")
        if self.E0s is not None and not isinstance(self.E0s, (str, dict)):
            raise InputError(
                f"data.E0s={self.E0s!r} must be null, 'average', a JSON file or a mapping {{Z: eV}}"
            )


@dataclass(kw_only=True)
class PreprocessSettings:
    """Turn files that ASE reads into HDF5 shards with stored neighbour lists."""

    data: DataSettings = field(default_factory=DataSettings)
    output: str = MISSING
    """Folder that will hold train/, valid/, test/ and statistics.json."""
    r_max: float = 5.0
    """Cutoff radius of the neighbour lists, Å."""
    seed: int = 123
    """Seed of the training/validation split."""
    structures_per_shard: int = 4096
    """Structures in one HDF5 file."""
    workers: int = 1
    """Processes that build neighbour lists."""
    overwrite: bool = False
    """Replace an output folder that already holds shards."""

    def __post_init__(self) -> None:
        check_at_least("r_max", self.r_max, 0.0, strictly=True)
        check_at_least("structures_per_shard", self.structures_per_shard, 1)
        check_at_least("workers", self.workers, 1)


@dataclass(kw_only=True)
class ModelSettings:
    """Architecture of MACE (arXiv 2206.07697), with mace-torch's names."""

    model: str = "ScaleShiftMACE"
    """ScaleShiftMACE, or MACE: agnostic first block and no shift, as in mace-torch."""
    r_max: float | None = None
    """Cutoff radius, Å; null takes the one of the shards, another value is an error."""
    num_channels: int = 128
    """Channels of every irrep of the node features."""
    max_L: int = 1
    """Highest degree of the node features that are passed between layers."""
    max_ell: int = 3
    """Highest degree of the spherical harmonics."""
    correlation: int = 3
    """Order of the symmetric contraction (body order minus one)."""
    num_interactions: int = 2
    """Message-passing layers."""
    num_radial_basis: int = 8
    """Bessel functions of the radial basis."""
    num_cutoff_basis: int = 5
    """Exponent p of the polynomial cutoff."""
    radial_MLP: list[int] = field(default_factory=lambda: [64, 64, 64])
    """Hidden widths of the radial network."""
    MLP_irreps: str = "16x0e"
    """Hidden scalars of the last readout."""
    scaling: str = "rms_forces_scaling"
    """Scale of the interaction energy: rms_forces_scaling, std_scaling or no_scaling."""

    def __post_init__(self) -> None:
        check_choice("model.model", self.model, ("ScaleShiftMACE", "MACE"))
        check_choice(
            "model.scaling", self.scaling, ("rms_forces_scaling", "std_scaling", "no_scaling")
        )
        check_at_least("model.r_max", self.r_max, 0.0, strictly=True)
        for name in ("num_channels", "correlation", "num_interactions", "num_radial_basis"):
            check_at_least(f"model.{name}", getattr(self, name), 1)
        check_at_least("model.num_cutoff_basis", self.num_cutoff_basis, 2)
        check_at_least("model.max_L", self.max_L, 0)
        check_at_least("model.max_ell", self.max_ell, max(self.max_L, 1))
        if not self.radial_MLP or min(self.radial_MLP) < 1:
            raise InputError(f"model.radial_MLP={self.radial_MLP} must list positive widths")
        self.mlp_width()

    def mlp_width(self) -> int:
        """The number of hidden scalars that MLP_irreps names."""
        width, _, irrep = self.MLP_irreps.partition("x")
        if irrep != "0e" or not width.isdigit() or int(width) < 1:
            raise InputError(f"model.MLP_irreps={self.MLP_irreps!r} must be scalars, like '16x0e'")
        return int(width)


@dataclass(kw_only=True)
class OptimizerSettings:
    """Optimizer and its parameter groups (weight decay as in mace-torch)."""

    optimizer: str = "adam"
    """adam (L2 in the gradient, as in mace-torch) or adamw (decoupled)."""
    lr: float = 0.01
    """Learning rate."""
    weight_decay: float = 5e-7
    """Weight decay of the mixing linears and the product weights; the rest has none."""
    beta: float = 0.9
    """First-moment decay of Adam."""
    beta2: float = 0.999
    """Second-moment decay of Adam."""
    amsgrad: bool = True
    """Use the AMSGrad variant."""

    def __post_init__(self) -> None:
        check_choice("optimizer.optimizer", self.optimizer, ("adam", "adamw"))
        check_at_least("optimizer.lr", self.lr, 0.0, strictly=True)
        check_at_least("optimizer.weight_decay", self.weight_decay, 0.0)
        for name in ("beta", "beta2"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise InputError(f"optimizer.{name}={getattr(self, name)} must be in [0, 1)")


@dataclass(kw_only=True)
class SchedulerSettings:
    """Learning-rate schedule."""

    scheduler: str = "plateau"
    """plateau (on the validation loss), exponential (per epoch), cosine (per step) or constant."""
    lr_factor: float = 0.8
    """plateau: factor at each reduction."""
    scheduler_patience: int = 50
    """plateau: validations without improvement before a reduction."""
    lr_scheduler_gamma: float = 0.9993
    """exponential: factor per epoch."""
    warmup_epochs: float = 0.0
    """Epochs (may be a fraction) of linear warm-up, with every schedule."""
    min_lr_factor: float = 0.0
    """cosine: final learning rate as a share of the first."""

    def __post_init__(self) -> None:
        valid = ("plateau", "exponential", "cosine", "constant")
        check_choice("scheduler.scheduler", self.scheduler, valid)
        check_at_least("scheduler.lr_factor", self.lr_factor, 0.0, strictly=True)
        check_at_least("scheduler.scheduler_patience", self.scheduler_patience, 0)
        check_at_least("scheduler.lr_scheduler_gamma", self.lr_scheduler_gamma, 0.0, strictly=True)
        check_at_least("scheduler.warmup_epochs", self.warmup_epochs, 0.0)
        check_at_least("scheduler.min_lr_factor", self.min_lr_factor, 0.0)
        if self.min_lr_factor > 1:
            raise InputError(f"scheduler.min_lr_factor={self.min_lr_factor} must be at most 1")


@dataclass(kw_only=True)
class LossSettings:
    """Weighted squared errors of energy per atom, forces, stress and virials per atom."""

    energy_weight: float = 1.0
    """Weight of the squared error of the energy per atom, (eV/atom)^2."""
    forces_weight: float = 100.0
    """Weight of the mean squared error of the force components, (eV/Å)^2."""
    stress_weight: float = 0.0
    """Weight of the mean squared error of the stress components, (eV/Å^3)^2."""
    virials_weight: float = 0.0
    """Weight of the mean squared error of the virial components per atom, (eV/atom)^2."""
    config_type_weights: Any = None
    """Weight of a structure by its config_type, beside its own config_weight, such as
    {bulk: 2, surface: 0.5}; 1 for a config_type that is not named."""

    def __post_init__(self) -> None:
        names = ("energy_weight", "forces_weight", "stress_weight", "virials_weight")
        for name in names:
            check_at_least(f"loss.{name}", getattr(self, name), 0.0)
        for kind, weight in self.weights_by_type().items():
            check_at_least(f"loss.config_type_weights.{kind}", weight, 0.0)
        if not any(getattr(self, name) > 0 for name in names):
            raise InputError(f"loss: nothing to train on, every one of {', '.join(names)} is 0")

    def weights_by_type(self) -> dict[str, float]:
        """Weights of the config_types that are named."""
        given = {} if self.config_type_weights is None else self.config_type_weights
        numbers = isinstance(given, dict) and all(
            isinstance(weight, (int, float)) for weight in given.values()
        )
        if not numbers:
            raise InputError(
                f"loss.config_type_weights={given!r} must map config_types to numbers, such as "
                "'{bulk: 2, surface: 0.5}'"
            )
        return {str(kind): float(weight) for kind, weight in given.items()}


@dataclass(kw_only=True)
class BatchingSettings:
    """Which structures share one step of one GPU."""

    packer: str = "algorithm1"
    """algorithm1 (arXiv 2504.10700, balanced bins) or fixed_count (batch_size each)."""
    batch_size: int = 10
    """Structures per GPU and step: exactly (fixed_count), or on average when max_atoms is null."""
    valid_batch_size: int = 10
    """The same for validation and evaluation; it changes no result."""
    max_atoms: int | None = None
    """Capacity of one GPU and step, atoms; null: batch_size mean structures plus 10 %."""
    max_edges: int | None = None
    """Capacity of one GPU and step, edges; null derives it from max_atoms."""

    def __post_init__(self) -> None:
        check_choice("batching.packer", self.packer, ("algorithm1", "fixed_count"))
        for name in ("batch_size", "valid_batch_size", "max_atoms", "max_edges"):
            check_at_least(f"batching.{name}", getattr(self, name), 1)


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

    def __post_init__(self) -> None:
        check_choice("logger.wandb_mode", self.wandb_mode, ("offline", "online", "disabled"))


@dataclass(kw_only=True)
class ClusterSettings:
    """Processes, devices and how they talk to each other."""

    device: str = "auto"
    """auto (CUDA if there is one), cpu or cuda."""
    backend: str = "auto"
    """Collectives: auto (nccl on CUDA, gloo on CPU), nccl or gloo."""
    timeout_s: int = 600
    """Seconds after which a collective that a rank does not join is an error."""
    kernels: str = "auto"
    """Fused operations: auto (compiled where possible), cpp (CPU), cuda (NVIDIA) or reference."""
    num_threads: int | None = None
    """CPU threads per process; null leaves PyTorch's choice, divided by the ranks of the host."""
    num_workers: int = 0
    """Processes per rank that read and batch structures ahead of the step."""

    def __post_init__(self) -> None:
        check_choice("cluster.device", self.device, ("auto", "cpu", "cuda"))
        check_choice("cluster.backend", self.backend, ("auto", "nccl", "gloo"))
        check_choice("cluster.kernels", self.kernels, ("auto", "cpp", "cuda", "reference"))
        check_at_least("cluster.timeout_s", self.timeout_s, 1)
        check_at_least("cluster.num_threads", self.num_threads, 1)
        check_at_least("cluster.num_workers", self.num_workers, 0)


@dataclass(kw_only=True)
class TrainSettings:
    """Train a model on preprocessed shards."""

    data_dir: str = MISSING
    """Folder written by `mace-train preprocess`."""
    output: str = "runs/mace"
    """Folder for checkpoints, metrics and the resolved settings."""
    name: str = "mace"
    """Name of the run."""
    seed: int = 123
    """Seed of initial weights and of the order of structures."""
    default_dtype: str = "float32"
    """float32 or float64, of weights and features; energies of isolated atoms stay float64."""
    max_num_epochs: int = 200
    """Epochs to train."""
    patience: int = 2048
    """Validations without improvement after which training stops."""
    eval_interval: int = 1
    """Epochs between validations."""
    clip_grad: float | None = 10.0
    """Limit of the gradient norm over all parameters; null for none."""
    ema: bool = True
    """Keep an exponential moving average of the weights, used for validation and in best."""
    ema_decay: float = 0.99
    """Decay per step of the moving average."""
    restart_latest: bool = False
    """Continue from the last checkpoint in output, if there is one."""
    model: ModelSettings = field(default_factory=ModelSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    scheduler: SchedulerSettings = field(default_factory=SchedulerSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    batching: BatchingSettings = field(default_factory=BatchingSettings)
    logger: LoggerSettings = field(default_factory=LoggerSettings)
    cluster: ClusterSettings = field(default_factory=ClusterSettings)

    def __post_init__(self) -> None:
        check_choice("default_dtype", self.default_dtype, ("float32", "float64"))
        for name in ("max_num_epochs", "patience", "eval_interval"):
            check_at_least(name, getattr(self, name), 1)
        check_at_least("clip_grad", self.clip_grad, 0.0, strictly=True)
        if not 0.0 <= self.ema_decay < 1.0:
            raise InputError(f"ema_decay={self.ema_decay} must be in [0, 1)")


@dataclass(kw_only=True)
class BalanceSettings:
    """Report how evenly the packers fill the GPUs, before any GPU is used."""

    data_dir: str = MISSING
    """Folder written by `mace-train preprocess`."""
    split: str = "train"
    """Which part of it: train, valid or test."""
    gpus: int = 8
    """Number of GPUs to plan for."""
    seed: int = 123
    """Seed of the order of structures."""
    output: str | None = None
    """Folder for balance.json and balance.png; null prints the table only."""
    batching: BatchingSettings = field(default_factory=BatchingSettings)

    def __post_init__(self) -> None:
        check_choice("split", self.split, ("train", "valid", "test"))
        check_at_least("gpus", self.gpus, 1)


@dataclass(kw_only=True)
class EvaluateSettings:
    """Error tables, parity plots and predictions of a trained model."""

    checkpoint: str = MISSING
    """best.safetensors or last.safetensors, or the output folder of a training."""
    test_file: Any = None
    """File or files that ASE reads; or give data_dir."""
    data_dir: str | None = None
    """Folder written by `mace-train preprocess`; or give test_file."""
    split: str = "valid"
    """Which part of a preprocessed folder: train, valid or test."""
    output: str = "evaluation"
    """Folder for errors.json, errors.txt, parity plots and predictions.extxyz."""
    energy_key: str = "REF_energy"
    """Name of the energy (eV) in files that ASE reads."""
    forces_key: str = "REF_forces"
    """Name of the forces (eV/Å)."""
    stress_key: str = "REF_stress"
    """Name of the stress (eV/Å^3)."""
    virials_key: str = "REF_virials"
    """Name of the virials (eV)."""
    default_dtype: str | None = None
    """float32 or float64; null takes the checkpoint's."""
    plots: bool = True
    """Draw parity plots."""
    predictions: bool = True
    """Write predictions.extxyz."""
    batching: BatchingSettings = field(default_factory=BatchingSettings)
    cluster: ClusterSettings = field(default_factory=ClusterSettings)

    def __post_init__(self) -> None:
        as_files("test_file", self.test_file)
        check_choice("split", self.split, ("train", "valid", "test"))
        if self.default_dtype is not None:
            check_choice("default_dtype", self.default_dtype, ("float32", "float64"))
