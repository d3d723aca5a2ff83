"""The settings of the commands that use preprocessed data."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

from omegaconf import MISSING

from mace_train.checks import as_files, check_choice
from mace_train.errors import InputError
from mace_train.settings.inputs import check_keys
from mace_train.settings.learning import (
    FinishSettings,
    FoundationSettings,
    LossSettings,
    OptimizerSettings,
    SchedulerSettings,
    StageTwoSettings,
)
from mace_train.settings.model import ModelSettings
from mace_train.settings.ranges import (
    COUNT,
    DECAY,
    LEARNING_RATE,
    MEGABYTES,
    SEED,
    Range,
    bounded,
    check_ranges,
)
from mace_train.settings.running import (
    BatchingSettings,
    CheckpointSettings,
    ClusterSettings,
    LoggerSettings,
)

FABRICS = ("slingshot-11", "infiniband-hdr", "infiniband-ndr", "ethernet-100", "ethernet-10")


@dataclass(kw_only=True)
class TrainSettings:
    """Train a model on preprocessed shards."""

    data_dir: str = MISSING
    """Folder written by `mace-train preprocess`."""
    output: str = "runs/mace"
    """Folder for checkpoints, metrics and the resolved settings."""
    name: str = "mace"
    """Name of the run."""
    seed: int = bounded(123, SEED)
    """Seed of initial weights and of the order of structures."""
    default_dtype: str = "float32"
    """float32 or float64, of weights and features; energies of isolated atoms stay float64."""
    matmul_dtype: str = "default"
    """Type of the matrix products in linear layers and radial networks: default (default_dtype),
    tfloat32 (all float32 matrix products of the GPU) or bfloat16; the rest stays as it is."""
    activation_checkpointing: bool = False
    """Keep the inputs of every layer alone and compute the rest again in the backward passes: less
    memory, more time, the same results."""
    max_num_epochs: int = bounded(200, COUNT)
    """Epochs to train."""
    patience: int = bounded(2048, COUNT)
    """Validations without improvement after which training stops."""
    eval_interval: int = bounded(1, COUNT)
    """Epochs between validations."""
    clip_grad: float | None = bounded(
        10.0,
        Range(
            0,
            1e38,
            exclude_minimum=True,
            reason="null for no limit; single precision ends at 3.4e38",
        ),
    )
    """Limit of the gradient norm over all parameters; null for none."""
    ema: bool = True
    """Keep an exponential moving average of the weights, used for validation and in best; not in
    the optimizers schedulefree, which has its own, and lbfgs."""
    ema_decay: float = bounded(0.99, DECAY)
    """Decay per step of the moving average."""
    restart_latest: bool = False
    """Continue from the last checkpoint in output, if there is one."""
    non_finite: str = "stop"
    """What to do when the gradient of a step is NaN or infinite: stop, or skip the step; ten in a
    row stop in any case."""
    model: ModelSettings = field(default_factory=ModelSettings)
    foundation: FoundationSettings = field(default_factory=FoundationSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    scheduler: SchedulerSettings = field(default_factory=SchedulerSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    stage_two: StageTwoSettings = field(default_factory=StageTwoSettings)
    finish: FinishSettings = field(default_factory=FinishSettings)
    checkpoints: CheckpointSettings = field(default_factory=CheckpointSettings)
    batching: BatchingSettings = field(default_factory=BatchingSettings)
    logger: LoggerSettings = field(default_factory=LoggerSettings)
    cluster: ClusterSettings = field(default_factory=ClusterSettings)

    def __post_init__(self) -> None:
        check_choice("default_dtype", self.default_dtype, ("float32", "float64"))
        check_choice("matmul_dtype", self.matmul_dtype, ("default", "tfloat32", "bfloat16"))
        if self.matmul_dtype != "default" and self.default_dtype != "float32":
            raise InputError(
                f"matmul_dtype={self.matmul_dtype} is for default_dtype=float32, not "
                f"{self.default_dtype}; use matmul_dtype=default"
            )
        if self.cluster.cuda_graphs and not self.batching.static_shapes:
            raise InputError(
                "cluster.cuda_graphs=true needs batching.static_shapes=true: a graph of kernels is "
                "captured for one shape of bins"
            )
        check_choice("non_finite", self.non_finite, ("stop", "skip"))
        check_ranges(self)
        self._check_growth_of_lr()

    def _check_growth_of_lr(self) -> None:
        """InputError if an exponential schedule with a factor above 1 ends beyond all bounds."""
        if self.scheduler.scheduler != "exponential" or self.scheduler.lr_scheduler_gamma <= 1:
            return
        growth = self.max_num_epochs * math.log10(self.scheduler.lr_scheduler_gamma)
        if math.log10(self.optimizer.lr) + growth > math.log10(LEARNING_RATE.maximum):
            raise InputError(
                f"scheduler.lr_scheduler_gamma={self.scheduler.lr_scheduler_gamma}: in "
                f"max_num_epochs={self.max_num_epochs} the learning rate grows by a factor of "
                f"1e{growth:.0f}; it must stay {LEARNING_RATE}"
            )


@dataclass(kw_only=True)
class BalanceSettings:
    """Report how evenly the packers fill the GPUs, before any GPU is used."""

    data_dir: str = MISSING
    """Folder written by `mace-train preprocess`."""
    split: str = "train"
    """Which part of it: train, valid or test."""
    gpus: int = bounded(8, Range(1, 10**6, reason="no cluster has more"))
    """Number of GPUs to plan for."""
    seed: int = bounded(123, SEED)
    """Seed of the order of structures."""
    output: str | None = None
    """Folder for balance.json and plots; null prints the tables only."""
    fabric: str = "slingshot-11"
    """Network of the predicted times: slingshot-11, infiniband-hdr, infiniband-ndr, ethernet-100
    or ethernet-10."""
    all_reduce: str = "ring"
    """How gradients are summed in the predicted times: ring or tree."""
    gradient_mb: float = bounded(10.0, MEGABYTES)
    """Size of the gradients, MB (4 bytes per weight in float32)."""
    scaling: bool = True
    """Predict strong and weak scaling from 8 to 4096 GPUs."""
    gap_instances: int = bounded(6, Range(0, 10000, reason="each is solved to optimality"))
    """Draws of 60 structures on which our bins are compared with the optimum (CP-SAT)."""
    batching: BatchingSettings = field(default_factory=BatchingSettings)

    def __post_init__(self) -> None:
        check_choice("split", self.split, ("train", "valid", "test"))
        check_ranges(self)
        check_choice("fabric", self.fabric, FABRICS)
        check_choice("all_reduce", self.all_reduce, ("ring", "tree"))


@dataclass(kw_only=True)
class PredictionSettings:
    """Labelled structures and how a trained model predicts them."""

    test_file: Any = None
    """File or files that ASE reads, to be evaluated; or give data_dir."""
    data_dir: str | None = None
    """Folder written by `mace-train preprocess`, to be evaluated; or give test_file."""
    split: str = "valid"
    """Which part of a preprocessed folder: train, valid or test."""
    energy_key: str = "REF_energy"
    """Name of the energy (eV) in files that ASE reads."""
    forces_key: str = "REF_forces"
    """Name of the forces (eV/Å)."""
    stress_key: str = "REF_stress"
    """Name of the stress (eV/Å^3)."""
    virials_key: str = "REF_virials"
    """Name of the virials (eV)."""
    info_keys: Any = None
    """Names of the inputs of the model that are one number per structure, such as
    {total_charge: charge}; null: those of the model."""
    arrays_keys: Any = None
    """The same of inputs that are one number per atom."""
    head: str | None = None
    """Head of a model with several that predicts all structures; null: the head of each."""
    default_dtype: str | None = None
    """float32 or float64; null takes the checkpoint's."""
    batching: BatchingSettings = field(default_factory=BatchingSettings)
    cluster: ClusterSettings = field(default_factory=ClusterSettings)

    def __post_init__(self) -> None:
        as_files("test_file", self.test_file)
        check_keys(self.info_keys, self.arrays_keys)
        check_choice("split", self.split, ("train", "valid", "test"))
        if self.default_dtype is not None:
            check_choice("default_dtype", self.default_dtype, ("float32", "float64"))


@dataclass(kw_only=True)
class EvaluateSettings(PredictionSettings):
    """Error tables, parity plots and predictions of a trained model."""

    checkpoint: str = MISSING
    """best.safetensors or last.safetensors, the output folder of a training, or the name of a
    foundation model."""
    output: str = "evaluation"
    """Folder for errors.json, errors.txt, parity plots and predictions.extxyz."""
    plots: bool = True
    """Draw parity plots."""
    predictions: bool = True
    """Write predictions.extxyz."""


@dataclass(kw_only=True)
class ReportSettings(PredictionSettings):
    """One page about a training: `mace-train report RUN [key=value ...]`.

    Writes report.html, complete in itself, and its figures as PNG. Errors are those of the best
    checkpoint on the training's own validation structures, unless others are named.
    """

    run: str = MISSING
    """Output folder of a training."""
    output: str | None = None
    """Folder for report.html and PNGs; null is RUN/report."""
    evaluation: Any = None
    """Output folder or folders of `mace-train evaluate`, which are shown and not computed again."""
    worst: int = bounded(10, Range(1, 10000, reason="a page lists them all"))
    """Structures with the largest errors to list, by forces and by energy."""
    map: bool = False
    """Draw maps: the two principal components of the model's mean descriptors, of the training set
    by config_type and of the evaluated structures by error; they take a pass over both."""
    map_structures: int = bounded(5000, Range(2, 10**6, reason="a point each"))
    """Structures of each set in a map, drawn at random where there are more."""

    def __post_init__(self) -> None:
        super().__post_init__()
        as_files("evaluation", self.evaluation)
        check_ranges(self)
        if self.test_file is not None and self.data_dir is not None:
            raise InputError("report takes either test_file=FILE or data_dir=FOLDER, not both")


@dataclass(kw_only=True)
class CompareSettings:
    """Compare trainings: `mace-train compare RUN RUN ... [output=FOLDER]`."""

    runs: Any = MISSING
    """Output folders of trainings."""
    output: str | None = None
    """Folder for compare.json and compare.png; null prints the table only."""

    def __post_init__(self) -> None:
        if self.runs != MISSING and not as_files("runs", self.runs):
            raise InputError("compare needs at least one run: mace-train compare RUN RUN ...")


@dataclass(kw_only=True)
class SweepSettings:
    """Summarise a sweep: `mace-train sweep FOLDER`; writes sweep.json, sweep.csv and sweep.png."""

    folder: str = MISSING
    """Output folder of the sweep, with one folder per job."""
    by: str = "valid_loss"
    """Validation error that the jobs are sorted by, such as valid_forces_rmse_eV_per_A."""


@dataclass(kw_only=True)
class TuneSettings:
    """Search settings with Optuna: `mace-train tune trials=50 output=FOLDER -- TRAINING SETTINGS`.

    After `--` come settings of `mace-train train`; those to be searched have several values
    (model=tiny,small) or a range (optimizer.lr='tag(log,interval(1e-4,1e-2))', of whole numbers
    batching.batch_size='int(interval(2,16))'). Several of these commands, on any nodes, share one
    search.
    """

    output: str = "runs/tune"
    """Folder of the search, with one folder per trial."""
    training: Any = MISSING
    """Settings of the trainings, as a list; on the command line, what follows `--`."""
    trials: int = bounded(20, COUNT)
    """Trials of the whole search, over all commands that share it."""
    by: str = "valid_loss"
    """Validation error of the best epoch, which is minimised."""
    seed: int = bounded(123, SEED)
    """Seed of the search."""
    launch: str = ""
    """Command that starts a training, such as `srun` or `torchrun --nproc-per-node 4 -m`."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(kw_only=True)
class DoctorSettings:
    """Check the environment that a training would have here; start it as you would start one."""

    data_dir: str | None = None
    """Folder written by `mace-train preprocess`, to measure how fast it is read."""
    read_seconds: float = bounded(2.0, Range(0, 86400, exclude_minimum=True, reason="a day"))
    """Seconds to read for."""
    message_mb: float = bounded(16.0, replace(MEGABYTES, exclude_minimum=True))
    """Size of the sums over ranks that are timed, MB."""
    cluster: ClusterSettings = field(default_factory=ClusterSettings)

    def __post_init__(self) -> None:
        check_ranges(self)
