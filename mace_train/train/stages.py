"""The stages of a training: which loss, optimizer and learning rate every epoch has.

one      loss, optimizer and schedule of the settings
two      other weights in the loss and a constant learning rate, with the same optimizer and its
         state (mace-torch's stage two)
finish   the last epochs with another optimizer, from the best weights so far
"""

from dataclasses import dataclass, replace

from mace_train.errors import InputError
from mace_train.settings import LossSettings, StageTwoSettings, TrainSettings


@dataclass(frozen=True)
class Stage:
    """One stage."""

    name: str
    start: int  # its first epoch, from 0
    loss: LossSettings
    optimizer: str
    lr: float | None  # constant; None: the schedule's


def stages_of(settings: TrainSettings) -> list[Stage]:
    """The stages in their order; ``InputError`` where one would have no epoch."""
    n_epochs = settings.max_num_epochs
    optimizer = settings.optimizer.optimizer
    stages = [Stage("one", 0, settings.loss, optimizer, None)]
    if settings.stage_two.enabled:
        start = settings.stage_two.start
        start = max(1, n_epochs // 4 * 3) if start is None else start  # mace-torch's default
        loss = _loss_of_stage_two(settings.loss, settings.stage_two)
        stages.append(Stage("two", start, loss, optimizer, settings.stage_two.lr))
    if settings.finish.optimizer != "none":
        start = n_epochs - settings.finish.epochs
        last = stages[-1]
        stages.append(
            Stage("finish", start, last.loss, settings.finish.optimizer, settings.finish.lr)
        )
    ends = [stage.start for stage in stages[1:]] + [n_epochs]
    for stage, end in zip(stages, ends, strict=True):
        if stage.start >= end:
            raise InputError(
                f"stage {stage.name} would start with epoch {stage.start} and end before epoch "
                f"{end}, so it has no epoch; change max_num_epochs={n_epochs}, stage_two.start or "
                f"finish.epochs={settings.finish.epochs}"
            )
    return stages


def _loss_of_stage_two(loss: LossSettings, given: StageTwoSettings) -> LossSettings:
    """The loss with the weights of stage two, for the terms that it has."""
    names = ("energy_weight", "forces_weight", "stress_weight", "virials_weight")
    on = {
        name: getattr(given, name) for name in names if getattr(loss, name) > 0 or name in names[:2]
    }
    return replace(loss, **on)


def stage_of(stages: list[Stage], epoch: int) -> int:
    """The index of the stage that an epoch belongs to."""
    return max(i for i, stage in enumerate(stages) if stage.start <= epoch)
