"""Calls mace-torch in a subprocess (``subprocess_worker``), which isolates its imports."""

import importlib.util
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from mace_train.atomic_files import scratch_folder
from mace_train.child_process import run_child
from mace_train.errors import InputError, system_error
from mace_train.interop.header import Header


@dataclass(frozen=True)
class LoadedModel:
    """A .model file as the worker read it."""

    header: Header
    tensors: dict[str, Tensor]
    predictions: dict[str, Tensor]  # of ``probes``, [n_heads, ...]


def has_mace_torch() -> bool:
    """Whether mace-torch is installed, without importing it."""
    return importlib.util.find_spec("mace") is not None


def read_mace_torch(path: Path) -> LoadedModel:
    """Header, tensors and predictions of a .model file.

    Raises InputError without mace-torch, or for a file that is no model we know.
    """
    with scratch_folder() as folder:
        _run({"task": "read", "path": str(path.resolve())}, folder)
        header = json.loads((folder / "header.json").read_text())
        return LoadedModel(header, load_file(folder / "tensors.safetensors"), _predictions(folder))


def build_mace_torch(
    what: str,
    header: Header,
    tensors: Mapping[str, Tensor],
    save_as: Path | None = None,
    default_dtype: str = "float64",
) -> dict[str, Tensor]:
    """Predictions of mace-torch's model of these tensors, which is saved if a file is named."""
    with scratch_folder() as folder:
        save_file({k: t.contiguous() for k, t in tensors.items()}, folder / "tensors.safetensors")
        (folder / "header.json").write_text(json.dumps(header))
        request: dict[str, Any] = {"task": "write", "path": what, "default_dtype": default_dtype}
        request["save_as"] = None if save_as is None else str(save_as.resolve())
        _run(request, folder)
        return _predictions(folder)


def _predictions(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "predictions.safetensors")


def _run(request: dict[str, Any], folder: Path) -> None:
    (folder / "request.json").write_text(json.dumps(request))
    run_worker(folder)
    error = folder / "error.json"
    if error.exists():
        raise InputError(json.loads(error.read_text()))


def run_worker(folder: Path) -> None:
    """Start the worker on a folder with a request, and wait for it."""
    command = [sys.executable, "-m", "mace_train.interop.subprocess_worker", str(folder)]
    done = run_child(command, capture_output=True)
    if done.returncode != 0:
        path = json.loads((folder / "request.json").read_text())["path"]
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise system_error(OSError(last), Path(path)) or InputError(
            f"{path}: the process that runs mace-torch ended with an error: {last}"
        )
