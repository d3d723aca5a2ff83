"""The state of a run as tensors and a header, and back again, at any step.

At the same number of ranks a resumed run continues bit for bit: weights, EMA, optimizer, schedule,
stage, counters, this rank's sums of the running epoch, and the position in it. Random numbers need
no state, they follow from (seed, step, rank). At another number of ranks, or with other batches,
the rest of the epoch is planned again, and each of its structures is trained on once. Where
sampling ratios change, the rest of the epoch keeps the samples it began with.

A run continues only with the model and the training data it began with. Settings of the optimizer,
the schedule or the batches may change, with a notice. If the loss or the validation data change,
the best loss so far cannot be compared any more and is forgotten, with a notice.

Files keep the names of the first versions: "average." for the EMA, "tally." for EpochTotals,
"part.remaining", "part.pool" and "part_step" for the EpochPlan, so that any version reads them.
"""

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mace_train.balance.bins import Samples
from mace_train.balance.costs import Capacity
from mace_train.balance.epoch_plan import EpochPlan, SampleIds, as_bits, from_bits
from mace_train.balance.head_sampling import sampling_from
from mace_train.balance.sampler import differences
from mace_train.checks import is_number
from mace_train.errors import InputError
from mace_train.settings import LossSettings, TrainSettings
from mace_train.train import checkpoint
from mace_train.train.loss import LossSums
from mace_train.train.provenance import provenance
from mace_train.train.run import EpochTotals, Progress, Run, on_main

LOGGER = logging.getLogger("mace_train")
_LIKE_WEIGHTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "z")  # of the state of optimizers
_TOTALS = ("tally.numerators", "tally.counts", "tally.seen")  # of EpochTotals, [n_ranks, ...]


def save_state(run: Run, epoch_plan: EpochPlan | None = None) -> None:
    """Write a checkpoint that a run can be resumed from; called by all ranks together.

    ``epoch_plan`` is that of the running epoch, None between epochs.
    """
    totals = run.epoch_totals
    own = (totals.sums.numerators, totals.sums.counts, totals.seen)
    of_ranks = run.world.gather([value.cpu() for value in own])
    on_main(run.world, lambda: _save(run, epoch_plan, of_ranks))


def _save(run: Run, epoch_plan: EpochPlan | None, of_ranks: list[list[Tensor]]) -> None:
    """Write the checkpoint, with the totals of all ranks."""
    tensors = checkpoint.with_prefix("model.", dict(run.model.named_parameters()))
    updater_tensors, updater_header = run.updater.state()
    tensors |= updater_tensors
    header = _header(run) | updater_header | {"sampler": run.sampler.origin()}
    if epoch_plan is not None:
        for name, values in zip(_TOTALS, zip(*of_ranks, strict=True), strict=True):
            tensors[name] = torch.stack(values)
        remaining = epoch_plan.remaining_ids(run.progress.plan_step)
        tensors["part.remaining"] = _bits(remaining, epoch_plan)
        if epoch_plan.sample_ids is not None:
            tensors["part.pool"] = _bits(epoch_plan.sample_ids, epoch_plan)
        if epoch_plan.samples.origin is not None:
            header["samples"] = epoch_plan.samples.origin
        header["plan"] = epoch_plan.plan.fingerprint
    run.checkpoint_manager.save(tensors, header)


def _bits(ids: SampleIds, epoch_plan: EpochPlan) -> Tensor:
    return torch.from_numpy(as_bits(ids, len(epoch_plan.samples)))


def save_best(run: Run) -> None:
    """Write the weights that were just validated; called by all ranks together."""
    on_main(run.world, lambda: _save_best(run))


def _save_best(run: Run) -> None:
    tensors = run.updater.weights_to_use() or dict(run.model.named_parameters())
    names = ["best"]
    if run.stage.name == "one" and len(run.stages) > 1:
        names.append("best_of_stage_one")
    run.checkpoint_manager.save_best(checkpoint.with_prefix("model.", tensors), _header(run), names)


def _header(run: Run) -> dict[str, Any]:
    return {
        **checkpoint.model_header(run.model),
        "default_dtype": run.settings.default_dtype,
        "progress": run.progress.to_header(),
        "dataset_hash": run.statistics.dataset_hash,
        "valid_hash": run.valid_hash,
        "settings": asdict(run.settings),
        "provenance": provenance(),
    }


def resume(run: Run) -> None:
    """Continue from the newest checkpoint that is whole; rank 0 reads it for all.

    Raises ``InputError`` when none is, or if it is of another model or other training data.
    """
    tensors, header, path = run.world.broadcast_result(run.checkpoint_manager.newest)
    with checkpoint.reading(path):
        _load(run, tensors, header, path)


def _load(run: Run, tensors: dict[str, Tensor], header: dict[str, Any], path: Path) -> None:
    """Give a run the state of a checkpoint."""
    _check_same_origin(run, header, path)
    checkpoint.load_parameters(run.model, tensors, "model.", path)
    _check_state(run, tensors, header)
    run.progress = Progress.from_header(header["progress"])
    run.progress.stage = min(run.progress.stage, len(run.stages) - 1)
    run.updater.load_state(tensors, header, run.stage.optimizer)
    _load_capacity(run, header)
    _load_epoch_plan(run, tensors, header)
    _log_changes(run, header)
    time = 1.0 + run.progress.epoch
    if run.epoch_plan is not None:
        time = run.epoch_plan.time(run.progress.plan_step)
    LOGGER.info("resumed from %s after step %d, %.2f epochs", path, run.progress.step, time)


def _check_state(run: Run, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """``ValueError`` for a state that would only fail, or be wrong, some steps later."""
    parameters = dict(run.model.named_parameters())
    for name, tensor in tensors.items():
        kind, _, rest = name.partition(".")
        weight, _, key = rest.rpartition(".")
        of = parameters.get(rest if kind == "average" else weight)
        is_like_it = kind == "average" or (kind == "optimizer" and key in _LIKE_WEIGHTS)
        if of is not None and is_like_it and of.shape != tensor.shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, needed: {tuple(of.shape)}")
    numbers = {"average_updates": header["average_updates"], **header["schedule"]}
    for name, value in numbers.items():
        if not is_number(value):
            raise TypeError(f"{name} is {value!r}")
    dict(header["sampler"])


def _load_capacity(run: Run, header: dict[str, Any]) -> None:
    """The capacity that an earlier session measured or lowered, unless the settings changed."""
    before = header["sampler"]
    same = header["settings"]["batching"] == _as_json(asdict(run.settings.batching))
    kept = run.progress.n_out_of_memory > 0 or run.settings.batching.capacity == "auto"
    if kept and same:
        names = ("max_atoms", "max_edges", "batch_size", "max_memory")
        run.sampler.use(Capacity(**{name: before[name] for name in names}))


def _load_epoch_plan(run: Run, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """The position in the epoch: the same plan at the same step, or a new plan of the rest."""
    if "part.remaining" not in tensors:
        return
    epoch = run.progress.epoch + 1
    samples = _samples_of_epoch(run, header.get("samples"), epoch)

    def ids(name: str) -> SampleIds:
        return from_bits(tensors[name].numpy(), len(samples))

    changes = differences(header["sampler"], _as_json(run.sampler.origin()))
    changed = [f"{name} {before} -> {now}" for name, before, now in changes]
    if not changed:
        epoch_plan = EpochPlan.full(run.sampler, epoch)
        if "part.pool" in tensors:
            epoch_plan = EpochPlan.remaining(run.sampler, epoch, ids("part.pool"), samples)
        if epoch_plan.plan.fingerprint == header["plan"]:
            run.epoch_plan = epoch_plan
        else:
            changed = ["another version of the packer"]
    if changed:
        remaining = ids("part.remaining")
        run.epoch_plan = EpochPlan.remaining(run.sampler, epoch, remaining, samples)
        run.progress.plan_step = 0
        LOGGER.warning(
            "the remaining %d structures of epoch %d are planned again (%s)",
            len(remaining),
            epoch + 1,
            ", ".join(changed),
        )
    _load_totals(run, tensors)


def _samples_of_epoch(run: Run, origin: dict[str, Any] | None, epoch: int) -> Samples:
    """The samples of the epoch that a checkpoint is in, which it began with: not of new ratios."""
    sampling = None if origin is None else sampling_from(origin, run.heads)
    return Samples(len(run.sampler.costs)) if sampling is None else sampling.samples(epoch)


def _load_totals(run: Run, tensors: dict[str, Tensor]) -> None:
    """This rank's own totals; at another number of ranks the first one takes them all."""
    of_ranks = [tensors[name] for name in _TOTALS]
    if len(of_ranks[0]) == run.world.size:
        numerators, counts, seen = (values[run.world.rank] for values in of_ranks)
    elif run.world.is_main:
        numerators, counts, seen = (values.sum(0) for values in of_ranks)
    else:
        return
    device = run.world.device
    run.epoch_totals = EpochTotals(LossSums(numerators.to(device), counts.to(device)), seen)


def _check_same_origin(run: Run, header: dict[str, Any], path: Path) -> None:
    if header["dataset_hash"] != run.statistics.dataset_hash:
        raise InputError(
            f"{path} was trained on other data than {run.settings.data_dir}; "
            "choose another output to train on this data"
        )
    model, (settings_before, data_before) = run.model, checkpoint.described(header)
    changed = [
        f"{name}: {_short(before[name])} there, {_short(value)} now"
        for before, now in (
            (asdict(settings_before), asdict(model.settings)),
            (asdict(data_before), asdict(model.data)),
        )
        for name, value in now.items()
        if name != "r_max" and _as_json(before[name]) != _as_json(value)
    ]
    dtype = run.settings.default_dtype
    if header["default_dtype"] != dtype:
        changed.append(f"default_dtype: {header['default_dtype']} there, {dtype} now")
    if changed:
        raise InputError(
            f"{path} is a checkpoint of another model ({'; '.join(sorted(changed))}); use the "
            "settings and the data it was trained with, or another output"
        )


def _log_changes(run: Run, header: dict[str, Any]) -> None:
    """Log settings that changed; forget the best loss where it cannot be compared."""
    defaults = _flat(_as_json(asdict(TrainSettings())))  # of what older versions do not know
    before = defaults | _flat(header["settings"])
    now = _flat(_as_json(asdict(run.settings)))
    ignored = ("output", "data_dir", "restart_latest", "logger", "cluster", "checkpoints")
    changed = [
        f"{name} {before.get(name)} -> {now.get(name)}"
        for name in {**now, **dict.fromkeys(_left_out(before, now, defaults))}
        if before.get(name) != now.get(name) and not name.startswith(ignored)
    ]
    if changed:
        LOGGER.warning("settings changed since the checkpoint: %s", ", ".join(changed))
    loss_changed = LossSettings(**header["settings"]["loss"]) != run.settings.loss
    if loss_changed or header["valid_hash"] != run.valid_hash:
        LOGGER.warning("the loss or the validation data changed: the best loss so far is forgotten")
        run.progress.best_loss, run.progress.bad_validations = None, 0
        run.updater.schedule.forget()


def _left_out(before: dict[str, Any], now: dict[str, Any], defaults: dict[str, Any]) -> list[str]:
    """The entries of mappings, such as weights by head, that are not given any more."""
    return [name for name in before if name not in now and name.rpartition(".")[0] in defaults]


def _as_json(value: Any) -> Any:
    """The value as it comes back from a JSON header."""
    return json.loads(json.dumps(value))


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted name."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
