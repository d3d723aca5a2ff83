"""Headers and tensors that are not as written, with a checksum that fits: one message."""

import copy
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mace_train.distributed.world import World
from mace_train.errors import InputError
from mace_train.train import checkpoint
from mace_train.train.setup import set_up
from mace_train.train.train import train
from tests.train.training import settings_for

Header = dict[str, Any]
Tensors = dict[str, torch.Tensor]
REMOVED = object()
VALUES = ("x", None, [], {}, -7, 1.5, True, "${oc.env:HOME}", 10**30, float("inf"), REMOVED)


def rewrite(path: Path, tensors: Tensors, header: Header | str) -> None:
    """Write a checkpoint whose checksum fits."""
    text = header if isinstance(header, str) else json.dumps(header)
    metadata = {"header": text, "checksum": checkpoint.checksum(tensors, text)}
    save_file(tensors, path, metadata=metadata)


def changed(header: Header, dotted: str, value: object) -> Header:
    """The header with another value at a dotted name."""
    header = copy.deepcopy(header)
    *parents, name = dotted.split(".")
    place: Any = header
    for parent in parents:
        place = place[int(parent) if parent.isdigit() else parent]
    key: Any = int(name) if name.isdigit() else name
    if value is REMOVED:
        del place[key]
    else:
        place[key] = value
    return header


@pytest.fixture
def best(trained, tmp_path) -> tuple[Path, Tensors, Header]:
    """(a file to write, tensors, header) of the best checkpoint of a training."""
    return tmp_path / "a.safetensors", *checkpoint.read(trained / "checkpoints/best.safetensors")


@pytest.mark.parametrize(
    "name",
    [
        *("model_settings", "model_settings.num_channels", "model_settings.radial_MLP"),
        *("model_data", "model_data.r_max", "model_data.atomic_numbers", "model_data.heads"),
        *("model_data.atomic_numbers.0", "model_data.heads.0", "model_data.heads.0.E0s"),
        *("model_data.heads.0.E0s.0", "model_data.heads.0.scale", "default_dtype"),
    ],
)
def test_a_model_with_a_junk_header_is_one_message(name, best):
    path, tensors, header = best
    for value in VALUES:
        rewrite(path, tensors, changed(header, name, value))
        is_number = type(value) in (int, float) and math.isfinite(value) and value < 2**63
        if is_number and fits(name, value):
            checkpoint.load_model(path)
            continue
        with pytest.raises(InputError, match=re.escape(str(path))) as error:
            checkpoint.load_model(path)
        assert len(str(error.value).splitlines()) == 1


def fits(name: str, value: float) -> bool:
    """Whether any such number may stand there."""
    if name == "model_data.r_max":
        return value > 0
    return name in ("model_data.heads.0.E0s.0", "model_data.heads.0.scale")


@pytest.mark.parametrize("text", ["", "[]", "nul", '{"a": NaN}', '{"a": 1', "[" * 10_000, "3"])
def test_a_header_that_is_no_object_is_one_message(text, best):
    path, tensors, _ = best
    rewrite(path, tensors, text)
    with pytest.raises(InputError, match=f"{path}: "):
        checkpoint.load_model(path)


def test_tensors_that_do_not_fit_are_one_message(best):
    path, tensors, header = best
    name = next(iter(tensors))
    for other in (
        {n: t for n, t in tensors.items() if n != name},
        tensors | {"model.more": torch.ones(2)},
        tensors | {name: tensors[name].flatten()[:-1]},
        tensors | {name: tensors[name].to(torch.int32)},
        tensors | {name: torch.complex(tensors[name], tensors[name])},
        {},
    ):
        rewrite(path, other, header)
        with pytest.raises(InputError, match=r"a\.safetensors: checkpoint of another model"):
            checkpoint.load_model(path)


PROGRESS = ("epoch", "step", "best_step", "seconds", "n_skipped")
PARTS = (
    *("progress", "optimizer.state", "optimizer.groups", "schedule", "schedule.factor", "sampler"),
    *("settings", "average_updates"),
)
DEFAULTS = ("progress.seconds", "progress.n_skipped", "progress.best_step")  # of earlier versions


def test_a_run_with_a_junk_header_is_one_message(prepared, tmp_path):
    settings = settings_for(prepared, tmp_path / "run", max_num_epochs=1)
    train(settings)
    settings = replace(settings, restart_latest=True, max_num_epochs=2)
    (path,) = (tmp_path / "run" / "checkpoints").glob("step-*.safetensors")
    tensors, header = checkpoint.read(path)
    for name in (*(f"progress.{name}" for name in PROGRESS), *PARTS, "optimizer", "settings.loss"):
        for value in ("x", None, REMOVED):
            if value is REMOVED and name in DEFAULTS:
                continue
            rewrite(path, tensors, changed(header, name, value))
            with pytest.raises(InputError, match=re.escape(str(path))) as error:
                set_up(settings, World())
            assert len(str(error.value).splitlines()) == 1, (name, value)
    for start in ("model.", "average.", "optimizer."):
        name = max((n for n in tensors if n.startswith(start)), key=lambda n: tensors[n].numel())
        rewrite(path, tensors | {name: tensors[name].flatten()[:-1].contiguous()}, header)
        with pytest.raises(InputError, match=re.escape(str(path))):
            set_up(settings, World())
    rewrite(path, tensors, header)
    assert set_up(settings, World()).progress.epoch == 0
