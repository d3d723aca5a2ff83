"""What each of many ranks does; imports little, for every rank pays for it."""

from typing import Any

from mace_train.distributed.world import World
from mace_train.settings import TrainSettings
from mace_train.train import checkpoint
from mace_train.train.setup import set_up
from mace_train.train.train import fit
from mace_train.train.validation import validate


def training(world: World, settings: TrainSettings) -> tuple[dict[str, Any], float, str]:
    """(progress, validation loss of the last weights, their checksum) of one rank."""
    run = set_up(settings, world)
    fit(run)
    weights = dict(run.model.named_parameters())
    progress = {k: v for k, v in vars(run.progress).items() if "seconds" not in k}
    return progress, validate(run)[0], checkpoint.checksum(weights, "")
