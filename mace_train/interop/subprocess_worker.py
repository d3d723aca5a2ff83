"""Work with mace-torch in a process of its own.

    python -m mace_train.interop.subprocess_worker FOLDER

FOLDER/request.json names a task and files; its results are written beside it. Reading a
pickle runs code, and importing mace-torch changes settings of the process: none of it reaches the
caller.
"""

import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mace_train.errors import InputError
from mace_train.interop.header import header_of
from mace_train.interop.mace_torch import (
    MISSING_PACKAGE,
    build,
    import_mace,
    predictions_of,
    read_model,
    save_model,
)
from mace_train.interop.probe_structures import probes
from mace_train.settings.inputs import input_specs

_WITHOUT_TRUST = (
    "import a file of an older version without trust=true: then its tensors alone are read, and "
    "compared with a model that the installed version builds"
)


def run_request(folder: Path) -> None:
    """Run the task in FOLDER/request.json; an InputError is written to ``error.json``."""
    request = json.loads((folder / "request.json").read_text())
    try:
        _import(request)
        TASKS[request["task"]](request, folder)
    except InputError as error:
        (folder / "error.json").write_text(json.dumps(str(error)))


def _import(request: dict[str, Any]) -> None:
    try:
        import_mace()
    except ImportError as error:
        raise InputError(f"{request['path']}: {MISSING_PACKAGE} ({error})") from error


def _read(request: dict[str, Any], folder: Path) -> None:
    """A .model file -> header, tensors, predictions."""
    path = request["path"]
    model = read_model(Path(path))
    try:
        header = header_of(model)
    except (AttributeError, LookupError, TypeError) as error:
        raise InputError(
            f"{path}: not laid out as mace_run_train of mace-torch {version('mace-torch')} writes "
            f"it ({error}); convert a model for cuequivariance back with "
            f"mace.cli.convert_cueq_e3nn; {_WITHOUT_TRUST}"
        ) from error
    save_file(_plain(model.state_dict()), folder / "tensors.safetensors")
    (folder / "header.json").write_text(json.dumps(header))
    try:
        _predict(model, header, folder)
    except (AttributeError, LookupError, TypeError, RuntimeError) as error:
        raise InputError(
            f"{path}: mace-torch {version('mace-torch')} reads it but cannot run it ({error}); "
            f"{_WITHOUT_TRUST}"
        ) from error


def _write(request: dict[str, Any], folder: Path) -> None:
    """Header and tensors -> predictions, and a .model file if there is a path."""
    header = json.loads((folder / "header.json").read_text())
    model = build(header, load_file(folder / "tensors.safetensors"))
    _predict(model, header, folder)
    if request["save_as"] is not None:
        save_model(model, Path(request["save_as"]), getattr(torch, request["default_dtype"]))


def _predict(model: nn.Module, header: dict[str, Any], folder: Path) -> None:
    specs = input_specs(header.get("embedding_specs"))
    graph = probes(header["atomic_numbers"], header["r_max"], specs)
    found = [
        predictions_of(model, graph, head) for head in range(len(header.get("heads", ["Default"])))
    ]
    stacked = {name: torch.stack([of_head[name] for of_head in found]) for name in found[0]}
    save_file(_plain(stacked), folder / "predictions.safetensors")


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of their own memory; without empty ones."""
    return {name: t.detach().clone().contiguous() for name, t in tensors.items() if t.numel() > 0}


TASKS: dict[str, Callable[[dict[str, Any], Path], None]] = {"read": _read, "write": _write}

if __name__ == "__main__":
    run_request(Path(sys.argv[1]))
