"""One step of the optimizer on all ranks, and what happens when it cannot be made.

A rank's bins (one, or several where gradients are accumulated) give gradients that are summed over
bins and ranks. The denominators of the loss are known before the first forward pass ends: one small
sum over ranks, which also carries the wishes to stop or to write a checkpoint, so all ranks hear of
them in the same step. Whatever goes wrong on one rank (out of memory, a loss that is not finite)
makes the norm of the summed gradient not finite on every rank, and all of them take the same turn.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mace_train.data.graph import Graph
from mace_train.model.derivatives import predict
from mace_train.train.loss import TERMS, LossSums, label_counts, loss_sums, needs_stress
from mace_train.train.optim import set_lr
from mace_train.train.phases import Phases
from mace_train.train.run import Run
from mace_train.train.schedule import scaled


@dataclass(frozen=True)
class Trouble:
    """What went wrong on one rank: ``reason`` is memory or loss."""

    reason: str
    ids: list[int]
    message: str = ""


@dataclass
class Outcome:
    """What one step gave; ``trouble`` of all ranks where it had to be given up."""

    sums: LossSums
    norm: float
    n_structures: int  # over all ranks
    wishes: list[float]  # how many ranks want each of what the caller offered
    lr: float = math.nan
    noise: tuple[float, float] | None = None  # see noise.py
    trouble: list[Trouble] | None = None


def seed_step(run: Run) -> None:
    """Random numbers of this step and rank follow from (seed, step, rank) alone."""
    torch.manual_seed(hash((run.settings.seed, run.progress.step, run.world.rank)) & (2**63 - 1))


def train_step(
    run: Run,
    graphs: list[Graph],
    lr: float,
    phases: Phases | None = None,
    wishes: tuple[float, ...] = (),
) -> Outcome:
    """One step with ``graphs`` of this rank, on the host; ``lr`` is before any scaling."""
    phases = phases or Phases()
    run.world.signal_life(run.progress.step, "compute")
    seed_step(run)
    totals, failure, sums = accumulate(run, graphs, phases, wishes)
    n_structures = int(totals[len(sums.counts)])
    with phases("compute"):
        norm = run.gradients.norm()
    outcome = Outcome(sums, norm, n_structures, totals[len(sums.counts) + 1 :].tolist())
    if not math.isfinite(norm):
        run.gradients.begin()
        outcome.trouble = _trouble(run, graphs, sums, failure)
        return outcome
    outcome.lr = scaled(lr, run.settings.optimizer, n_structures)
    if run.settings.logger.noise_scale:
        outcome.noise = (run.gradients.own_square(), norm**2)
    with phases("optimizer"):
        run.gradients.clip(norm, run.settings.clip_grad)
        set_lr(run.optimizer, outcome.lr)
        run.optimizer.step()
        if run.average is not None:
            run.average.update(run.model)
    return outcome


def accumulate(
    run: Run, graphs: list[Graph], phases: Phases, wishes: tuple[float, ...] = ()
) -> tuple[Tensor, str | None, LossSums]:
    """Sum the gradients of all bins over all ranks; (totals, what failed here, own loss sums).

    totals = counts of labels [4], structures, wishes; each over all ranks.
    """
    loss = run.stage.loss
    counts = sum(
        (label_counts(graph, loss.loss) for graph in graphs), torch.zeros(4, dtype=torch.float64)
    )
    n_structures = sum(int((graph.ids >= 0).sum()) for graph in graphs)
    more = torch.tensor([n_structures, *wishes], dtype=torch.float64)
    waiting = run.world.sum_later(torch.cat((counts, more)))
    run.gradients.begin(own_norm=run.settings.logger.noise_scale)
    totals: Tensor | None = None

    def known() -> Tensor:
        nonlocal totals
        if totals is None:
            with phases("communication"):
                totals = waiting()
        return totals

    failure, sums = None, LossSums.zero(run.world.device)
    for i, graph in enumerate(graphs):
        if i == len(graphs) - 1 and run.captured is None:
            run.gradients.send_when_done()
        try:
            sums = sums + backward(run, graph, known, phases)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            failure = str(error).splitlines()[0]
            break
    known()
    with phases("communication"):
        run.world.signal_life(run.progress.step, "waiting for the gradients of the others")
        run.gradients.finish(failed=failure is not None)
    return known(), failure, sums


def backward(run: Run, graph: Graph, known: Callable[[], Tensor], phases: Phases) -> LossSums:
    """Add the gradient of one bin to this rank's; the bin's loss sums."""
    loss = run.stage.loss
    weight = run.train.weight_of[graph.ids]
    if run.captured is not None:
        counts = known()[: len(TERMS)]
        with phases("compute"):
            return run.captured.add(graph, weight, counts, loss)
    with phases("compute"):
        graph = graph.to(run.world.device)
        prediction = predict(run.model, graph, stress=needs_stress(loss), create_graph=True)
        weight = weight.to(graph.weight)
        sums = loss_sums(prediction, graph, loss, structure_weight=weight)
    counts = known()[: len(sums.counts)]
    with phases("compute"):
        value = sums.loss(loss, counts.to(sums.numerators))
        # gradients of the edge vectors are not needed
        torch.autograd.backward(value, inputs=run.trained_parameters)
    return sums.detached()


def out_of_memory(error: RuntimeError) -> bool:
    """True if the device, or the host, had no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _trouble(run: Run, graphs: list[Graph], sums: LossSums, failure: str | None) -> list[Trouble]:
    """What went wrong on every rank."""
    if failure is not None and run.captured is not None:
        run.captured.forget()
    if run.world.device.type == "cuda":
        torch.cuda.empty_cache()
    ids = [int(i) for graph in graphs for i in graph.ids if i >= 0]
    own = None
    if failure is not None:
        own = Trouble("memory", ids, failure)
    elif not torch.isfinite(sums.numerators).all():
        own = Trouble("loss", ids)
    return [trouble for trouble in run.world.gather_all(own) if trouble is not None]
