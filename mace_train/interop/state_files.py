"""State dicts in files: tensors with mace-torch's names, and the header as JSON beside them."""

import json
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mace_train.errors import InputError
from mace_train.interop.header import Header


def read_tensors(path: Path) -> dict[str, Tensor] | None:
    """The tensors of a state dict; None for a file that holds objects (a whole model).

    Runs no code of the file. The ``model`` part of a checkpoint of mace-torch is a state dict too.
    """
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as handle:
                return {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise InputError(
                f"{path}: not a readable safetensors file ({error}); write it again"
            ) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # how the file was pickled does not matter
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        return None
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise InputError(
            f"{path}: not a file of torch.save ({error}); it may be truncated, or a TorchScript "
            "model: import the .model file that it was made from"
        ) from error
    if isinstance(loaded, Mapping) and isinstance(loaded.get("model"), Mapping):
        loaded = loaded["model"]
    if isinstance(loaded, Mapping) and all(isinstance(t, Tensor) for t in loaded.values()):
        return dict(loaded)
    raise InputError(f"{path}: holds a {type(loaded).__name__}, neither a state dict nor a model")


def read_header(path: Path, given: str | None) -> Header:
    """The header that belongs to a state dict: the file given, or NAME.json beside it."""
    beside = path.with_suffix(".json") if given is None else Path(given)
    try:
        header: Any = json.loads(beside.read_text())
    except OSError as error:
        raise InputError(
            f"{path} is a state dict, and its header {beside} cannot be read ({error.strerror}); "
            "give header=FILE, which `mace-train export format=state_dict` writes, or "
            "json.dumps(mace_train.interop.header.header_of(model)) from a whole model"
        ) from error
    except ValueError as error:
        raise InputError(f"{beside}: not JSON ({error}); write it again") from None
    if not isinstance(header, dict):
        raise InputError(f"{beside}: holds a {type(header).__name__}, not the header of a model")
    return header


def write_state(path: Path, header: Header, tensors: Mapping[str, Tensor]) -> None:
    """Tensors as safetensors, and the header beside them."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, path, metadata={"format": "pt"})
    path.with_suffix(".json").write_text(json.dumps(header, indent=1) + "\n")
