"""The parts of a training run, held together: what setup builds, state saves and the loop uses."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mace_train.balance.costs import Costs
from mace_train.balance.sampler import BinSampler
from mace_train.data.graph import Graph
from mace_train.data.shards import ShardSet
from mace_train.data.statistics import Statistics
from mace_train.model.derivatives import Prediction, predict
from mace_train.model.mace import MACE
from mace_train.settings import TrainSettings
from mace_train.train.optim import Average, Schedule
from mace_train.world import World


@dataclass
class Split:
    """One part of the data with what training looks up by structure id."""

    shards: ShardSet
    config_types: list[str]
    config_type_of: Tensor  # [n] int64, index into config_types
    weight_of: Tensor  # [n] float64, weight by config_type

    @cached_property
    def costs(self) -> Costs:
        """Atoms and edges of every structure."""
        return Costs(self.shards.n_atoms.astype(np.int64), self.shards.n_edges.astype(np.int64))


@dataclass
class Progress:
    """How far a run is: all that is not a tensor and must survive a restart."""

    epoch: int = -1  # last completed epoch, from 0
    step: int = 0  # optimizer steps so far
    best_epoch: int = -1
    best_loss: float | None = None  # validation loss of the best checkpoint
    bad_validations: int = 0  # validations since the best one


class ForceField(nn.Module):
    """The model with its derivatives as one module, which is what DDP wraps."""

    def __init__(self, model: MACE, stress: bool) -> None:
        super().__init__()
        self.model = model
        self.stress = stress

    def forward(self, graph: Graph) -> Prediction:
        """Energy, forces and, where the loss needs it, stress; differentiable in the weights."""
        return predict(self.model, graph, stress=self.stress, create_graph=True)


@dataclass
class Run:
    """The parts of a training run on one rank."""

    settings: TrainSettings
    world: World
    train: Split
    valid: Split | None
    model: MACE
    force_field: nn.Module  # ForceField, wrapped by DDP where there are several ranks
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    average: Average | None
    sampler: BinSampler
    progress: Progress
    output: Path
    statistics: Statistics
    last_errors: str | None = None  # RMSEs of the last validation, for people to watch

    @property
    def dtype(self) -> torch.dtype:
        """Type of weights and features."""
        return getattr(torch, self.settings.default_dtype)

    @property
    def last_checkpoint(self) -> Path:
        """What a resumed run starts from."""
        return self.output / "checkpoints" / "last.safetensors"

    @property
    def best_checkpoint(self) -> Path:
        """The weights to use."""
        return self.output / "checkpoints" / "best.safetensors"

    @property
    def stopped(self) -> bool:
        """Early stopping has ended the run."""
        return self.progress.bad_validations >= self.settings.patience
