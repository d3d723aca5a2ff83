"""Reading checkpoints: safetensors with a JSON header inside, whose checksum is verified.

The files are written by ``train.checkpoint``; every part of the package that takes a value from one
reads it here.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mace_train.errors import InputError, system_error

FORMAT = "mace-train checkpoint"
FORMAT_VERSION = 2

_JUNK = (
    *(AttributeError, KeyError, IndexError, TypeError, ValueError, OverflowError, RecursionError),
    *(RuntimeError, AssertionError, OmegaConfBaseException),
)


class DamagedError(InputError):
    """The file is not what was written."""


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, header) of a checkpoint; InputError if it is none, or of another version."""
    metadata = metadata_of(path)
    header = _header(path, metadata)
    with _opened(path) as handle:
        tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    if checksum(tensors, metadata["header"]) != metadata.get("checksum"):
        raise DamagedError(
            f"{path}: the checksum does not fit, so its content has changed since it was written; "
            "use another checkpoint or train again"
        )
    return tensors, header


def read_header(path: Path) -> dict[str, Any]:
    """The header of a checkpoint, without its tensors, whose checksum is not verified then."""
    return _header(path, metadata_of(path))


def metadata_of(path: Path) -> dict[str, str]:
    """The text in the metadata of a safetensors file, as it is."""
    with _opened(path) as handle:
        return dict(handle.metadata() or {})


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file; ``DamagedError`` if it is none."""
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint file")
    try:
        with safe_open(path, framework="pt") as handle:
            yield handle
    except (SafetensorError, OSError, ValueError) as error:
        explained = system_error(error, path)
        if explained is not None:
            raise explained from None
        raise DamagedError(
            f"{path}: not a readable safetensors file ({error}); it may be truncated, "
            "use another checkpoint or train again"
        ) from None


def _header(path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    """The header in a file's metadata, of this format and version."""
    with reading(path):
        header = json.loads(metadata.get("header", "{}"), parse_constant=_refuse)
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise InputError(
            f"{path}: a safetensors file, but not a mace-train checkpoint; `mace-train import` "
            "makes one from a model of mace-torch"
        )
    if header.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{path}: checkpoint format {header.get('format_version')}, this version of mace-train "
            f"reads format {FORMAT_VERSION}; use the release that wrote it "
            f"({header.get('mace_train_version')})"
        )
    return header


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number in JSON")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """In this block a header or tensors that do not fit are an error that names the file."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except _JUNK as error:
        if isinstance(error, InputError) and str(path) in str(error):
            raise
        lines = str(error).splitlines()
        what = (lines or [""])[0]
        if not isinstance(error, InputError):
            what = f"{type(error).__name__}: {what}"
        raise DamagedError(
            f"{path}: its header or its tensors are not as mace-train writes them ({what}); use "
            "another checkpoint or train again"
        ) from error


def checksum(tensors: dict[str, Tensor], header: str) -> str:
    """32 hex digits over the header and every tensor with its name, type and shape."""
    digest = hashlib.blake2b(header.encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
