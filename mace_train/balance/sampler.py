"""The bins of one rank over all epochs, and where in them a training stands.

The position (epoch, step) counts steps that were *trained*, moved by ``advance``; iterating ahead,
as loader processes do, does not move it. Plans are functions of (seed, epoch), so a restart at
(epoch, step) continues after the steps that were done: nothing is replayed, and no random state is
saved. With the balanced packer a window is packed when its first step comes, so the first batch
of a run or of a restart does not wait for the plan of the whole epoch.

With sampling ratios (head_sampling.py) an epoch holds samples: a structure several times, or not at
all. Plans are of samples then, and bins of their structures.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from mace_train.balance.algorithm1 import deterministic_bins
from mace_train.balance.balanced import Packing, usual_steps
from mace_train.balance.bins import Samples, StructureIds
from mace_train.balance.cost_model import with_cost_model
from mace_train.balance.costs import Capacity, Costs, EpochSize, capacity_of
from mace_train.balance.head_sampling import RATIOS, Heads, head_sampling
from mace_train.balance.plan import Plan, make_plan
from mace_train.errors import InputError
from mace_train.settings import BatchingSettings


class BinSampler:
    """Iterates the bins of one rank: of the current epoch, from the current step on.

    ``heads`` are needed for ``settings.head_sampling_ratios`` alone. Raises ``InputError`` at once
    when a structure does not fit into the capacity, or for ratios that are not possible.

    >>> import numpy as np
    >>> costs = Costs(np.array([3, 9, 5, 6, 4, 9]), np.array([6, 72, 20, 30, 12, 72]))
    >>> settings = BatchingSettings(max_atoms=18)
    >>> ranks = [BinSampler(costs, settings, world_size=2, rank=r, seed=1) for r in range(2)]
    >>> [len(list(sampler.bins(epoch=0))) for sampler in ranks]  # as many steps on every rank
    [1, 1]
    >>> sorted(int(i) for sampler in ranks for ids in sampler for i in ids)  # every structure once
    [0, 1, 2, 3, 4, 5]
    """

    def __init__(
        self,
        costs: Costs,
        settings: BatchingSettings,
        world_size: int,
        rank: int,
        seed: int,
        heads: Heads | None = None,
    ) -> None:
        if not 0 <= rank < world_size:
            raise InputError(f"rank={rank} of world_size={world_size}: must be in [0, world_size)")
        self.costs = with_cost_model(costs, settings)
        self.sampling = head_sampling(settings, heads, seed)
        self.packer = settings.packer
        self.world_size = world_size
        self.rank = rank
        self.seed = seed
        self.epoch = 0
        self.step = 0
        self._background = ThreadPoolExecutor(1, thread_name_prefix="mace-train-plan")
        self.use(capacity_of(self.costs, settings, self.mean_epoch))

    def use(self, capacity: Capacity) -> None:
        """Plan with a capacity from now on."""
        self.capacity = capacity
        # of the last two epochs that were asked for
        self._plans: dict[int, Future[tuple[Samples, Plan]]] = {}
        self.usual_steps: int | None = None
        """Steps of an epoch before those for structures that found no room; balanced only, and not
        with sampling ratios, where epochs differ."""
        if self.packer == "balanced" and self.sampling is None:
            self.usual_steps = usual_steps(self.costs, capacity, self.world_size)

    def prepare(self, epoch: int) -> None:
        """Start to make the plan of an epoch in the background."""
        if epoch in self._plans:
            return
        for old in sorted(self._plans, key=lambda known: abs(known - epoch))[1:]:
            del self._plans[old]
        self._plans[epoch] = self._background.submit(self._sampled_plan, epoch, self.capacity)

    def _sampled_plan(self, epoch: int, capacity: Capacity) -> tuple[Samples, Plan]:
        samples = self.samples(epoch)
        costs = samples.costs(self.costs)
        plan = make_plan(costs, self.packer, capacity, self.world_size, self.seed, epoch)
        return samples, plan

    @property
    def mean_epoch(self) -> EpochSize:
        """What an epoch holds, on average."""
        if self.sampling is None:
            return EpochSize.of(self.costs)
        return self.sampling.mean_epoch(self.costs)

    def samples(self, epoch: int) -> Samples:
        """The structures of an epoch."""
        return Samples(len(self.costs)) if self.sampling is None else self.sampling.samples(epoch)

    def epoch_plan(self, epoch: int) -> tuple[Samples, Plan]:
        """The structures of an epoch and their plan; waits for it if it is being made."""
        self.prepare(epoch)
        return self._plans[epoch].result()

    def plan(self, epoch: int) -> Plan:
        """The plan of the samples of an epoch; waits for it if it is being made."""
        return self.epoch_plan(epoch)[1]

    def plan_rest(self, epoch: int, ids: StructureIds) -> Plan:
        """A plan of the structures ``ids`` alone, whose index i means structure ids[i]."""
        costs = self.costs.subset(ids)
        return make_plan(costs, self.packer, self.capacity, self.world_size, self.seed, epoch)

    def bins(self, epoch: int, start_step: int = 0) -> Iterator[StructureIds]:
        """This rank's bins of an epoch, ids [n] each, from a step on."""
        known = self._plans.get(epoch)
        if self.usual_steps is not None and (known is None or not known.done()):
            packing = Packing(
                self.costs, self.capacity, self.world_size, self.seed, epoch, self.usual_steps
            )
            if packing.layout.n_windows > 1:
                yield from packing.of_rank(self.rank, start_step)
                start_step = max(start_step, self.usual_steps)
        samples, plan = self.epoch_plan(epoch)
        yield from map(samples.structures, plan.of_rank(self.rank, start_step))

    def __iter__(self) -> Iterator[StructureIds]:
        """What remains of the current epoch; does not move the position."""
        return self.bins(self.epoch, self.step)

    def __len__(self) -> int:
        """Steps that remain of the current epoch."""
        return self.plan(self.epoch).n_steps - self.step

    def advance(self) -> None:
        """Count one step as trained; after the last of an epoch the next epoch begins."""
        self.step += 1
        may_be_last = self.usual_steps is None or self.step >= self.usual_steps
        if may_be_last and self.step == self.plan(self.epoch).n_steps:
            self.epoch, self.step = self.epoch + 1, 0

    def origin(self) -> dict[str, Any]:
        """What the plan of an epoch depends on."""
        return {
            **({} if self.sampling is None else self.sampling.origin),
            "seed": self.seed,
            "world_size": self.world_size,
            "packer": self.packer,
            "max_atoms": self.capacity.max_atoms,
            "max_edges": self.capacity.max_edges,
            "max_memory": self.capacity.max_memory,
            "batch_size": self.capacity.batch_size,
            "dataset": self.costs.fingerprint,
        }

    def state_dict(self) -> dict[str, Any]:
        """The position and what the plan depends on; numbers and strings only."""
        return {"epoch": self.epoch, "step": self.step, **self.origin()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved position.

        Within an epoch everything the plan depends on must be as it was, or structures would be
        trained twice or not at all: ``InputError`` names what differs. Between epochs (step 0)
        the number of ranks, the packer, the capacity, the seed and the data may change.
        """
        step = int(state["step"])
        changed = [
            f"{name}={now} (the checkpoint has {before})"
            for name, before, now in differences(state, self.origin())
        ]
        if step and changed:
            raise InputError(
                f"cannot continue at step {step} of epoch {state['epoch']}: the order of structures"
                f" depends on {', '.join(changed)}; start with the same values, or from a "
                "checkpoint that was written at the end of an epoch"
            )
        self.epoch, self.step = int(state["epoch"]), step


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(name, before, now) of what plans depend on and has changed; earlier files have no ratios."""
    before, now = {RATIOS: None, **before}, {RATIOS: None, **now}
    return [(name, before[name], now[name]) for name in now if before[name] != now[name]]


def evaluation_plan(costs: Costs, capacity: Capacity, world_size: int) -> Plan:
    """A plan for evaluation: every structure exactly once, nothing random, equal step counts.

    Bins are balanced as in algorithm1; where there are fewer structures than bins, ranks get
    empty ones. Raises ``InputError`` when a structure is above the capacity.
    """
    return Plan(costs, world_size, deterministic_bins(costs, capacity, world_size))
