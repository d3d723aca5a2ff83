"""Learning-rate schedules as functions of time, and the scaling with the structures of a step."""

import math
from dataclasses import replace

from mace_train.settings import OptimizerSettings, SchedulerSettings, TrainSettings


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

    def lr(self, begin: float, end: float) -> float:
        """The learning rate of a step that lasts from ``begin`` to ``end``, in epochs from 0."""
        settings = self.settings
        rate, warmup = self.base_lr, settings.warmup_epochs
        if warmup > 0:
            rate *= min(1.0, end / warmup)
        if settings.scheduler == "exponential":
            return rate * settings.lr_scheduler_gamma ** math.floor(begin)
        if settings.scheduler == "cosine":
            span = max(self.max_num_epochs - warmup, 1e-9)
            share = min(max((begin - warmup) / span, 0.0), 1.0)
            low = settings.min_lr_factor
            return rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * share)))
        return rate * self.factor

    def validated(self, loss: float) -> None:
        """Count a validation loss; only the plateau schedule reacts."""
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
        """Forget the best loss, where the next ones cannot be compared with it."""
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


def schedule_of(settings: TrainSettings) -> Schedule:
    """The schedule of a training; a schedule-free optimizer has warm-up alone."""
    scheduler = settings.scheduler
    if settings.optimizer.optimizer == "schedulefree":
        scheduler = replace(scheduler, scheduler="constant")
    return Schedule(scheduler, settings.optimizer.lr, settings.max_num_epochs)


def scaled(lr: float, settings: OptimizerSettings, n_structures: float) -> float:
    """``lr`` for a step of ``n_structures`` over all ranks (linear: arXiv 1706.02677)."""
    share = n_structures / settings.lr_structures
    return lr * {"none": 1.0, "linear": share, "sqrt": math.sqrt(share)}[settings.lr_scaling]
