"""One epoch of training: the steps of its plan, checkpoints between them, sums at the end."""

import math
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch

from mace_train.balance.bins import Samples
from mace_train.balance.epoch_plan import EpochPlan
from mace_train.data.graph import Graph
from mace_train.data.loading.padding import Shape
from mace_train.distributed.signals import Interruption
from mace_train.progress import ProgressBar
from mace_train.train.failed_steps import handle_failed_step
from mace_train.train.gradients import NoiseScale
from mace_train.train.loss import LossSums
from mace_train.train.run import EpochTotals, Run, fingerprints
from mace_train.train.state import save_state
from mace_train.train.step import StepInFlight, StepResult, finish_step, start_step
from mace_train.train.timing import StepTimer

GRAPHS_AT_A_TIME = 16  # padding costs nothing, and most epochs have the same shape then


@dataclass
class EpochLoop:
    """What one epoch needs beside the run."""

    run: Run
    interruption: Interruption
    timer: StepTimer = field(default_factory=StepTimer)
    noise: NoiseScale = field(default_factory=NoiseScale)
    norm: float = math.nan
    lr: float = math.nan
    samples: Samples = field(default_factory=lambda: Samples(0))  # of the epoch
    n_seen: int = 0  # samples that the epoch has trained on, over all sessions and ranks
    planned_straggler: float = math.nan  # straggler ratio of the plan
    interrupted: bool = False  # a checkpoint was written because a rank has its stop flag set

    def __post_init__(self) -> None:
        self._saved = self._clock = time.monotonic()

    def train(self) -> LossSums:
        """Train the rest of the epoch; the sums of its loss over all ranks."""
        run = self.run
        epoch = run.progress.epoch + 1
        epoch_plan = run.epoch_plan or EpochPlan.full(run.sampler, epoch)
        run.epoch_plan = None
        self.planned_straggler = epoch_plan.plan.straggler
        self.samples = epoch_plan.samples
        rest = self._train_plan(epoch_plan)
        while rest is not None:
            rest = self._train_plan(rest)
        self._tick()
        return self._sums()

    def _train_plan(self, epoch_plan: EpochPlan) -> EpochPlan | None:
        """Train to the end of the plan (None), or until the rest is replanned (returned)."""
        run = self.run
        accumulate = run.settings.batching.accumulate
        step = run.progress.plan_step
        steps = graphs_of_steps(run, epoch_plan, first_bin=step, accumulate=accumulate)
        in_flight: deque[tuple[StepInFlight, int]] = deque()  # with the bins done after them
        with ProgressBar(
            f"epoch {epoch_plan.epoch + 1}",
            -(-(epoch_plan.n_steps - step) // accumulate),
            enabled=run.settings.logger.progress and run.world.is_main,
        ) as bar:
            while graphs := self._next(steps):
                after = min(step + accumulate, epoch_plan.n_steps)
                lr = run.lr(epoch_plan.time(step), epoch_plan.time(after))
                flags = self._flags(len(in_flight))
                started = start_step(run, graphs, lr, self.timer, flags, len(in_flight))
                in_flight.append((started, after))
                may_wait = run.updater.starts_ahead and not any(started.counts.flags)
                while len(in_flight) > (1 if may_wait and after < epoch_plan.n_steps else 0):
                    rest = self._finish(epoch_plan, *in_flight.popleft())
                    if rest is not None:  # steps that started since have changed nothing
                        return rest
                    if bar.enabled:
                        bar.note(self._line())
                if after < epoch_plan.n_steps and self._save_if_flagged(started, epoch_plan):
                    return None
                step = after
                bar.advance()
        return None

    def _next(self, steps: Iterator[list[Graph]]) -> list[Graph] | None:
        """The graphs of the next step, None after the last; the time for them counts as data."""
        with self.timer("data"):
            return next(steps, None)

    def _finish(self, epoch_plan: EpochPlan, started: StepInFlight, after: int) -> EpochPlan | None:
        """Finish a step; returns the plan of the rest of the epoch if that is planned again."""
        run = self.run
        result = finish_step(run, started, self.timer)
        if result.failures is not None:
            rest = handle_failed_step(run, epoch_plan, run.progress.plan_step, result)
            if rest is not None:
                run.progress.plan_step = 0
                return rest
        self._note(result, after)
        return None

    def _flags(self, n_ahead: int) -> tuple[float, float]:
        """(stop, write a checkpoint), as this rank sees it."""
        settings, step = self.run.settings.checkpoints, self.run.progress.step + n_ahead + 1
        due = settings.every_steps is not None and step % settings.every_steps == 0
        if settings.every_minutes is not None and self.run.world.is_main:
            due = due or time.monotonic() - self._saved > 60 * settings.every_minutes
        return float(self.interruption.signal is not None), float(due)

    def _note(self, result: StepResult, after: int) -> None:
        """Count a step that has changed the weights, or was skipped."""
        run, started = self.run, result.started
        run.progress.step += 1
        run.progress.plan_step = after
        self.timer.step_done()
        ids = started.ids
        if result.failures is not None:
            run.epoch_totals.add(LossSums.zero(run.world.device), ids)
            return
        run.progress.n_skipped_in_row = 0
        run.epoch_totals.add(started.sums, ids)
        self.norm, self.lr = result.norm, started.lr
        if result.noise is not None:
            self.noise.add(result.noise[0], len(ids), result.noise[1], started.counts.n_structures)

    def _save_if_flagged(self, started: StepInFlight, epoch_plan: EpochPlan) -> bool:
        """Write a checkpoint if a rank's flag says so; True if the training is to stop here."""
        stop, save = (flag > 0 for flag in started.counts.flags)
        if stop or save:
            self._tick()
            save_state(self.run, epoch_plan)
            self._saved = time.monotonic()
        self.interrupted = stop
        return stop

    def _tick(self) -> None:
        """Add the time since the last call to that of the run."""
        now = time.monotonic()
        self.run.progress.seconds += now - self._clock
        self.run.progress.epoch_seconds += now - self._clock
        self._clock = now

    def _sums(self) -> LossSums:
        """Loss sums of the epoch over all ranks; checks that it held every sample once.

        Without sampling ratios that is every structure once.
        """
        run, totals = self.run, self.run.epoch_totals
        sums = run.world.sum(torch.stack((totals.sums.numerators, totals.sums.counts)))
        if not self.interrupted:
            seen = run.world.all_reduce_async(totals.seen)()
            ids = torch.from_numpy(self.samples.structures(np.arange(len(self.samples))))
            self.n_seen = int(seen[0])
            expected = [len(ids), int(fingerprints(ids).sum())]
            assert seen.tolist() == expected, "a structure was lost or trained too often"
            run.epoch_totals, run.progress.plan_step = EpochTotals.zero(run.world.device), 0
        return LossSums(sums[0], sums[1])

    @property
    def _measures_noise(self) -> bool:
        return self.run.settings.logger.noise_scale

    def _line(self) -> str:
        run = self.run
        loss = float(run.epoch_totals.sums.loss(run.stage.loss))
        latest = "" if run.last_errors is None else f"  RMSE {run.last_errors}"
        return f"loss {loss:.3g}  imbalance {self.planned_straggler:.2f}{latest}"

    def record(self) -> dict[str, Any]:
        """The entries of metrics.jsonl that the steps of the epoch give; called by all ranks."""
        return {
            "lr": self.lr,
            "grad_norm": self.norm,
            "imbalance": self.planned_straggler,
            **self.timer.summary(self.run.world),
            "noise_scale": self.noise.result(self.run.world) if self._measures_noise else None,
        }


def graphs_of_steps(
    run: Run, epoch_plan: EpochPlan, *, first_bin: int, accumulate: int
) -> Iterator[list[Graph]]:
    """This rank's graphs, on the host, of every step: ``accumulate`` bins from ``first_bin`` on."""
    bins = list(epoch_plan.bins(run.world.rank, first_bin))
    shape = shape_of_bins(run, epoch_plan) if run.settings.batching.static_shapes else None
    graphs = run.graphs(run.train, bins, shape=shape)
    if epoch_plan.epoch + 1 < run.settings.max_num_epochs:
        run.sampler.prepare(epoch_plan.epoch + 1)  # after the loader's processes were forked
    while graphs_of_step := list(islice(graphs, accumulate)):
        yield graphs_of_step


def shape_of_bins(run: Run, epoch_plan: EpochPlan) -> Shape:
    """The shape that bins are padded to: the capacity, or the largest bin where that is more."""
    capacity, plan = run.sampler.capacity, epoch_plan.plan
    n_edges = max(capacity.max_edges, int(plan.n_edges.max()))
    n_structures = int(plan.n_structures.max()) + 1
    return Shape(
        n_graphs=GRAPHS_AT_A_TIME * -(-n_structures // GRAPHS_AT_A_TIME),
        n_atoms=max(capacity.max_atoms, int(plan.n_atoms.max())) + 1,
        n_edges=n_edges + n_edges % 2,
        r_max=run.model.data.r_max,
    )
