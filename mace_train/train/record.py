"""What a run's folder says of how it was made: settings, data, program; and how to repeat it.

settings.json     the resolved settings
provenance.json   git commit, versions, data, host, command; one entry for every session
repeat.yaml       the settings for Hydra:
                  mace-train train --config-dir RUN --config-name repeat output=NEW
"""

import json
import logging
import os
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from mace_train.train.provenance import provenance
from mace_train.train.run import Run

LOGGER = logging.getLogger("mace_train")
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
    """Write the three files; the newest session's settings replace those before."""
    settings = asdict(run.settings)
    _write(run.output / "settings.json", json.dumps(settings, indent=1) + "\n")
    facts = provenance()
    session = {
        "time": datetime.now().astimezone().isoformat(timespec="seconds"),
        "from_step": run.progress.step,
        "ranks": run.world.size,
        "dataset_hash": run.statistics.dataset_hash,
        "valid_hash": None if run.valid is None else run.valid.shards.dataset_hash,
        **facts,
    }
    sessions = [*_sessions(run.output / "provenance.json"), session]
    _write(run.output / "provenance.json", json.dumps(sessions, indent=1) + "\n")
    settings |= {"restart_latest": False, "data_dir": str(Path(run.settings.data_dir).resolve())}
    head = _DEFAULTS.format(
        folder=run.output,
        ranks=run.world.size,
        version=facts["mace_train"],
        git=facts["git"],
        data=run.statistics.dataset_hash,
    )
    _write(run.output / "repeat.yaml", head + OmegaConf.to_yaml(OmegaConf.create(settings)))


def _sessions(path: Path) -> list[dict[str, Any]]:
    """Sessions before this one; none where a crash cut the file short."""
    try:
        return list(json.loads(path.read_text()))
    except FileNotFoundError:
        return []
    except ValueError:
        LOGGER.warning("%s cannot be read and is begun anew", path)
        return []


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)
