"""``mace-train export``: a trained model -> a file that mace-torch and its tools take."""

import logging
from pathlib import Path

import torch

from mace_train.atomic_files import replaced
from mace_train.errors import InputError
from mace_train.folders import make_folder
from mace_train.interop.equivalence import check_equivalence, predictions
from mace_train.interop.mace_torch import MISSING_PACKAGE
from mace_train.interop.probe_structures import probes
from mace_train.interop.state_dict import header_for, to_mace_torch_state_dict
from mace_train.interop.state_files import write_state
from mace_train.interop.subprocess_client import build_mace_torch, has_mace_torch
from mace_train.model.mace import MACE
from mace_train.model.surgery import one_head
from mace_train.settings import ExportSettings
from mace_train.train.checkpoint import load_model

LOGGER = logging.getLogger("mace_train")


def export_model(settings: ExportSettings) -> None:
    """Load, build mace-torch's model where it is installed, compare, write."""
    target = Path(settings.output)
    if target.exists():
        raise InputError(f"output={settings.output} is already there; choose another name")
    if settings.format == "state_dict" and target.suffix != ".safetensors":
        raise InputError(f"output={settings.output}: the name of a state_dict ends in .safetensors")
    if settings.format == "mace-torch" and not has_mace_torch():
        raise InputError(f"format=mace-torch: {MISSING_PACKAGE}, or use format=state_dict")
    model, header = load_model(Path(settings.checkpoint), torch.float64)
    if settings.head is not None:
        model = one_head(model, settings.head)
    stored: str = header["default_dtype"]
    dtype = settings.default_dtype or stored
    make_folder("output", target.parent)
    if settings.format == "state_dict":
        if has_mace_torch():
            _compare(target, model, None, dtype)
        else:
            LOGGER.warning("%s: not compared with mace-torch, which is not installed", target)
        single = model.to(getattr(torch, dtype))
        write_state(target, header_for(single), to_mace_torch_state_dict(single))
    else:
        with replaced(target) as unchecked:
            _compare(target, model, unchecked, dtype)
    LOGGER.info("wrote %s (%s)", target, dtype)


def _compare(target: Path, model: MACE, save_as: Path | None, dtype: str) -> None:
    """Build mace-torch's model and compare it with ours in float64."""
    tensors = to_mace_torch_state_dict(model)
    theirs = build_mace_torch(str(target), header_for(model), tensors, save_as, dtype)
    graph = probes(list(model.data.atomic_numbers), model.data.r_max, model.inputs)
    check_equivalence(f"{target}: mace-torch's and ours", graph, theirs, predictions(model, graph))
