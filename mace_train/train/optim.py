"""Optimizer with mace-torch's parameter groups, learning-rate schedules and weight averaging."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mace_train.settings import OptimizerSettings, SchedulerSettings

_DECAYED_IN_INTERACTIONS = ("linear.weight", "skip_tp_full.weight")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """mace-torch's five groups: decay on the mixing linears and the products, none elsewhere."""
    groups: dict[str, list[nn.Parameter]] = {
        "embedding": [],
        "interactions_decay": [],
        "interactions_no_decay": [],
        "products": [],
        "readouts": [],
    }
    for name, parameter in model.named_parameters():
        groups[_group_of(name)].append(parameter)
    decayed = ("interactions_decay", "products")
    return [
        {"name": name, "params": members, "weight_decay": weight_decay if name in decayed else 0.0}
        for name, members in groups.items()
    ]


def _group_of(name: str) -> str:
    part = name.removeprefix("module.").split(".", 1)[0]
    if part == "interactions":
        decayed = any(suffix in name for suffix in _DECAYED_IN_INTERACTIONS)
        return "interactions_decay" if decayed else "interactions_no_decay"
    if part in ("products", "readouts"):
        return part
    if part == "node_embedding":
        return "embedding"
    raise AssertionError(f"parameter {name} belongs to no group")


def make_optimizer(model: nn.Module, settings: OptimizerSettings) -> torch.optim.Optimizer:
    """Adam or AdamW over the parameter groups."""
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    return kinds[settings.optimizer](
        parameter_groups(model, settings.weight_decay),
        lr=settings.lr,
        betas=(settings.beta, settings.beta2),
        amsgrad=settings.amsgrad,
    )


class Schedule:
    """Learning rate = base * warm-up * schedule, as functions of the time t in epochs.

    plateau     factor^reductions, one more after ``scheduler_patience`` validations without a
                relative improvement of 1e-4 (torch's and mace-torch's ReduceLROnPlateau)
    exponential gamma^floor(t)
    cosine      from 1 to min_lr_factor between the end of the warm-up and the last epoch
    """

    _THRESHOLD = 1e-4

    def __init__(self, settings: SchedulerSettings, base_lr: float, max_num_epochs: int) -> None:
        self.settings = settings
        self.base_lr = base_lr
        self.max_num_epochs = max_num_epochs
        self.factor = 1.0
        self.best = math.inf
        self.bad_validations = 0

    def lr(self, epoch: int, step: int, n_steps: int) -> float:
        """The learning rate of step ``step`` of the ``n_steps`` of ``epoch``, from 0."""
        settings = self.settings
        time, warmup = epoch + step / n_steps, settings.warmup_epochs
        rate = self.base_lr
        if warmup > 0:
            rate *= min(1.0, (time + 1 / n_steps) / warmup)
        if settings.scheduler == "exponential":
            return rate * settings.lr_scheduler_gamma**epoch
        if settings.scheduler == "cosine":
            span = max(self.max_num_epochs - warmup, 1e-9)
            share = min(max((time - warmup) / span, 0.0), 1.0)
            low = settings.min_lr_factor
            return rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * share)))
        return rate * self.factor

    def validated(self, loss: float) -> None:
        """Take note of a validation loss; only the plateau schedule reacts."""
        if self.settings.scheduler != "plateau":
            return
        if loss < self.best * (1 - self._THRESHOLD):
            self.best, self.bad_validations = loss, 0
            return
        self.bad_validations += 1
        if self.bad_validations > self.settings.scheduler_patience:
            self.factor *= self.settings.lr_factor
            self.bad_validations = 0

    def forget(self) -> None:
        """Start anew with the comparison of losses, which now mean something else."""
        self.best, self.bad_validations = math.inf, 0

    def state_dict(self) -> dict[str, float]:
        """What a resumed run needs."""
        best = self.best if math.isfinite(self.best) else -1.0
        return {"factor": self.factor, "best": best, "bad_validations": self.bad_validations}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continue where ``state`` was taken."""
        self.factor = state["factor"]
        self.best = state["best"] if state["best"] >= 0 else math.inf
        self.bad_validations = int(state["bad_validations"])


class Average:
    """Exponential moving average of the weights, with a short memory in the first steps.

    shadow += (1 - d) (weight - shadow) with d = min(decay, (1 + n) / (10 + n)) after n updates.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.n_updates = 0
        self.shadow = {name: value.detach().clone() for name, value in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after an optimizer step."""
        self.n_updates += 1
        decay = min(self.decay, (1 + self.n_updates) / (10 + self.n_updates))
        weights = [value.detach() for value in model.parameters()]
        torch._foreach_lerp_(list(self.shadow.values()), weights, 1.0 - decay)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Within the block ``model`` holds the average; its own weights come back afterwards."""
        own = {name: value.detach().clone() for name, value in model.named_parameters()}
        _fill(model, self.shadow)
        try:
            yield
        finally:
            _fill(model, own)


@torch.no_grad()
def _fill(model: nn.Module, values: dict[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        parameter.copy_(values[name])
