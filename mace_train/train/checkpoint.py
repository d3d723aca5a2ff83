"""Checkpoints: tensors as safetensors with a JSON header inside, never a pickle.

The header names architecture, E0s, statistics, settings and progress; a readable copy is written
beside each file. A checksum over header and tensors is verified at every load. A file is replaced
in one atomic step, so a run killed while writing keeps the one before.
"""

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mace_train import __version__
from mace_train.errors import InputError
from mace_train.model.lora import merged
from mace_train.model.mace import MACE, ModelData
from mace_train.settings import ModelSettings

FORMAT = "mace-train checkpoint"
FORMAT_VERSION = 2


class DamagedError(InputError):
    """The file is not what was written."""


def save(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Write a checkpoint atomically, and its readable JSON beside it."""
    header = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "mace_train_version": __version__,
        "torch_version": str(torch.__version__),
        **header,
    }
    text = json.dumps(header, indent=1, allow_nan=False)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"header": text, "checksum": checksum(contiguous, text)}
    save_file(contiguous, temporary, metadata=metadata)
    with open(temporary, "rb") as handle:
        os.fsync(handle.fileno())
    os.replace(temporary, path)
    readable = path.with_suffix(".json")
    temporary_json = readable.with_name(f".{readable.name}.{os.getpid()}.tmp")
    temporary_json.write_text(text + "\n")
    os.replace(temporary_json, readable)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, header) of a checkpoint; InputError if it is none, or of another version."""
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint file")
    try:
        with safe_open(path, framework="pt") as handle:
            metadata = handle.metadata() or {}
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
        header = json.loads(metadata.get("header", "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise DamagedError(
            f"{path}: not a readable safetensors file ({error}); it may be truncated, "
            "use another checkpoint or train again"
        ) from None
    if header.get("format") != FORMAT:
        raise InputError(f"{path}: a safetensors file, but not a mace-train checkpoint; give one")
    if header["format_version"] != FORMAT_VERSION:
        raise InputError(
            f"{path}: checkpoint format {header['format_version']}, this version of mace-train "
            f"reads format {FORMAT_VERSION}; use the release that wrote it "
            f"({header['mace_train_version']})"
        )
    if checksum(tensors, metadata["header"]) != metadata.get("checksum"):
        raise DamagedError(
            f"{path}: the checksum does not fit, so its content has changed since it was written; "
            "use another checkpoint or train again"
        )
    return tensors, header


def checksum(tensors: dict[str, Tensor], header: str) -> str:
    """32 hex digits over the header and every tensor with its name, type and shape."""
    digest = hashlib.blake2b(header.encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def model_header(model: MACE) -> dict[str, Any]:
    """The part of a header that rebuilds the model."""
    return _model_header(model.settings, model.data)


def model_header_of(header: dict[str, Any]) -> dict[str, Any]:
    """That part of the header of a file; what older files do not state has its default."""
    settings = ModelSettings(**header["model_settings"])
    data = ModelData.from_dict(header["model_data"])
    return _model_header(settings, data)


def _model_header(settings: ModelSettings, data: ModelData) -> dict[str, Any]:
    model_settings = asdict(settings)
    # always None (num_channels and max_L say it), and version 0.1.0 does not know it
    assert model_settings.pop("hidden_irreps") is None
    return {"model_settings": model_settings, "model_data": asdict(data)}


def load_model(path: Path, dtype: torch.dtype | None = None) -> tuple[MACE, dict[str, Any]]:
    """(model with the weights to use, header) from a checkpoint file or a training's folder.

    >>> model, header = load_model(Path("runs/first"), torch.float64)
    >>> model.data.r_max
    4.0
    >>> header["default_dtype"]
    'float32'
    """
    if path.is_dir():
        path = path / "checkpoints" / "best.safetensors"
    tensors, header = read(path)
    if dtype is None:
        dtype = getattr(torch, header["default_dtype"])
    data = ModelData.from_dict(header["model_data"])
    model = MACE(ModelSettings(**header["model_settings"]), data).to(dtype)
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
