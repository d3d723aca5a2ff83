"""What is trained and how: model, optimizer, schedule, loss."""

from dataclasses import dataclass, field
from typing import Any

from mace_train.checks import check_at_least, check_choice
from mace_train.errors import InputError


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
