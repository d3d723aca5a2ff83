"""How a run was made: settings, data, versions, git commit, host; and how to repeat it.

settings.json     the resolved settings
provenance.json   git commit, versions, data, host, command; one entry for every session
repeat.yaml       the settings for Hydra:
                  mace-train train --config-dir RUN --config-name repeat output=NEW
"""

import json
import logging
import platform
import socket
import subprocess
import sys
from dataclasses import asdict
from datetime import datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from mace_train import __version__
from mace_train.atomic_files import write_text
from mace_train.train.run import Run

LOGGER = logging.getLogger("mace_train")
_LIBRARIES = ("torch", "numpy", "ase", "h5py", "vesin", "hydra-core", "safetensors", "schedulefree")
_DEFAULTS = """\
# mace-train train --config-dir {folder} --config-name repeat output=NEW
# made on {ranks} ranks with mace-train {version}, git {git}, data {data}
defaults:
  - train_schema
  - hydra: quiet
  - override hydra/job_logging: none
  - override hydra/hydra_logging: none
  - _self_
"""


def write_record(run: Run) -> None:
    """Write the three files; the settings of this session replace those before."""
    settings = asdict(run.settings)
    write_text(run.output / "settings.json", json.dumps(settings, indent=1) + "\n")
    facts = provenance()
    session = {
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "from_step": run.progress.step,
        "ranks": run.world.size,
        "dataset_hash": run.statistics.dataset_hash,
        "valid_hash": run.valid_hash,
        **facts,
    }
    sessions = [*_sessions(run.output / "provenance.json"), session]
    write_text(run.output / "provenance.json", json.dumps(sessions, indent=1) + "\n")
    settings |= {"restart_latest": False, "data_dir": str(Path(run.settings.data_dir).resolve())}
    head = _DEFAULTS.format(
        folder=run.output,
        ranks=run.world.size,
        version=facts["mace_train"],
        git=facts["git"],
        data=run.statistics.dataset_hash,
    )
    write_text(run.output / "repeat.yaml", head + OmegaConf.to_yaml(OmegaConf.create(settings)))


def _sessions(path: Path) -> list[dict[str, Any]]:
    """Sessions before this one; none where a crash cut the file short."""
    try:
        return list(json.loads(path.read_text()))
    except FileNotFoundError:
        return []
    except ValueError:
        LOGGER.warning("%s cannot be read; a new file replaces it", path)
        return []


@cache
def provenance() -> dict[str, Any]:
    """Facts about this program and this machine; JSON only."""
    return {
        "mace_train": __version__,
        "git": git_commit(),
        "python": platform.python_version(),
        "libraries": {
            name: found for name in _LIBRARIES if (found := installed_version(name)) is not None
        },
        "cuda": torch.version.cuda,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "host": socket.gethostname(),
        "command": sys.argv,
    }


def installed_version(name: str) -> str | None:
    """The version of a library; None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """The commit of the checkout this program runs from, ``-dirty`` if changed; None outside."""
    folder = Path(__file__).parent
    git = ["git", "--no-optional-locks", "-C", str(folder)]  # changes nothing in the checkout
    name = [*git, "describe", "--always", "--abbrev=40", "--exclude=*"]
    changed = [*git, "status", "--porcelain", "--untracked-files=no"]
    try:
        commit, changes = (
            subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout
            for command in (name, changed)
        )
    except (OSError, subprocess.SubprocessError):
        return None
    inside = [*git, "ls-files", "--error-unmatch", __file__]
    tracked = subprocess.run(inside, capture_output=True, check=False).returncode == 0
    return commit.strip() + ("-dirty" if changes else "") if tracked else None
