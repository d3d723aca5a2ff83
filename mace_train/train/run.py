"""The parts of a training run, held together: what setup builds, state saves and the loop uses."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mace_train.balance.bins import StructureIds
from mace_train.balance.epoch_plan import EpochPlan
from mace_train.balance.head_sampling import Heads
from mace_train.balance.sampler import BinSampler
from mace_train.checks import is_number
from mace_train.data.graph import Graph
from mace_train.data.loading.loader import batches
from mace_train.data.loading.padding import Shape
from mace_train.data.statistics import Statistics
from mace_train.distributed.world import World
from mace_train.errors import system_error, with_exit_code
from mace_train.model.mace import MACE
from mace_train.settings import TrainSettings
from mace_train.train.checkpoint_manager import CheckpointManager
from mace_train.train.loss import LossSums
from mace_train.train.splits import Split
from mace_train.train.stages import Stage
from mace_train.train.updater import Updater

_FROM_MINUS_ONE = ("epoch", "best_epoch", "best_step")


@dataclass
class Progress:
    """How far a run is: all that is not a tensor and must survive a restart."""

    epoch: int = -1  # last completed epoch, from 0
    step: int = 0  # optimizer steps so far
    plan_step: int = 0  # bins of every rank done in the plan of the next epoch
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

    def to_header(self) -> dict[str, Any]:
        """The entries of a checkpoint's header, where ``plan_step`` has its first name."""
        entries = asdict(self)
        return {"part_step" if name == "plan_step" else name: entries[name] for name in entries}

    @classmethod
    def from_header(cls, entries: dict[str, Any]) -> "Progress":
        """What ``to_header`` gave; counters that an older file lacks are zero.

        Raises ``TypeError`` or ``ValueError`` for anything else.
        """
        if not {"epoch", "step"} <= entries.keys():
            raise ValueError("progress has no epoch or step")
        progress = cls(
            **{"plan_step" if name == "part_step" else name: entries[name] for name in entries}
        )
        for name, value in vars(progress).items():
            if name == "best_loss" and value is None:
                continue
            is_float = name in ("best_loss", "seconds", "epoch_seconds")
            if not is_number(value) or not (is_float or type(value) is int):
                raise TypeError(f"{name} is {value!r}")
            if not is_float and value < (-1 if name in _FROM_MINUS_ONE else 0):
                raise ValueError(f"{name} is {value}")
        return progress


def on_main(world: World, write: Callable[[], None]) -> None:
    """Rank 0 writes; an error of the disk, or another message, ends all ranks with the same."""
    message, code = "", 0
    if world.is_main:
        try:
            write()
        except Exception as error:
            explained = system_error(error)
            if explained is None:
                raise
            if world.size == 1:
                raise explained from None
            message, code = str(explained), explained.exit_code
    code = int(world.all_reduce_async(torch.tensor([code]))().item())
    if code:
        raise with_exit_code(world.broadcast(message), code)


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
        """Add a step, with its loss sums and the ids [n] of this rank's structures in it."""
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
    updater: Updater
    sampler: BinSampler
    stages: list[Stage]
    checkpoint_manager: CheckpointManager
    progress: Progress
    output: Path
    statistics: Statistics
    epoch_totals: EpochTotals
    epoch_plan: EpochPlan | None = None  # of the epoch that a resumed run is in
    last_errors: str | None = None  # RMSEs of the last validation, human-readable

    @property
    def dtype(self) -> torch.dtype:
        """Type of weights and features."""
        return getattr(torch, self.settings.default_dtype)

    def graphs(
        self,
        split: Split,
        bins: Sequence[StructureIds],
        *,
        shape: Shape | None = None,
        ahead: bool = True,
    ) -> Iterator[Graph]:
        """Bins of a split as the model takes them, on the host.

        ``ahead``: read by the processes of the settings, into pinned memory for a GPU.
        """
        return batches(
            split.shards,
            bins,
            atomic_numbers=self.model.data.atomic_numbers,
            dtype=self.dtype,
            heads=split.head_of,
            inputs=self.model.inputs,
            shape=shape,
            num_workers=self.settings.cluster.num_workers if ahead else 0,
            pin_memory=ahead and self.world.device.type == "cuda",
        )

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
    def heads(self) -> Heads:
        """The head of every training structure."""
        return Heads(tuple(self.statistics.heads), self.train.head_of)

    @property
    def valid_hash(self) -> str | None:
        """The hash of the validation data, None without."""
        return None if self.valid is None else self.valid.shards.dataset_hash

    def lr(self, begin: float, end: float) -> float:
        """The learning rate of a step that lasts from ``begin`` to ``end``, in epochs from 0."""
        if self.stage.lr is not None:
            return self.stage.lr
        return self.updater.schedule.lr(begin, end)
