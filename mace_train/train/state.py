"""Saving a run and continuing it: last.safetensors, best.safetensors, and what must not change.

A run continues only with the model and the training data it began with. Settings of the optimizer,
the schedule or the batches may change, announced. If the loss or the validation data change, the
best loss so far means nothing any more and is forgotten, announced.
"""

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from mace_train.errors import InputError
from mace_train.train import checkpoint
from mace_train.train.run import Progress, Run

LOGGER = logging.getLogger("mace_train")


def save_last(run: Run) -> None:
    """Write checkpoints/last.safetensors: all that a resumed run needs."""
    tensors = checkpoint.with_prefix("model.", dict(run.model.named_parameters()))
    if run.average is not None:
        tensors |= checkpoint.with_prefix("average.", run.average.shadow)
    tensors |= checkpoint.optimizer_tensors(run.optimizer, run.model)
    header = _header(run) | {
        "schedule": run.schedule.state_dict(),
        "average_updates": run.average.n_updates if run.average is not None else 0,
    }
    checkpoint.save(run.last_checkpoint, tensors, header)


def save_best(run: Run) -> None:
    """Write checkpoints/best.safetensors: the weights that were just validated."""
    tensors: dict[str, Tensor] = dict(run.model.named_parameters())
    if run.average is not None:
        tensors = run.average.shadow
    header = _header(run)
    checkpoint.save(run.best_checkpoint, checkpoint.with_prefix("model.", tensors), header)


def _header(run: Run) -> dict[str, Any]:
    return {
        **checkpoint.model_header(run.model),
        "default_dtype": run.settings.default_dtype,
        "progress": asdict(run.progress),
        "dataset_hash": run.statistics.dataset_hash,
        "valid_hash": None if run.valid is None else run.valid.shards.dataset_hash,
        "settings": asdict(run.settings),
    }


def resume(run: Run) -> None:
    """Continue from last.safetensors exactly.

    Raises ``InputError`` when the file is damaged, or of another model or other training data.
    """
    path = run.last_checkpoint
    tensors, header = checkpoint.read(path)
    _check_same_origin(run, header, path)
    checkpoint.load_parameters(run.model, tensors, "model.", path)
    checkpoint.load_optimizer(run.optimizer, run.model, tensors)
    _load_average(run, tensors, header["average_updates"])
    run.schedule.load_state_dict(header["schedule"])
    run.progress = Progress(**header["progress"])
    _announce_changes(run, header)
    LOGGER.info("resumed from %s after epoch %d", path, run.progress.epoch + 1)


def _check_same_origin(run: Run, header: dict[str, Any], path: Path) -> None:
    if header["dataset_hash"] != run.statistics.dataset_hash:
        raise InputError(
            f"{path} was trained on other data than {run.settings.data_dir}; "
            "choose another output to train on this data"
        )
    now = _as_json(_header(run))
    changed = [
        f"{name}: {_short(header[part].get(name))} there, {_short(now[part].get(name))} now"
        for part in ("model_settings", "model_data")
        for name in now[part].keys() | header[part].keys()
        if name != "r_max" and header[part].get(name) != now[part].get(name)
    ]
    if header["default_dtype"] != now["default_dtype"]:
        changed.append(
            f"default_dtype: {header['default_dtype']} there, {now['default_dtype']} now"
        )
    if changed:
        raise InputError(
            f"{path} is a checkpoint of another model ({'; '.join(sorted(changed))}); use the "
            "settings and the data it was trained with, or another output"
        )


def _load_average(run: Run, tensors: dict[str, Tensor], n_updates: int) -> None:
    """The moving average of the checkpoint, or one that starts from its weights."""
    if run.average is None:
        return
    prefix = "average." if n_updates else "model."
    run.average.shadow = {
        name: tensors[prefix + name].detach().clone().to(run.world.device)
        for name in run.average.shadow
    }
    run.average.n_updates = n_updates


def _announce_changes(run: Run, header: dict[str, Any]) -> None:
    """Log settings that changed; forget the best loss where it cannot be compared."""
    before, now = _flat(header["settings"]), _flat(_as_json(asdict(run.settings)))
    ignored = ("output", "data_dir", "restart_latest", "logger", "cluster")
    changed = [
        f"{name} {before.get(name)} -> {value}"
        for name, value in now.items()
        if before.get(name) != value and not name.startswith(ignored)
    ]
    if changed:
        LOGGER.warning("settings changed since the checkpoint: %s", ", ".join(changed))
    valid_hash = None if run.valid is None else run.valid.shards.dataset_hash
    loss_changed = header["settings"]["loss"] != _as_json(asdict(run.settings.loss))
    if loss_changed or header["valid_hash"] != valid_hash:
        LOGGER.warning("the loss or the validation data changed: the best loss starts anew")
        run.progress.best_loss, run.progress.bad_validations = None, 0
        run.schedule.forget()


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
