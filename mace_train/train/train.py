"""The training loop: epochs of balanced steps, stages, validation, checkpoints, early stopping.

Every decision (best so far, stop, continue) is made from numbers that are equal on all ranks, or by
rank 0 and broadcast, so ranks cannot diverge.
"""

import logging
import math
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from mace_train import interrupts
from mace_train.distributed.signals import Interruption, exit_code
from mace_train.distributed.staging import staged
from mace_train.distributed.world import open_world
from mace_train.errors import InputError
from mace_train.progress import Stopwatch
from mace_train.settings import TrainSettings
from mace_train.train import checkpoint
from mace_train.train.ema import fill
from mace_train.train.epoch import EpochLoop
from mace_train.train.failed_steps import where_to_continue
from mace_train.train.lbfgs import LbfgsLoop
from mace_train.train.log import MetricsLog, epoch_line, rmse_text
from mace_train.train.run import Run, on_main
from mace_train.train.setup import set_up, start_output
from mace_train.train.stages import stage_of
from mace_train.train.state import save_best, save_state
from mace_train.train.validation import validate

LOGGER = logging.getLogger("mace_train")


def train(settings: TrainSettings) -> dict[str, Any]:
    """Train as ``settings`` say; the last record of metrics (on rank 0, {} elsewhere).

    Raises ``SystemExit`` when a signal has ended it, after a checkpoint, and ``InputError`` that
    names the rank when one dies or hangs.
    """
    with (
        Interruption() as interruption,
        open_world(settings.cluster) as world,
        staged(Path(settings.data_dir), settings.cluster.stage_to, world) as shards_in,
    ):
        try:
            run = set_up(settings, world, shards_in)
            return fit(run, interruption)
        except RuntimeError as error:
            explained = world.explain(error)
            if explained is None:
                raise
            raise explained from error


def fit(run: Run, interruption: Interruption | None = None) -> dict[str, Any]:
    """Train until the last epoch, until early stopping, or until a signal asks to stop."""
    record: dict[str, Any] = {}
    with interruption or Interruption() as caught:
        log = _start_log(run)
        code = 1
        try:
            record, interrupted = _epochs(run, log, caught)
            on_main(run.world, run.checkpoint_manager.close)
            code = 0
        finally:
            if log is not None:
                log.close(code)
    if interrupted:
        raise SystemExit(interrupted)
    return record


def _epochs(
    run: Run, log: MetricsLog | None, interruption: Interruption
) -> tuple[dict[str, Any], int | None]:
    """(last record, exit code if a signal ended it) of all epochs that are not done yet."""
    settings, progress = run.settings, run.progress
    record: dict[str, Any] = {}
    watch, first_epoch = Stopwatch(), progress.epoch + 1
    while progress.epoch + 1 < settings.max_num_epochs and not run.stopped:
        _enter_stage(run)
        loop = (LbfgsLoop if run.stage.optimizer == "lbfgs" else EpochLoop)(run, interruption)
        with interruption.until_checkpoint():
            new = _one_epoch(run, loop)
            if loop.interrupted:
                return record, _log_interruption(run, interruption)
            record = new
            _end_stage_early(run)
            done = max(progress.epoch + 1 - first_epoch, 1)
            record["time_to_go_s"] = (
                watch.seconds() / done * (settings.max_num_epochs - progress.epoch - 1)
            )
            # before the checkpoint: a run that is killed in between writes this record again
            on_main(run.world, lambda: _log_epoch(run, log, record))  # noqa: B023 (called at once)
            save_state(run)
            flags = run.world.all_reduce_async(
                torch.tensor([int(interruption.signal is not None)])
            )()
            if flags.item() and progress.epoch + 1 < settings.max_num_epochs:
                return record, _log_interruption(run, interruption)
    _log_end(run, record)
    return record, None


def _log_epoch(run: Run, log: MetricsLog | None, record: dict[str, Any]) -> None:
    if log is not None:
        log.write(record)
        LOGGER.info("%s", epoch_line(record, run.settings.max_num_epochs))


def _log_interruption(run: Run, interruption: Interruption) -> int:
    """Log why and where the run ends; its exit code, the same on all ranks."""
    flags = run.world.all_reduce_async(torch.tensor([int(interruption.is_interrupt)]))()
    interrupted = bool(flags.item())
    if interrupted:
        interrupts.told()
    LOGGER.warning(
        "%s after step %d; restart_latest=true continues from here",
        "interrupted"
        if interrupted
        else f"stopped by signal {interruption.signal or 'of another rank'}",
        run.progress.step,
    )
    return exit_code(interrupted=interrupted)


def _start_log(run: Run) -> MetricsLog | None:
    """Log what the run is and open its metrics, on rank 0."""
    opened: list[MetricsLog] = []
    on_main(run.world, lambda: opened.append(_open_log(run)))
    return opened[0] if opened else None


def _open_log(run: Run) -> MetricsLog:
    with ExitStack() as opened:
        lock = opened.enter_context(start_output(run))
        log = MetricsLog(run.settings.logger, run.output, run.settings.name, asdict(run.settings))
        opened.callback(log.close, 1)
        log.on_close(lock.close)
        log.keep_until(run.progress.epoch, run.progress.step)
        opened.pop_all()  # no error: it stays open
    n_weights = sum(parameter.numel() for parameter in run.model.parameters())
    n_frozen = n_weights - sum(parameter.numel() for parameter in run.updater.parameters)
    LOGGER.info(
        "%s: %d weights%s (%s), %d training structures, %d %s on %s; packer %s, at most %d "
        "atoms and %d edges per rank and step",
        run.model.settings.model,
        n_weights,
        f", {n_frozen} of them frozen" if n_frozen else "",
        run.settings.default_dtype,
        len(run.train.shards),
        run.world.size,
        "rank" if run.world.size == 1 else "ranks",
        run.world.device.type,
        run.settings.batching.packer,
        run.sampler.capacity.max_atoms,
        run.sampler.capacity.max_edges,
    )
    if run.sampler.sampling is not None:
        LOGGER.info("%s", run.sampler.sampling.describe(run.progress.epoch + 1))
    return log


def _log_end(run: Run, record: dict[str, Any]) -> None:
    """Log why the run ended and where its checkpoints are."""
    progress = run.progress
    if run.stopped:
        LOGGER.info(
            "stopped early after epoch %d: %d validations without improvement; raise patience to "
            "continue",
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
        run.checkpoint_manager.path("best"),
    )


def _enter_stage(run: Run) -> None:
    """Start the stage that the next epoch belongs to, if it has not started."""
    progress = run.progress
    index = stage_of(run.stages, progress.epoch + 1)
    if index == progress.stage:
        return
    before, progress.stage = run.stage, index
    stage = run.stage
    LOGGER.info(
        "stage %s begins with epoch %d: %s, lr %s",
        stage.name,
        progress.epoch + 2,
        stage.optimizer,
        stage.lr,
    )
    if stage.loss != before.loss:
        progress.best_loss = None  # losses of two stages cannot be compared
    progress.bad_validations = 0
    if stage.optimizer != before.optimizer or stage.name == "finish":
        _start_from_best(run)
        run.updater.start_optimizer(stage.optimizer)


def _start_from_best(run: Run) -> None:
    """Give the model the best weights so far."""
    path = run.checkpoint_manager.path(f"best-{run.progress.best_step:010d}")

    def read() -> dict[str, Any]:
        run.checkpoint_manager.wait()
        return checkpoint.read(path)[0]

    tensors = run.world.broadcast_result(read)
    fill(run.model, {name.removeprefix("model."): value for name, value in tensors.items()})


def _end_stage_early(run: Run) -> None:
    """Start the next stage with the next epoch where patience runs out in one before the last."""
    progress = run.progress
    no_patience = progress.bad_validations >= run.settings.patience
    if no_patience and progress.stage + 1 < len(run.stages):
        following = run.stages[progress.stage + 1]
        LOGGER.info(
            "%d validations without improvement end stage %s",
            progress.bad_validations,
            run.stage.name,
        )
        progress.epoch = max(progress.epoch, following.start - 1)


def _one_epoch(run: Run, loop: EpochLoop) -> dict[str, Any]:
    """Train one epoch, validate, and keep the result in ``run.progress``; its record."""
    settings, progress = run.settings, run.progress
    sums = loop.train()
    if loop.interrupted:
        return {}
    epoch = progress.epoch = progress.epoch + 1
    seconds, progress.epoch_seconds = progress.epoch_seconds, 0.0
    trained_on = loop.samples.costs(run.train.costs)
    record: dict[str, Any] = {
        "epoch": epoch,
        "step": progress.step,
        "stage": run.stage.name,
        "train_loss": float(sums.loss(run.stage.loss)),
        "valid_loss": None,
        "structures": loop.n_seen,
        "atoms_per_s": trained_on.n_atoms.sum() / seconds,
        "edges_per_s": trained_on.n_edges.sum() / seconds,
        "structures_per_s": len(trained_on) / seconds,
        "epoch_s": seconds,
        "total_s": progress.seconds,
        "n_skipped": progress.n_skipped,
        **loop.record(),
    }
    if run.valid is None:
        progress.best_epoch, progress.best_step = epoch, progress.step
        save_best(run)
    elif (epoch + 1) % settings.eval_interval == 0 or epoch + 1 == settings.max_num_epochs:
        run.world.report_progress(progress.step, "validation")
        record |= _validate(run, epoch)
    return record


def _validate(run: Run, epoch: int) -> dict[str, Any]:
    """Validation errors; keeps the best weights and decides on early stopping."""
    progress = run.progress
    loss, errors = validate(run)
    if not math.isfinite(loss):
        raise InputError(
            f"the validation loss after epoch {epoch + 1} is {loss}; lower optimizer.lr, and "
            f"check the labels of the validation data; {where_to_continue(run.checkpoint_manager)}"
        )
    run.updater.schedule.validated(loss)
    if progress.best_loss is None or loss < progress.best_loss:
        progress.best_loss, progress.best_epoch, progress.bad_validations = loss, epoch, 0
        progress.best_step = progress.step
        save_best(run)
    else:
        progress.bad_validations += 1
    run.last_errors = rmse_text(errors[0])
    numbers = {key: value for key, value in errors[0].items() if "_rmse_" in key or "_mae_" in key}
    return {"valid_loss": loss} | {f"valid_{key}": value for key, value in numbers.items()}
