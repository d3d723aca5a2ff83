"""State dicts in files: tensors with mace-torch's names, and the header as JSON beside them."""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mace_train.atomic_files import written_together
from mace_train.errors import InputError
from mace_train.interop.header import Header
from mace_train.json_files import read_json
from mace_train.restricted_pickle import Shell, load_tensors


def read_file(path: Path) -> dict[str, Tensor] | Shell:
    """The tensors of a state dict, or the whole model that the file holds, as a shell.

    Runs no code of the file. The ``model`` part of a checkpoint of mace-torch is a state dict too.

    Raises:
        RestrictedPickleError: a pickle that cannot be read in this way.
        InputError: damaged, TorchScript, or neither a state dict nor a model.
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
        loaded = load_tensors(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if isinstance(loaded, Shell) and not loaded.module.startswith("__torch__"):
        return loaded
    if isinstance(loaded, Mapping) and isinstance(loaded.get("model"), Mapping):
        loaded = loaded["model"]
    if isinstance(loaded, Mapping) and all(isinstance(t, Tensor) for t in loaded.values()):
        return dict(loaded)
    what = "a TorchScript model" if isinstance(loaded, Shell) else f"a {type(loaded).__name__}"
    raise InputError(
        f"{path}: holds {what}, neither a state dict nor a model; import the .model file that "
        "mace_run_train writes, not a compiled one"
    )


def read_header(path: Path, given: str | None) -> Header:
    """The header that belongs to a state dict: the file given, or NAME.json beside it."""
    beside = path.with_suffix(".json") if given is None else Path(given)
    return read_json(
        beside,
        dict,
        f"it is the header of the state dict {path}: write it again, or give header=FILE, which "
        "`mace-train export format=state_dict` writes, or "
        "json.dumps(mace_train.interop.header.header_of(model)) from a whole model",
    )


def write_state(path: Path, header: Header, tensors: Mapping[str, Tensor]) -> None:
    """Tensors as safetensors, and the header beside them."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(header, indent=1) + "\n"
    with written_together(path.parent) as new:
        save_file(contiguous, new / path.name, metadata={"format": "pt"})
        (new / path.with_suffix(".json").name).write_text(text)
