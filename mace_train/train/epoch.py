"""One epoch of training: parts of a plan, steps, checkpoints on the way, sums at the end."""

import math
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch

from mace_train.balance.epoch_plan import Part
from mace_train.data.graph import Graph
from mace_train.data.loading.loader import batches
from mace_train.data.loading.padding import Shape
from mace_train.progress import ProgressBar
from mace_train.train.failed_steps import handle_trouble
from mace_train.train.loss import LossSums
from mace_train.train.noise_scale import NoiseScale
from mace_train.train.run import Run, Tally, fingerprints
from mace_train.train.signals import Interruption
from mace_train.train.state import save_state
from mace_train.train.step import Outcome, Started, finish_step, start_step
from mace_train.train.timing import Phases

GRAPHS_AT_A_TIME = 16  # empty structures cost nothing, and most epochs have the same shape then


@dataclass
class EpochLoop:
    """What one epoch needs beside the run."""

    run: Run
    interruption: Interruption
    phases: Phases = field(default_factory=Phases)
    noise: NoiseScale = field(default_factory=NoiseScale)
    norm: float = math.nan
    lr: float = math.nan
    n_seen: int = 0  # structures of the epoch that steps have taken, over all sessions and ranks
    predicted: float = math.nan  # straggler ratio of the plan
    interrupted: bool = False  # a checkpoint was written because a rank was told to stop

    def __post_init__(self) -> None:
        self._saved = self._clock = time.monotonic()

    def train(self) -> LossSums:
        """Train what is left of the epoch; the sums of its loss over all ranks."""
        run = self.run
        epoch = run.progress.epoch + 1
        part: Part | None = run.part or Part.whole(run.sampler, epoch)
        run.part = None
        self.predicted = part.plan.straggler if part is not None else math.nan
        while part is not None:
            part = self._train_part(part)
        self._tick()
        return self._sums()

    def _train_part(self, part: Part) -> Part | None:
        """Train until the part is done (None), or until the rest is planned anew."""
        run = self.run
        m = run.settings.batching.accumulate
        step = run.progress.part_step
        bar = ProgressBar(
            f"epoch {part.epoch + 1}",
            -(-(part.n_steps - step) // m),
            enabled=run.settings.logger.progress and run.world.is_main,
        )
        steps = groups(run, part, step, m)
        ahead: deque[tuple[Started, int]] = deque()  # with the bins done after them
        for graphs in bar.over(self.phases.waiting(steps)):
            after = min(step + m, part.n_steps)
            lr = run.lr(part.time(step), part.time(after))
            wishes = self._wishes(len(ahead))
            started = start_step(run, graphs, lr, self.phases, wishes, len(ahead))
            ahead.append((started, after))
            wait_for_it = after == part.n_steps or any(started.wishes) or not run.starts_ahead
            while len(ahead) > (0 if wait_for_it else 1):
                rest = self._finish(part, *ahead.popleft())
                if rest is not None:  # steps that started since have changed nothing
                    return rest
                if bar.enabled:
                    bar.note(self._line())
            if after < part.n_steps and self._save_if_wished(started, part):
                return None
            step = after
        return None

    def _finish(self, part: Part, started: Started, after: int) -> Part | None:
        """See a step to its end; what is left of the epoch if that is planned anew."""
        run = self.run
        outcome = finish_step(run, started, self.phases)
        if outcome.trouble is not None:
            rest = handle_trouble(run, part, run.progress.part_step, outcome)
            if rest is not None:
                run.progress.part_step = 0
                return rest
        self._note(outcome, after)
        return None

    def _wishes(self, n_ahead: int) -> tuple[float, float]:
        """(stop, write a checkpoint), as this rank sees it."""
        settings, step = self.run.settings.checkpoints, self.run.progress.step + n_ahead + 1
        due = settings.every_steps is not None and step % settings.every_steps == 0
        if settings.every_minutes is not None and self.run.world.is_main:
            due = due or time.monotonic() - self._saved > 60 * settings.every_minutes
        return float(self.interruption.signal is not None), float(due)

    def _note(self, outcome: Outcome, after: int) -> None:
        """Count a step that was made, or skipped."""
        run, started = self.run, outcome.started
        run.progress.step += 1
        run.progress.part_step = after
        self.phases.step_done()
        ids = started.ids
        if outcome.trouble is not None:
            run.tally.add(LossSums.zero(run.world.device), ids)
            return
        run.progress.n_skipped_in_row = 0
        run.tally.add(started.sums, ids)
        self.norm, self.lr = outcome.norm, started.lr
        if outcome.noise is not None:
            self.noise.add(outcome.noise[0], len(ids), outcome.noise[1], started.n_structures)

    def _save_if_wished(self, started: Started, part: Part) -> bool:
        """Write a checkpoint if a rank wants one; True if the training is to stop here."""
        stop, save = (wish > 0 for wish in started.wishes)
        if stop or save:
            self._tick()
            save_state(self.run, part)
            self._saved = time.monotonic()
        self.interrupted = stop
        return stop

    def _tick(self) -> None:
        """Add the time since the last call to the run's."""
        now = time.monotonic()
        self.run.progress.seconds += now - self._clock
        self.run.progress.epoch_seconds += now - self._clock
        self._clock = now

    def _sums(self) -> LossSums:
        """Loss sums of the epoch over all ranks; checks that it held every structure once."""
        run, tally = self.run, self.run.tally
        sums = run.world.sum(torch.stack((tally.sums.numerators, tally.sums.counts)))
        if not self.interrupted:
            seen = run.world.sum_later(tally.seen)()
            n = len(run.sampler.costs)
            self.n_seen = int(seen[0])
            expected = [n, int(fingerprints(torch.arange(n)).sum())]
            assert seen.tolist() == expected, "a structure was lost or trained twice"
            run.tally, run.progress.part_step = Tally.zero(run.world.device), 0
        return LossSums(sums[0], sums[1])

    @property
    def _measures_noise(self) -> bool:
        return self.run.settings.logger.noise_scale

    def _line(self) -> str:
        run = self.run
        loss = float(run.tally.sums.loss(run.stage.loss))
        latest = "" if run.last_errors is None else f"  RMSE {run.last_errors}"
        return f"loss {loss:.3g}  imbalance {self.predicted:.2f}{latest}"

    def record(self) -> dict[str, Any]:
        """What the epoch's record says about its course; called by all ranks."""
        return {
            "lr": self.lr,
            "grad_norm": self.norm,
            "imbalance": self.predicted,
            **self.phases.summary(self.run.world),
            "noise_scale": self.noise.result(self.run.world) if self._measures_noise else None,
        }


def groups(run: Run, part: Part, first: int, m: int) -> Iterator[list[Graph]]:
    """This rank's graphs of every optimizer step from the bin ``first`` on, on the host."""
    bins = list(part.bins(run.world.rank, first))
    graphs = batches(
        run.train.shards,
        bins,
        atomic_numbers=run.model.data.atomic_numbers,
        dtype=run.dtype,
        heads=run.train.head_of,
        shape=shape_of_bins(run, part) if run.settings.batching.static_shapes else None,
        num_workers=run.settings.cluster.num_workers,
        pin_memory=run.world.device.type == "cuda",
    )
    if part.epoch + 1 < run.settings.max_num_epochs:
        run.sampler.prepare(part.epoch + 1)  # after the loader's processes were forked
    while group := list(islice(graphs, m)):
        yield group


def shape_of_bins(run: Run, part: Part) -> Shape:
    """Room for every bin: the capacity, or what a bin of the part takes where that is more."""
    capacity, plan = run.sampler.capacity, part.plan
    n_edges = max(capacity.max_edges, int(plan.n_edges.max()))
    n_structures = int(plan.n_structures.max()) + 1
    return Shape(
        n_graphs=GRAPHS_AT_A_TIME * -(-n_structures // GRAPHS_AT_A_TIME),
        n_atoms=max(capacity.max_atoms, int(plan.n_atoms.max())) + 1,
        n_edges=n_edges + n_edges % 2,
        r_max=run.model.data.r_max,
    )
