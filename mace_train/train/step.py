"""One step of the optimizer on all ranks, and what happens when it cannot be made.

A rank's bins (one, or several where gradients are accumulated) give gradients that are summed over
bins and ranks. The denominators of the loss are known before the first forward pass ends: one small
sum over ranks, which also carries the flags to stop or to write a checkpoint, so all ranks hear of
them in the same step. Whatever goes wrong on one rank (out of memory, a loss that is not finite)
makes the norm of the summed gradient not finite on every rank, and all of them take the same turn.
With a captured update (cuda_graphs.py) a step is started before the one before it is finished.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mace_train.data.graph import Graph
from mace_train.data.loading.packed import on_device
from mace_train.model.derivatives import predict
from mace_train.train.cuda_graphs import item_later
from mace_train.train.loss import TERMS, LossSums, label_counts, loss_sums, needs_stress
from mace_train.train.lr_schedule import scaled
from mace_train.train.optim import set_lr
from mace_train.train.run import Run
from mace_train.train.timing import StepTimer


@dataclass(frozen=True)
class StepFailure:
    """What went wrong on one rank: ``reason`` is memory or loss."""

    reason: str
    ids: list[int]
    message: str = ""


@dataclass
class StepInFlight:
    """A step on its way: a GPU may still be at it."""

    ids: Tensor  # this rank's structures
    n_structures: int  # over all ranks
    flags: list[float]  # how many ranks want each of what the caller offered
    sums: LossSums
    lr: float
    norm: Callable[[], float]  # waits for it; not finite if the step changed nothing
    own_square: Tensor | None = None  # see noise_scale.py
    failure: str | None = None  # on this rank


@dataclass
class StepResult:
    """What one step gave; ``failures`` of all ranks where it had to be given up."""

    started: StepInFlight
    norm: float
    noise: tuple[float, float] | None = None  # see noise_scale.py
    failures: list[StepFailure] | None = None


def train_step(
    run: Run,
    graphs: list[Graph],
    lr: float,
    timer: StepTimer | None = None,
    flags: tuple[float, ...] = (),
) -> StepResult:
    """One step with ``graphs`` of this rank, on the host; ``lr`` is before any scaling."""
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
    """Begin a step while ``n_ahead`` others are on their way, only with ``run.starts_ahead``."""
    number = run.progress.step + n_ahead
    run.world.report_progress(number, "compute")
    seed_step(run, number)
    totals, failure, sums = accumulate(run, graphs, timer, flags)
    n_structures = int(totals[len(TERMS)])
    ids = torch.cat([graph.ids for graph in graphs])
    started = StepInFlight(
        ids=ids[ids >= 0],  # without what was filled up
        n_structures=n_structures,
        flags=totals[len(TERMS) + 1 :].tolist(),
        sums=sums,
        lr=scaled(lr, run.settings.optimizer, n_structures),
        norm=lambda: math.nan,
        failure=failure,
    )
    if run.settings.logger.noise_scale:
        started.own_square = run.gradients.own_square()
    set_lr(run.optimizer, started.lr)
    update = _update_on_device if run.starts_ahead else _update
    started.norm = update(run, timer)
    return started


def finish_step(run: Run, started: StepInFlight, timer: StepTimer) -> StepResult:
    """Wait for a step, and for what went wrong on any rank; steps finish in their order."""
    with timer("compute"):
        result = StepResult(started, started.norm())
    if not math.isfinite(result.norm):
        result.failures = _failures(run, started)
        return result
    if run.starts_ahead and run.ema is not None:
        run.ema.n_updates += 1
    if started.own_square is not None:
        result.noise = (float(started.own_square), result.norm**2)
    return result


def _update(run: Run, timer: StepTimer) -> Callable[[], float]:
    """Let the optimizer go on if the gradient is finite; its norm."""
    with timer("compute"):
        norm = run.gradients.norm()
    if math.isfinite(norm):
        with timer("optimizer"):
            run.gradients.clip(norm, run.settings.clip_grad)
            run.optimizer.step()
            if run.ema is not None:
                run.ema.update(run.model)
    else:
        run.gradients.begin()
    return lambda: norm


def _update_on_device(run: Run, timer: StepTimer) -> Callable[[], float]:
    """The same, decided by the device; what waits for the norm."""
    assert run.graphed_update is not None
    with timer("optimizer"):
        return item_later(run.graphed_update.step(run.optimizer))


def seed_step(run: Run, number: int) -> None:
    """Random numbers of a step and rank follow from (seed, number of the step, rank) alone."""
    torch.manual_seed(hash((run.settings.seed, number, run.world.rank)) & (2**63 - 1))


def accumulate(
    run: Run, graphs: list[Graph], timer: StepTimer, flags: tuple[float, ...] = ()
) -> tuple[Tensor, str | None, LossSums]:
    """Sum the gradients of all bins over all ranks; (totals, what failed here, own loss sums).

    totals = counts of labels [4], structures, flags; each over all ranks.
    """
    loss = run.stage.loss
    counts = sum(
        (label_counts(graph, loss.loss) for graph in graphs), torch.zeros(4, dtype=torch.float64)
    )
    n_structures = sum(int((graph.ids >= 0).sum()) for graph in graphs)
    more = torch.tensor([n_structures, *flags], dtype=torch.float64)
    waiting = run.world.all_reduce_async(torch.cat((counts, more)))
    run.gradients.begin(own_norm=run.settings.logger.noise_scale)
    totals: Tensor | None = None

    def known() -> Tensor:
        nonlocal totals
        if totals is None:
            with timer("communication"):
                totals = waiting()
        return totals

    failure, sums = None, LossSums.zero(run.world.device)
    for i, graph in enumerate(graphs):
        if i == len(graphs) - 1 and run.graphed_gradient is None:
            run.gradients.send_when_done()
        try:
            sums = sums + backward(run, graph, known, timer)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            failure = str(error).splitlines()[0]
            break
    known()
    with timer("communication"):
        run.world.report_progress(run.progress.step, "waiting for the gradients of the others")
        run.gradients.finish(failed=failure is not None)
    return known(), failure, sums


def backward(run: Run, graph: Graph, known: Callable[[], Tensor], timer: StepTimer) -> LossSums:
    """Add the gradient of one bin to this rank's; the bin's loss sums."""
    loss = run.stage.loss
    weight = run.train.weight_of[graph.ids]
    if run.graphed_gradient is not None:
        counts = known()[: len(TERMS)]
        with timer("compute"):
            return run.graphed_gradient.add(graph, weight, counts, loss)
    with timer("compute"):
        graph = on_device(graph, run.world.device)
        prediction = predict(run.model, graph, stress=needs_stress(loss), create_graph=True)
        weight = weight.to(graph.weight)
        sums = loss_sums(prediction, graph, loss, structure_weight=weight)
    counts = known()[: len(sums.counts)]
    with timer("compute"):
        value = sums.loss(loss, counts.to(sums.numerators))
        # gradients of the edge vectors are not needed
        torch.autograd.backward(value, inputs=run.trained_parameters)
    return sums.detached()


def out_of_memory(error: RuntimeError) -> bool:
    """True if the device, or the host, had no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _failures(run: Run, started: StepInFlight) -> list[StepFailure]:
    """What went wrong on every rank."""
    if started.failure is not None and run.graphed_gradient is not None:
        run.graphed_gradient.forget()
    if run.world.device.type == "cuda":
        torch.cuda.empty_cache()
    own = None
    if started.failure is not None:
        own = StepFailure("memory", started.ids.tolist(), started.failure)
    elif not torch.isfinite(started.sums.numerators).all():
        own = StepFailure("loss", started.ids.tolist())
    failures = [one for one in run.world.gather_all(own) if one is not None]
    if run.graphed_update is not None:
        run.graphed_update.go_on()
    return failures
