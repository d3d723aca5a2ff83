"""Checkpoints: tensors as safetensors with a JSON header inside, never a pickle.

The header names architecture, E0s, statistics, settings and progress; a human-readable copy is
written beside each file, which no command reads. A checksum over header and tensors is verified at
every load. A file is replaced in one atomic step and synced, so a run killed while writing, or a
loss of power, keeps the one before.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import Tensor, nn

from mace_train import __version__
from mace_train.atomic_files import replaced, write_text
from mace_train.checkpoint_files import (
    FORMAT,
    FORMAT_VERSION,
    DamagedError,
    checksum,
    metadata_of,
    read,
    read_header,
    reading,
)
from mace_train.checks import is_number
from mace_train.errors import InputError
from mace_train.foundation_models.lookup import imported_checkpoint
from mace_train.model.lora import merged
from mace_train.model.mace import MACE, ModelData
from mace_train.settings import ModelSettings

__all__ = ["DamagedError", "checksum", "read", "read_header", "reading"]  # of checkpoint_files
_ALWAYS_STATED = (  # settings of the model that version 0.1.0 needs; it refuses any other
    *("model", "r_max", "num_channels", "max_L", "max_ell", "correlation", "num_interactions"),
    *("num_radial_basis", "num_cutoff_basis", "radial_MLP", "distance_transform"),
    *("pair_repulsion", "MLP_irreps", "scaling"),
)
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def save(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Write a checkpoint atomically, and its readable JSON beside it.

    Raises:
        InputError: It cannot be written; ``StorageError`` where the disk is full or fails.
    """
    header = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "mace_train_version": __version__,
        "torch_version": str(torch.__version__),
        **header,
    }
    text = json.dumps(header, indent=1, allow_nan=False)
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"header": text, "checksum": checksum(contiguous, text)}
    with replaced(path) as temporary:
        save_file(contiguous, temporary, metadata=metadata)
    write_text(path.with_suffix(".json"), text + "\n", durable=False)


def write_readable(path: Path) -> None:
    """Write the JSON beside a checkpoint again if it is missing, or is not of this checkpoint."""
    text, readable = metadata_of(path).get("header", "{}") + "\n", path.with_suffix(".json")
    try:
        if readable.read_text(encoding="utf-8") == text:
            return
    except (OSError, ValueError):
        pass
    write_text(readable, text, durable=False)


def model_header(model: MACE) -> dict[str, Any]:
    """The part of a header that rebuilds the model."""
    return _model_header(model.settings, model.data)


def described(header: dict[str, Any]) -> tuple[ModelSettings, ModelData]:
    """(settings, data) of the model that a header describes; ``ValueError`` for other types.

    What it does not state has its default.
    """
    given = header["model_settings"]
    if "${" in json.dumps(given):
        raise ValueError("model_settings holds a ${reference}")
    schema = OmegaConf.structured(ModelSettings)  # which checks types
    settings: Any = OmegaConf.to_object(OmegaConf.merge(schema, given))
    data = ModelData.from_dict(header["model_data"])
    if not (is_number(data.r_max) and is_number(data.avg_num_neighbors)):  # it checks its heads
        raise ValueError("model_data holds something else than finite numbers")
    if not all(type(z) is int and 0 < z < 119 for z in data.atomic_numbers):
        raise ValueError(f"atomic_numbers {data.atomic_numbers}")
    return settings, data


def _model_header(settings: ModelSettings, data: ModelData) -> dict[str, Any]:
    defaults = asdict(ModelSettings())
    stated = {  # so that version 0.1.0 reads models that it knows
        name: value
        for name, value in asdict(settings).items()
        if name in _ALWAYS_STATED or value != defaults[name]
    }
    return {"model_settings": stated, "model_data": asdict(data)}


def load_model(
    path: Path, dtype: torch.dtype | None = None, accept_licence: str | None = None
) -> tuple[MACE, dict[str, Any]]:
    """(model with the weights to use, header) from a checkpoint file or a training's folder.

    Or of a foundation model by its name, under a licence that ``accept_licence`` names if need be.

    >>> model, header = load_model(Path("runs/first"), torch.float64)
    >>> model.data.r_max
    4.0
    >>> header["default_dtype"]
    'float32'
    """
    path = imported_checkpoint(path, accept_licence)
    if path.is_dir():
        path = path / "checkpoints" / "best.safetensors"
    tensors, header = read(path)
    with reading(path):
        model = MACE(*described(header)).to(dtype or DTYPES[header["default_dtype"]])
        prefix = "average." if any(name.startswith("average.") for name in tensors) else "model."
        load_parameters(model, _without_low_rank(tensors, header, prefix), prefix, path)
    return model, header


def _without_low_rank(
    tensors: dict[str, Tensor], header: dict[str, Any], prefix: str
) -> dict[str, Tensor]:
    """The weights of a plain model, if the file is of one with low-rank changes."""
    given = header.get("settings", {}).get("foundation", {})
    if not given.get("lora_rank"):
        return tensors
    weights = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return merged(weights, given["lora_alpha"] / given["lora_rank"])


def load_parameters(model: nn.Module, tensors: dict[str, Tensor], prefix: str, path: Path) -> None:
    """Copy the tensors named ``prefix + parameter`` into the model; every one must fit."""
    parameters = dict(model.named_parameters())
    stored = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    problems = [f"{name} is missing" for name in parameters.keys() - stored.keys()]
    problems += [f"{name} is unknown" for name in stored.keys() - parameters.keys()]
    problems += [
        f"{name} has shape {tuple(stored[name].shape)}, the model needs {tuple(value.shape)}"
        for name, value in parameters.items()
        if name in stored and stored[name].shape != value.shape
    ]
    problems += [
        f"{name} is {str(tensor.dtype).removeprefix('torch.')}, not of floating point"
        for name, tensor in stored.items()
        if not tensor.is_floating_point()
    ]
    if problems:
        raise InputError(
            f"{path}: checkpoint of another model ({'; '.join(sorted(problems)[:3])}"
            f"{'; ...' if len(problems) > 3 else ''}); use the model settings it was trained "
            "with, or another output folder"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(stored[name])


def with_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under ``prefix + name``."""
    return {prefix + name: tensor for name, tensor in tensors.items()}
