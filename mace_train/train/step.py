"""One step of the optimizer on all ranks, and what went wrong where it cannot be made.

A rank's bins (one, or several where gradients are accumulated) give gradients that are summed over
bins and ranks. One small sum over ranks gives the denominators of the loss before the first forward
pass ends. It also carries stop and save flags, so that all ranks react in the same step. Whatever
goes wrong on one rank (out of memory, a loss that is not finite) makes the norm of the summed
gradient not finite on every rank, so all of them give the step up. With a captured update
(cuda_graphs.py) a step is started before the one before it is finished.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from functools import cache

import torch
from torch import Tensor

from mace_train.data.graph import Graph
from mace_train.data.loading.packed import on_device
from mace_train.distributed.world import World
from mace_train.model.derivatives import predict
from mace_train.settings import LossSettings
from mace_train.train.loss import TERMS, LossSums, label_counts, loss_sums, needs_stress
from mace_train.train.lr_schedule import scaled
from mace_train.train.run import Run
from mace_train.train.timing import StepTimer
from mace_train.train.updater import Updater


@dataclass(frozen=True)
class StepFailure:
    """What went wrong on one rank: ``reason`` is memory or loss."""

    reason: str
    ids: list[int]
    message: str = ""


@dataclass(frozen=True)
class StepCounts:
    """What a step holds over all ranks, known before its loss."""

    labels: Tensor  # [4] float64, denominators of the terms of the loss
    n_structures: int
    flags: list[float]  # how many ranks have set each flag


@dataclass
class StepInFlight:
    """A step that has been launched but not synchronized."""

    ids: Tensor  # [n] of this rank's structures
    counts: StepCounts
    sums: LossSums  # of this rank
    lr: float
    norm: Callable[[], float]  # waits for it; not finite if the step changed nothing
    own_square: Tensor | None = None  # see gradients.py
    failure: str | None = None  # on this rank


@dataclass
class StepResult:
    """What one step gave; ``failures`` of all ranks where it had to be given up."""

    started: StepInFlight
    norm: float
    noise: tuple[float, float] | None = None  # see gradients.py
    failures: list[StepFailure] | None = None


def train_step(
    run: Run,
    graphs: list[Graph],
    lr: float,
    timer: StepTimer | None = None,
    flags: tuple[float, ...] = (),
) -> StepResult:
    """One whole step, for programs that make steps of their own (scripts/measure_costs.py).

    Takes ``graphs`` of this rank, on the host, and the learning rate before any scaling. Does not
    count the step in ``run.progress``; a step that failed is not handled (failed_steps.py).
    """
    timer = timer or StepTimer()
    return finish_step(run, start_step(run, graphs, lr, timer, flags), timer)


def start_step(
    run: Run,
    graphs: list[Graph],
    lr: float,
    timer: StepTimer,
    flags: tuple[float, ...] = (),
    n_ahead: int = 0,
) -> StepInFlight:
    """Launch a step; ``n_ahead`` steps are in flight, above 0 only with ``updater.starts_ahead``.

    Takes ``graphs`` of this rank, on the host, the learning rate before any scaling, and flags (0.0
    or 1.0) that are summed over ranks.
    """
    number, updater = run.progress.step + n_ahead, run.updater
    run.world.report_progress(number, "compute")
    seed_step(run, number)
    counts = count_over_ranks(graphs, run.stage.loss, flags, run.world, timer)
    sums, failure = accumulate(run, graphs, counts, timer)
    ids = torch.cat([graph.ids for graph in graphs])
    lr = scaled(lr, run.settings.optimizer, counts().n_structures)
    own_square = updater.gradients.own_square() if run.settings.logger.noise_scale else None
    return StepInFlight(
        ids=ids[ids >= 0],  # without padding
        counts=counts(),
        sums=sums,
        lr=lr,
        norm=updater.update(lr, timer),
        own_square=own_square,
        failure=failure,
    )


def finish_step(run: Run, started: StepInFlight, timer: StepTimer) -> StepResult:
    """Wait for a step, and for what went wrong on any rank; steps finish in their order."""
    with timer("compute"):
        result = StepResult(started, started.norm())
    if not math.isfinite(result.norm):
        result.failures = _failures(run.updater, run.world, started)
        return result
    run.updater.count_update()
    if started.own_square is not None:
        result.noise = (float(started.own_square), result.norm**2)
    return result


def seed_step(run: Run, number: int) -> None:
    """Random numbers of a step and rank follow from (seed, number of the step, rank) alone."""
    torch.manual_seed(hash((run.settings.seed, number, run.world.rank)) & (2**63 - 1))


def count_over_ranks(
    graphs: Sequence[Graph],
    loss: LossSettings,
    flags: tuple[float, ...],
    world: World,
    timer: StepTimer,
) -> Callable[[], StepCounts]:
    """Begin to sum the counts of this rank's graphs and its flags; what waits for the sums."""
    zero = torch.zeros(len(TERMS), dtype=torch.float64)
    labels = sum((label_counts(graph, loss.loss) for graph in graphs), zero)
    n_structures = sum(int((graph.ids >= 0).sum()) for graph in graphs)
    more = torch.tensor([n_structures, *flags], dtype=torch.float64)
    over_ranks = world.all_reduce_async(torch.cat((labels, more)))

    @cache  # waits once
    def counts() -> StepCounts:
        with timer("communication"):
            labels, n_structures, flags = over_ranks().tensor_split((len(TERMS), len(TERMS) + 1))
        return StepCounts(labels, int(n_structures), flags.tolist())

    return counts


def accumulate(
    run: Run, graphs: list[Graph], counts: Callable[[], StepCounts], timer: StepTimer
) -> tuple[LossSums, str | None]:
    """Sum the gradients of all bins over all ranks; (own loss sums, what failed on this rank)."""
    updater, world, loss = run.updater, run.world, run.stage.loss
    updater.zero_gradients()
    failure, sums = None, LossSums.zero(world.device)
    for i, graph in enumerate(graphs):
        if i == len(graphs) - 1 and updater.graphed_gradient is None:
            updater.gradients.send_when_done()
        weight = run.train.weight_of[graph.ids]
        try:
            sums = sums + backward(updater, graph, weight, loss, lambda: counts().labels, timer)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            failure = str(error).splitlines()[0]
            break
    counts()
    with timer("communication"):
        world.report_progress(run.progress.step, "waiting for the gradients of the others")
        updater.gradients.finish(failed=failure is not None)
    return sums, failure


def backward(
    updater: Updater,
    graph: Graph,
    structure_weight: Tensor,
    loss: LossSettings,
    wait_for_label_counts: Callable[[], Tensor],
    timer: StepTimer,
) -> LossSums:
    """Add the gradient of one bin to this rank's; the bin's loss sums.

    Takes a graph and weights of its structures [n_graphs], both on the host, and what waits for the
    denominators [4] of the loss, which the forward pass does not need.
    """
    if updater.graphed_gradient is not None:
        counts = wait_for_label_counts()
        with timer("compute"):
            return updater.graphed_gradient.add(graph, structure_weight, counts, loss)
    with timer("compute"):
        graph = on_device(graph, updater.gradients.flat.device)
        prediction = predict(updater.model, graph, stress=needs_stress(loss), create_graph=True)
        weight = structure_weight.to(graph.weight)
        sums = loss_sums(prediction, graph, loss, structure_weight=weight)
    counts = wait_for_label_counts()
    with timer("compute"):
        value = sums.loss(loss, counts.to(sums.numerators))
        # gradients of the edge vectors are not needed
        torch.autograd.backward(value, inputs=updater.parameters)
    return sums.detached()


def out_of_memory(error: RuntimeError) -> bool:
    """True if the device, or the host, had no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _failures(updater: Updater, world: World, started: StepInFlight) -> list[StepFailure]:
    """What went wrong on every rank; called by all of them."""
    own = None
    if started.failure is not None:
        updater.free_memory()
        own = StepFailure("memory", started.ids.tolist(), started.failure)
    elif not torch.isfinite(started.sums.numerators).all():
        own = StepFailure("loss", started.ids.tolist())
    if world.device.type == "cuda":
        torch.cuda.empty_cache()
    of_ranks = world.gather_all(None if own is None else astuple(own))
    failures = [StepFailure(*one) for one in of_ranks if one is not None]
    updater.resume_updates()
    return failures
