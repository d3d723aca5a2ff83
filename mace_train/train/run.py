"""The parts of a training run, held together: what setup builds, state saves and the loop uses."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mace_train.balance.costs import Costs
from mace_train.balance.epoch_plan import EpochPlan
from mace_train.balance.sampler import BinSampler
from mace_train.data.shards.shard_set import ShardSet
from mace_train.data.statistics import Statistics
from mace_train.distributed.world import World
from mace_train.model.mace import MACE
from mace_train.settings import TrainSettings
from mace_train.train.checkpoint_manager import CheckpointManager
from mace_train.train.cuda_graphs import GraphedGradient, GraphedUpdate
from mace_train.train.ema import EMA
from mace_train.train.gradients import Gradients
from mace_train.train.loss import LossSums
from mace_train.train.lr_schedule import Schedule
from mace_train.train.optim import evaluation_weights, is_schedule_free, make_optimizer
from mace_train.train.stages import Stage


@dataclass
class Split:
    """One part of the data with what training looks up by structure id."""

    shards: ShardSet
    config_types: list[str]
    config_type_of: Tensor  # [n] int64, index into config_types
    weight_of: Tensor  # [n] float64, weight by config_type and head
    head_of: NDArray[np.int64]  # [n] index into the model's heads

    @cached_property
    def costs(self) -> Costs:
        """Atoms and edges of every structure."""
        return Costs(self.shards.n_atoms.astype(np.int64), self.shards.n_edges.astype(np.int64))


@dataclass
class Progress:
    """How far a run is: all that is not a tensor and must survive a restart."""

    epoch: int = -1  # last completed epoch, from 0
    step: int = 0  # optimizer steps so far
    part_step: int = 0  # bins of every rank done in the running part of the next epoch
    stage: int = 0  # index of the stage
    best_epoch: int = -1
    best_step: int = -1
    best_loss: float | None = None  # validation loss of the best checkpoint
    bad_validations: int = 0  # validations since the best one
    seconds: float = 0.0  # spent training so far, in all sessions
    epoch_seconds: float = 0.0  # of these in the running epoch
    n_skipped: int = 0  # steps whose gradient was not finite
    n_skipped_in_row: int = 0
    n_out_of_memory: int = 0  # times that the capacity was lowered
    n_starts: int = 0  # sessions so far


@dataclass
class EpochTotals:
    """What one rank has done in the running epoch."""

    sums: LossSums
    seen: Tensor  # [2] int64: structures, and the sum of their fingerprints modulo 2^64

    @staticmethod
    def zero(device: torch.device) -> "EpochTotals":
        """Nothing yet."""
        return EpochTotals(LossSums.zero(device), torch.zeros(2, dtype=torch.int64))

    def add(self, sums: LossSums, ids: Tensor) -> None:
        """Take in a step that counts, with this rank's ids in it."""
        self.sums = self.sums + sums
        self.seen = self.seen + torch.stack((torch.tensor(len(ids)), fingerprints(ids).sum()))


def fingerprints(ids: Tensor) -> Tensor:
    """[n] int64, well mixed (the finaliser of splitmix64), so that sums tell sets apart."""
    x = (ids.cpu() + 1) * -7046029254386353131  # 0x9E3779B97F4A7C15 as int64; products wrap
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


@dataclass
class Run:
    """The parts of a training run on one rank."""

    settings: TrainSettings
    world: World
    train: Split
    valid: Split | None
    model: MACE
    gradients: Gradients
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    ema: EMA | None
    sampler: BinSampler
    stages: list[Stage]
    checkpoint_manager: CheckpointManager
    progress: Progress
    output: Path
    statistics: Statistics
    epoch_totals: EpochTotals
    graphed_gradient: GraphedGradient | None = None  # with cluster.cuda_graphs
    graphed_update: GraphedUpdate | None = None
    epoch_plan: EpochPlan | None = None  # of the epoch that a resumed run stands in
    last_errors: str | None = None  # RMSEs of the last validation, for people to watch

    @property
    def dtype(self) -> torch.dtype:
        """Type of weights and features."""
        return getattr(torch, self.settings.default_dtype)

    @property
    def stage(self) -> Stage:
        """The stage that the run is in."""
        return self.stages[self.progress.stage]

    @property
    def stopped(self) -> bool:
        """Early stopping has ended the run."""
        last = self.progress.stage == len(self.stages) - 1
        return last and self.progress.bad_validations >= self.settings.patience

    @property
    def starts_ahead(self) -> bool:
        """Steps are decided by the device, so the next one may start before they are done."""
        return self.graphed_update is not None and self.stage.optimizer in ("adam", "adamw")

    @cached_property
    def trained_parameters(self) -> list[nn.Parameter]:
        """The weights that are not frozen."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def lr(self, begin: float, end: float) -> float:
        """The learning rate of a step that lasts from ``begin`` to ``end``, in epochs from 0."""
        return self.schedule.lr(begin, end) if self.stage.lr is None else self.stage.lr

    def new_optimizer(self, kind: str) -> torch.optim.Optimizer:
        """An optimizer of that kind over the weights that train."""
        on_device = self.settings.cluster.cuda_graphs
        optimizer = make_optimizer(self.model, self.settings.optimizer, kind, on_device=on_device)
        if is_schedule_free(optimizer):
            optimizer.train()  # type: ignore[attr-defined]
        return optimizer

    def weights_to_use(self) -> dict[str, Tensor] | None:
        """The weights to validate and to keep, where they are not the model's own."""
        if self.ema is not None and self.stage.optimizer in ("adam", "adamw"):
            return self.ema.shadow
        return evaluation_weights(self.optimizer, self.model)
