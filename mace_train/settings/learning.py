"""Settings of optimizer, learning-rate schedule, loss and fine-tuning."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mace_train.checks import check_choice, check_head
from mace_train.errors import InputError
from mace_train.foundation_models.lookup import check_licence_name
from mace_train.irreps import MOST_CHANNELS
from mace_train.settings.ranges import (
    COUNT,
    COUNT_OR_ZERO,
    DECAY,
    LEARNING_RATE,
    LOSS_WEIGHT,
    Range,
    bounded,
    check_ranges,
)

_GROUPS = ("embedding", "interactions", "products", "readouts", "inputs")
_MODULES = ("node_embedding", "joint_embedding", "embedding_readout")  # of embedding and inputs
_WIDTH = Range(1, MOST_CHANNELS, reason="published models have up to 512")


@dataclass(kw_only=True)
class FoundationSettings:
    """A trained model to start from (fine-tuning); its architecture replaces that of `model`."""

    checkpoint: str | None = None
    """Checkpoint, output folder of a training or an import, or the name of a foundation model, such
    as medium-mpa-0 (`mace-train import` lists them); null: random weights."""
    accept_licence: str | None = None
    """The licence of a foundation model that you accept, such as ASL (no commercial use)."""
    head: Any = None
    """Head to start from, if the model has several: one for all heads of the data, or one for each,
    such as {new: omat_pbe}; null: every head of the data begins as that of its name."""
    heads: str = "data"
    """data (the heads of the data alone), or all (those of the model too: the layers that heads
    share change under them, unless optimizer.freeze or a small learning rate keeps these)."""
    E0s: str = "data"
    """Energies of isolated atoms: data (those of the data, which fits a new level of theory),
    foundation (those of the model), or estimated (those of the model plus what its errors on up to
    10,000 training structures say by least squares)."""
    elements: str = "data"
    """data (the elements of the data alone), or all (those of the model too)."""
    lora_rank: int | None = bounded(None, _WIDTH)
    """Train products of two matrices of this rank, added to every linear layer, and nothing else
    (LoRA, arXiv 2106.09685); null trains the weights themselves."""
    lora_alpha: float = bounded(
        1.0, Range(0, 1e6, exclude_minimum=True, reason="weights are of the order of 1")
    )
    """The products are multiplied by lora_alpha / lora_rank."""

    def __post_init__(self) -> None:
        check_choice("foundation.E0s", self.E0s, ("data", "foundation", "estimated"))
        check_choice("foundation.elements", self.elements, ("data", "all"))
        check_choice("foundation.heads", self.heads, ("data", "all"))
        self.head_of(())
        check_licence_name("foundation.accept_licence", self.accept_licence)
        check_ranges(self, "foundation.")
        defaults = FoundationSettings.__dataclass_fields__
        given = [n for n, item in defaults.items() if getattr(self, n) != item.default]
        if self.checkpoint is None and given:
            names = ", ".join(f"foundation.{name}" for name in given)
            raise InputError(f"{names}: needs foundation.checkpoint, the model to start from")

    def head_of(self, names: Sequence[str]) -> dict[str, str | None]:
        """The head that each head of the data is to begin as; None where none is named."""
        if self.head is None or isinstance(self.head, str):
            return dict.fromkeys(names, self.head)
        if not isinstance(self.head, dict) or not all(
            isinstance(name, str) for name in self.head.values()
        ):
            raise InputError(
                f"foundation.head={self.head!r} must be a head of the model, or map heads of the "
                "data to such, as '{new: omat_pbe}'"
            )
        given = {str(name): head for name, head in self.head.items()}
        for name in given if names else ():
            check_head(f"foundation.head.{name}", name, names, "the data")
        return {name: given.get(name) for name in names}


@dataclass(kw_only=True)
class OptimizerSettings:
    """Optimizer and its parameter groups (weight decay as in mace-torch)."""

    optimizer: str = "adam"
    """adam (L2 in the gradient, as in mace-torch), adamw (decoupled), schedulefree (AdamW without
    a schedule, arXiv 2405.15682) or lbfgs (one step over all data per epoch)."""
    lr: float = bounded(0.01, LEARNING_RATE)
    """Learning rate."""
    weight_decay: float = bounded(5e-7, Range(0, 1000, reason="weights are of the order of 1"))
    """Weight decay of the mixing linears and the product weights; the rest has none."""
    beta: float = bounded(0.9, DECAY)
    """First-moment decay of Adam."""
    beta2: float = bounded(0.999, DECAY)
    """Second-moment decay of Adam."""
    amsgrad: bool = True
    """Use the AMSGrad variant."""
    lr_params_factors: Any = bounded(None, Range(0, 1e6, reason="0 keeps a group as it is"))
    """Learning rate relative to lr by part, such as {readouts: 2, interactions.0: 0.1}; of names
    within each other the longest counts. Parts are embedding, interactions, products, readouts,
    inputs (what charge, spin and other inputs go through), their layers and the weights in them."""
    freeze: Any = None
    """Parts of the model that are not trained, such as [embedding, interactions.0]."""
    lr_scaling: str = "none"
    """How lr follows the structures of a step over all ranks, n: none, linear (times
    n / lr_structures) or sqrt (the root of it)."""
    lr_structures: float = bounded(10.0, Range(0, 1e9, exclude_minimum=True, reason=COUNT.reason))
    """Structures per step for which lr was chosen; only lr_scaling uses it."""

    def __post_init__(self) -> None:
        optimizers = ("adam", "adamw", "schedulefree", "lbfgs")
        check_choice("optimizer.optimizer", self.optimizer, optimizers)
        check_choice("optimizer.lr_scaling", self.lr_scaling, ("none", "linear", "sqrt"))
        check_ranges(self, "optimizer.")
        self.factors()
        self.frozen()

    def factors(self) -> dict[str, float]:
        """Learning rate relative to lr of the parts that are named."""
        given = {} if self.lr_params_factors is None else self.lr_params_factors
        right = isinstance(given, dict) and all(
            str(name).split(".")[0] in (*_GROUPS, *_MODULES) and isinstance(value, (int, float))
            for name, value in given.items()
        )
        if not right:
            raise InputError(
                f"optimizer.lr_params_factors={given!r} must map {', '.join(_GROUPS)}, or layers "
                "and weights of these, to numbers, such as '{readouts: 2, interactions.0: 0.1}'"
            )
        return {str(name): float(value) for name, value in given.items()}

    def frozen(self) -> list[str]:
        """Names of the parts that are not trained."""
        given = [] if self.freeze is None else self.freeze
        if not isinstance(given, list) or not all(isinstance(name, str) for name in given):
            raise InputError(
                f"optimizer.freeze={given!r} must be a list of parts of the model, such as "
                "'[embedding, interactions.0]'"
            )
        return list(given)


@dataclass(kw_only=True)
class SchedulerSettings:
    """Learning-rate schedule."""

    scheduler: str = "plateau"
    """plateau (on the validation loss), exponential (per epoch), cosine (per step) or constant."""
    lr_factor: float = bounded(0.8, Range(0, 1, exclude_minimum=True, reason="it reduces the rate"))
    """plateau: factor at each reduction."""
    scheduler_patience: int = bounded(50, COUNT_OR_ZERO)
    """plateau: validations without improvement before a reduction."""
    lr_scheduler_gamma: float = bounded(
        0.9993, Range(0, 10, exclude_minimum=True, reason="above 1 the rate grows")
    )
    """exponential: factor per epoch."""
    warmup_epochs: float = bounded(0.0, COUNT_OR_ZERO)
    """Epochs (may be a fraction) of linear warm-up, with every schedule."""
    min_lr_factor: float = bounded(0.0, Range(0, 1, reason="a share of the first rate"))
    """cosine: final learning rate as a share of the first."""

    def __post_init__(self) -> None:
        valid = ("plateau", "exponential", "cosine", "constant")
        check_choice("scheduler.scheduler", self.scheduler, valid)
        check_ranges(self, "scheduler.")


@dataclass(kw_only=True)
class LossSettings:
    """The loss: errors of energy per atom, forces, stress and virials per atom."""

    loss: str = "weighted"
    """weighted (squared errors), huber, universal (huber, with forces above 100 eV/Å counting less)
    or l1l2 (absolute energy error, force error magnitude); all as in mace-torch."""
    huber_delta: float = bounded(
        0.01,
        Range(
            0, 1e6, exclude_minimum=True, reason="eV, eV/Å or eV/Å^3: no error of a label is larger"
        ),
    )
    """huber and universal: error above which the loss grows linearly."""
    energy_weight: float = bounded(1.0, LOSS_WEIGHT)
    """Weight of the squared error of the energy per atom, (eV/atom)^2."""
    forces_weight: float = bounded(100.0, LOSS_WEIGHT)
    """Weight of the mean squared error of the force components, (eV/Å)^2."""
    stress_weight: float = bounded(0.0, LOSS_WEIGHT)
    """Weight of the mean squared error of the stress components, (eV/Å^3)^2."""
    virials_weight: float = bounded(0.0, LOSS_WEIGHT)
    """Weight of the mean squared error of the virial components per atom, (eV/atom)^2."""
    config_type_weights: Any = bounded(None, LOSS_WEIGHT)
    """Weight of a structure by its config_type, beside its own config_weight, such as
    {bulk: 2, surface: 0.5}; 1 for a config_type that is not named."""
    head_weights: Any = bounded(None, LOSS_WEIGHT)
    """Weight of a structure by its head, beside the others, such as {replay: 0.1}; 1 for a head
    that is not named."""

    def __post_init__(self) -> None:
        names = ("energy_weight", "forces_weight", "stress_weight", "virials_weight")
        if "dipole" in self.loss:
            raise InputError(
                f"loss.loss={self.loss}: no model here predicts dipoles, MACE and ScaleShiftMACE "
                "give energies and their derivatives; train AtomicDipolesMACE with mace-torch, "
                "or choose weighted, huber, universal or l1l2"
            )
        check_choice("loss.loss", self.loss, ("weighted", "huber", "universal", "l1l2"))
        check_ranges(self, "loss.")
        for name in ("stress_weight", "virials_weight") if self.loss == "l1l2" else ():
            if getattr(self, name) > 0:
                raise InputError(f"loss.{name}: the loss l1l2 has no such term; set it to 0")
        if self.loss in ("huber", "universal") and self.virials_weight > 0:
            raise InputError(
                f"loss.virials_weight: the loss {self.loss} has no such term; use stress_weight"
            )
        self.weights_by_type()
        self.weights_by_head()
        if not any(getattr(self, name) > 0 for name in names):
            raise InputError(f"loss: nothing to train on, every one of {', '.join(names)} is 0")

    def weights_by_type(self) -> dict[str, float]:
        """Weights of the config_types that are named."""
        return _weights("config_type", self.config_type_weights, "{bulk: 2, surface: 0.5}")

    def weights_by_head(self) -> dict[str, float]:
        """Weights of the heads that are named."""
        return _weights("head", self.head_weights, "{replay: 0.1}")


def _weights(what: str, given: Any, example: str) -> dict[str, float]:
    given = {} if given is None else given
    numbers = isinstance(given, dict) and all(
        isinstance(weight, (int, float)) for weight in given.values()
    )
    if not numbers:
        raise InputError(
            f"loss.{what}_weights={given!r} must map {what}s to numbers, such as '{example}'"
        )
    return {str(name): float(weight) for name, weight in given.items()}


@dataclass(kw_only=True)
class StageTwoSettings:
    """Second stage of a training with weights of its own (mace-torch's stage two, or SWA).

    The first stage's best weights are kept beside those of the second; where patience runs out in
    the first, the second begins.
    """

    enabled: bool = False
    """Train a second stage."""
    start: int | None = bounded(None, COUNT)
    """Epoch, from 0, with which it starts; null: after three quarters of the epochs."""
    lr: float = bounded(1e-3, LEARNING_RATE)
    """Constant learning rate."""
    energy_weight: float = bounded(1000.0, LOSS_WEIGHT)
    """As in loss."""
    forces_weight: float = bounded(100.0, LOSS_WEIGHT)
    """As in loss."""
    stress_weight: float = bounded(10.0, LOSS_WEIGHT)
    """As in loss; 0 where the first stage has no term in the stress."""
    virials_weight: float = bounded(10.0, LOSS_WEIGHT)
    """As in loss; 0 where the first stage has no term in the virials."""

    def __post_init__(self) -> None:
        check_ranges(self, "stage_two.")


@dataclass(kw_only=True)
class FinishSettings:
    """Last epochs with another optimizer, which starts from the best weights so far."""

    optimizer: str = "none"
    """none, schedulefree or lbfgs (see optimizer.optimizer)."""
    epochs: int = bounded(10, COUNT)
    """Epochs of it, the last ones of max_num_epochs."""
    lr: float = bounded(1e-3, LEARNING_RATE)
    """Constant learning rate; lbfgs searches along the line from there, and wants about 1."""

    def __post_init__(self) -> None:
        check_choice("finish.optimizer", self.optimizer, ("none", "schedulefree", "lbfgs"))
        check_ranges(self, "finish.")
