"""How a model was made: versions of the program and of what it builds on, git commit, host."""

import platform
import socket
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from mace_train import __version__

_LIBRARIES = ("torch", "numpy", "ase", "h5py", "vesin", "hydra-core", "safetensors", "schedulefree")


@cache
def provenance() -> dict[str, Any]:
    """Facts about this program and this machine; JSON only."""
    return {
        "mace_train": __version__,
        "git": git_commit(),
        "python": platform.python_version(),
        "libraries": {name: found for name in _LIBRARIES if (found := _version(name)) is not None},
        "cuda": torch.version.cuda,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "host": socket.gethostname(),
        "command": sys.argv,
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """The commit of the checkout this program runs from, ``-dirty`` if changed; None outside."""
    folder = Path(__file__).parent
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=40"]
    command += ["--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    inside = ["git", "-C", str(folder), "ls-files", "--error-unmatch", __file__]
    tracked = subprocess.run(inside, capture_output=True, check=False).returncode == 0
    return done.stdout.strip() if tracked else None
