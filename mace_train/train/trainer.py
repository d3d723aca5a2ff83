"""The training loop: epochs of balanced steps, validation, checkpoints, early stopping.

Every decision (best so far, stop, go on) is taken from numbers that are equal on all ranks or by
rank 0 and broadcast, so ranks never part ways.
"""

import logging
import math
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from mace_train.balance.plan import Plan
from mace_train.data.graph import Graph
from mace_train.data.loading import batches
from mace_train.errors import InputError
from mace_train.settings import TrainSettings
from mace_train.train.log import EpochProgress, MetricsLog, Stopwatch, epoch_line, rmse_text
from mace_train.train.loss import LossSums, label_counts, loss_sums
from mace_train.train.run import Run
from mace_train.train.setup import set_up, start_output
from mace_train.train.state import save_best, save_last
from mace_train.train.validation import validate
from mace_train.world import open_world

LOGGER = logging.getLogger("mace_train")


def train(settings: TrainSettings) -> dict[str, Any]:
    """Train as ``settings`` say; the last record of metrics (on rank 0, {} elsewhere)."""
    with open_world(settings.cluster) as world:
        run = set_up(settings, world)
        return fit(run)


def fit(run: Run) -> dict[str, Any]:
    """Train until the last epoch or until early stopping."""
    settings, progress = run.settings, run.progress
    log = _start_log(run)
    record: dict[str, Any] = {}
    watch, first_epoch = Stopwatch(), progress.epoch + 1
    exit_code = 1
    try:
        for epoch in range(first_epoch, settings.max_num_epochs):
            if run.world.broadcast(run.stopped):
                break
            record = _one_epoch(run, epoch)
            done = epoch + 1 - first_epoch
            remaining = settings.max_num_epochs - epoch - 1
            record["time_to_go_s"] = watch.seconds() / done * remaining
            if log is not None:
                save_last(run)
                log.write(record)
                LOGGER.info("%s", epoch_line(record, settings.max_num_epochs))
            run.world.barrier()  # no rank runs ahead of a checkpoint it may have to go back to
        _announce_end(run, record)
        exit_code = 0
    finally:
        if log is not None:
            log.close(exit_code)
    return record


def _start_log(run: Run) -> MetricsLog | None:
    """Announce the run and open its metrics, on rank 0."""
    if not run.world.is_main:
        return None
    lock = start_output(run)
    log = MetricsLog(run.settings.logger, run.output, run.settings.name, asdict(run.settings))
    log.on_close(lock.close)
    log.keep_until(run.progress.epoch, run.progress.step)
    n_weights = sum(parameter.numel() for parameter in run.model.parameters())
    LOGGER.info(
        "%s: %d weights (%s), %d training structures, %d ranks on %s; packer %s, at most %d atoms "
        "and %d edges per rank and step",
        run.model.settings.model,
        n_weights,
        run.settings.default_dtype,
        len(run.train.shards),
        run.world.size,
        run.world.device.type,
        run.settings.batching.packer,
        run.sampler.capacity.max_atoms,
        run.sampler.capacity.max_edges,
    )
    return log


def _announce_end(run: Run, record: dict[str, Any]) -> None:
    """Say why the run ends here and what it left behind."""
    progress = run.progress
    if run.stopped:
        LOGGER.info(
            "stopped early after epoch %d: %d validations without improvement; raise patience to "
            "go on",
            progress.epoch + 1,
            progress.bad_validations,
        )
    elif not record:
        LOGGER.info("nothing to do: %d epochs are done; raise max_num_epochs", progress.epoch + 1)
    loss = progress.best_loss
    LOGGER.info(
        "best epoch %d%s: %s",
        progress.best_epoch + 1,
        "" if loss is None else f" (validation loss {loss:.4g})",
        run.best_checkpoint,
    )


def _one_epoch(run: Run, epoch: int) -> dict[str, Any]:
    """Train one epoch, validate, and note the outcome in the run's progress."""
    settings, progress = run.settings, run.progress
    plan = run.sampler.plan(epoch)
    watch = Stopwatch()
    sums, norm = train_epoch(run, epoch, plan)
    seconds = watch.seconds()
    progress.epoch = epoch
    record: dict[str, Any] = {
        "epoch": epoch,
        "step": progress.step,
        "lr": run.schedule.lr(epoch, plan.n_steps - 1, plan.n_steps),
        "train_loss": float(sums.loss(settings.loss)),
        "valid_loss": None,
        "grad_norm": norm,
        "atoms_per_s": run.train.costs.n_atoms.sum() / seconds,
        "structures_per_s": len(run.train.shards) / seconds,
        "imbalance": plan.straggler,
        "epoch_s": seconds,
    }
    last_epoch = epoch + 1 == settings.max_num_epochs
    if run.valid is None:
        progress.best_epoch = epoch
        if run.world.is_main:
            save_best(run)
    elif (epoch + 1) % settings.eval_interval == 0 or last_epoch:
        record |= _validate(run, epoch)
    return record


def _validate(run: Run, epoch: int) -> dict[str, Any]:
    """Validation errors; keeps the best weights and decides on early stopping."""
    assert run.valid is not None
    progress = run.progress
    loss, errors = validate(run)
    if not math.isfinite(loss):
        raise InputError(
            f"the validation loss after epoch {epoch + 1} is {loss}; lower optimizer.lr, and "
            f"check the labels of the validation data; {_what_is_left(run)}"
        )
    run.schedule.validated(loss)
    if progress.best_loss is None or loss < progress.best_loss:
        progress.best_loss, progress.best_epoch, progress.bad_validations = loss, epoch, 0
        if run.world.is_main:
            save_best(run)
    else:
        progress.bad_validations += 1
    run.last_errors = rmse_text(errors[0])
    numbers = {key: value for key, value in errors[0].items() if "_rmse_" in key or "_mae_" in key}
    return {"valid_loss": loss} | {f"valid_{key}": value for key, value in numbers.items()}


def train_epoch(run: Run, epoch: int, plan: Plan) -> tuple[LossSums, float]:
    """(sums of the loss over all ranks, last gradient norm) of one pass over the data."""
    world = run.world
    bins = list(plan.of_rank(world.rank))
    graphs = batches(
        run.train.shards,
        bins,
        atomic_numbers=run.model.data.atomic_numbers,
        dtype=run.dtype,
        num_workers=run.settings.cluster.num_workers,
        pin_memory=world.device.type == "cuda",
    )
    if epoch + 1 < run.settings.max_num_epochs:
        run.sampler.prepare(epoch + 1)  # after the loader's processes were forked
    bar = EpochProgress(run.settings.logger.progress and world.is_main)
    total = LossSums(*torch.zeros(2, 4, dtype=torch.float64, device=world.device))
    norm, n_atoms, watch = math.nan, 0, Stopwatch()
    latest = "" if run.last_errors is None else f"  RMSE {run.last_errors}"
    for step, graph in enumerate(bar.over(graphs, len(bins), f"epoch {epoch + 1}")):
        lr = run.schedule.lr(epoch, step, plan.n_steps)
        sums, norm = train_step(run, graph.to(world.device), lr)
        total += sums
        n_atoms += graph.n_atoms * world.size
        if bar.enabled:
            bar.note(
                f"loss {float(total.loss(run.settings.loss)):.3g}  "
                f"{n_atoms / watch.seconds():.0f} atoms/s  imbalance {plan.straggler:.2f}{latest}"
            )
    reduced = world.sum(torch.stack((total.numerators, total.counts)))
    return LossSums(reduced[0], reduced[1]), norm


def train_step(run: Run, graph: Graph, lr: float) -> tuple[LossSums, float]:
    """One optimizer step on all ranks; (this rank's loss sums in float64, gradient norm)."""
    settings, world = run.settings, run.world
    counts = world.sum(label_counts(graph))
    prediction = run.force_field(graph)
    weight = run.train.weight_of[graph.ids.cpu()].to(graph.weight)
    sums = loss_sums(prediction, graph, structure_weight=weight)
    loss = sums.loss(settings.loss, counts.to(run.dtype))
    run.optimizer.zero_grad(set_to_none=True)
    # DDP takes the mean over ranks; we need the sum. Gradients of the edge vectors are not needed
    torch.autograd.backward(loss * world.size, inputs=list(run.model.parameters()))
    limit = settings.clip_grad or math.inf
    norm = float(nn.utils.clip_grad_norm_(run.model.parameters(), limit))
    if not math.isfinite(norm):
        _stop_non_finite(run, graph, loss)
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    run.optimizer.step()
    if run.average is not None:
        run.average.update(run.model)
    run.progress.step += 1
    numerators, seen = (part.detach().to(torch.float64) for part in (sums.numerators, sums.counts))
    return LossSums(numerators, seen), norm


def _stop_non_finite(run: Run, graph: Graph, loss: Tensor) -> None:
    """Stop all ranks together (the norm is equal on all) and name the structures at fault."""
    local = [] if torch.isfinite(loss) else graph.ids.tolist()
    ids = [i for others in run.world.gather_all(local) for i in others]
    named = ", ".join(run.train.shards.sample(i).structure.source for i in ids[:5])
    more = f" and {len(ids) - 5} more" if len(ids) > 5 else ""
    where = f"; its bins with a non-finite loss hold {named}{more}" if ids else ""
    raise InputError(
        f"step {run.progress.step} (epoch {run.progress.epoch + 2}): the gradient is not "
        f"finite{where}; lower optimizer.lr or clip_grad, and check the labels of these "
        f"structures; {_what_is_left(run)}"
    )


def _what_is_left(run: Run) -> str:
    """Where a run that had to stop can be continued from."""
    if run.progress.epoch < 0 or not run.last_checkpoint.exists():
        return "no checkpoint was written"
    return f"{run.last_checkpoint} is from the last good epoch, restart_latest=true continues it"
