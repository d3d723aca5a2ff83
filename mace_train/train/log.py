"""Where the numbers of a run go: console, metrics.jsonl, metrics.csv, plot, wandb, TensorBoard.

Only rank 0 makes a MetricsLog. JSON lines are the record (complete lines, flushed), the CSV is
their table for spreadsheets, learning.png their plot (drawn at most once a minute, and at the end),
and train.log keeps what the console shows.
"""

import csv
import json
import logging
import math
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from mace_train.errors import InputError
from mace_train.settings import LoggerSettings

LOGGER = logging.getLogger("mace_train")
CSV_COLUMNS = (
    "epoch",
    "step",
    "stage",
    "lr",
    "train_loss",
    "valid_loss",
    "valid_energy_rmse_eV_per_atom",
    "valid_forces_rmse_eV_per_A",
    "valid_stress_rmse_eV_per_A3",
    "grad_norm",
    "atoms_per_s",
    "structures_per_s",
    "edges_per_s",
    "structures",
    "imbalance",
    "straggler",
    "data_s",
    "compute_s",
    "communication_s",
    "optimizer_s",
    "memory_MB",
    "noise_scale",
    "n_skipped",
    "epoch_s",
    "total_s",
    "time_to_go_s",
)

_SECONDS_BETWEEN_PLOTS = 60.0


class MetricsLog:
    """Writes one record per epoch to files, and to wandb and TensorBoard if the settings say so."""

    def __init__(
        self, settings: LoggerSettings, output: Path, name: str, config: dict[str, Any]
    ) -> None:
        self._settings, self._output = settings, output
        self._at_close: list[Callable[[], None]] = []
        self._json = output / "metrics.jsonl"
        self._csv = output / "metrics.csv"
        self._wandb = _start_wandb(settings, output, name, config) if settings.wandb else None
        self._board: Any = None
        self._name, self._drawn = name, time.monotonic()
        self._text = logging.FileHandler(output / "train.log")
        LOGGER.addHandler(self._text)

    def on_close(self, action: Callable[[], None]) -> None:
        """Call ``action`` when the log is closed."""
        self._at_close.append(action)

    def keep_until(self, epoch: int, step: int) -> None:
        """Drop records after ``epoch`` and ``step``, which a resumed run will write again."""
        kept = [record for record in self.records() if record["epoch"] <= epoch]
        temporary = self._json.with_name(f".{self._json.name}.tmp")
        temporary.write_text("".join(_line(record) for record in kept))
        os.replace(temporary, self._json)
        self._write_csv(kept)
        if self._settings.tensorboard:
            self._board = _start_tensorboard(self._output, step + 1)

    def records(self) -> list[dict[str, Any]]:
        """All records so far; an incomplete last line, after a kill, is skipped."""
        if not self._json.exists():
            return []
        lines = self._json.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def write(self, record: dict[str, Any]) -> None:
        """Append one record; its values are numbers or strings."""
        with open(self._json, "a") as handle:
            handle.write(_line(record))
        if not self._csv.exists():
            self._write_csv([])
        with open(self._csv, "a", newline="") as handle:
            csv.DictWriter(handle, CSV_COLUMNS, extrasaction="ignore").writerow(record)
        numbers = {k: v for k, v in record.items() if isinstance(v, (int, float))}
        if self._wandb is not None:
            self._wandb.log(numbers)
        if self._board is not None:
            for key, value in numbers.items():
                self._board.add_scalar(key, value, record["step"])
        if time.monotonic() - self._drawn > _SECONDS_BETWEEN_PLOTS:
            self._draw()

    def _draw(self) -> None:
        from mace_train.train.learning_curves import draw_learning  # a second that other ranks save

        records = self.records()
        if records:
            draw_learning({self._name: records}, self._output / "learning.png")
        self._drawn = time.monotonic()

    def _write_csv(self, records: list[dict[str, Any]]) -> None:
        with open(self._csv, "w", newline="") as handle:
            writer = csv.DictWriter(handle, CSV_COLUMNS, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(records)

    def close(self, exit_code: int = 0) -> None:
        """Flush and finish; a non-zero ``exit_code`` marks the wandb run as failed."""
        self._draw()
        LOGGER.removeHandler(self._text)
        self._text.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=exit_code)
        if self._board is not None:
            self._board.close()
        for action in self._at_close:
            action()


def _line(record: dict[str, Any]) -> str:
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in record.items()
    }
    return json.dumps(finite, allow_nan=False) + "\n"


def _start_wandb(settings: LoggerSettings, output: Path, name: str, config: dict[str, Any]) -> Any:
    try:
        import wandb
    except ImportError:
        raise InputError(
            "logger.wandb=true but wandb is not installed; pip install wandb"
        ) from None
    remembered = output / "wandb_id"  # a resumed training continues the same wandb run
    if not remembered.exists():
        remembered.write_text(secrets.token_hex(4))
    try:
        run = wandb.init(
            project=settings.wandb_project,
            entity=settings.wandb_entity,
            name=settings.wandb_name or name,
            id=remembered.read_text().strip(),
            resume="allow",
            dir=str(output),
            mode=cast(Any, settings.wandb_mode),
            config=config,
        )
        run.define_metric("step")  # not wandb's own count, which a resumed run could not repeat
        run.define_metric("*", step_metric="step")
        return run
    except wandb.Error as error:
        raise InputError(
            f"logger.wandb_mode={settings.wandb_mode}: wandb cannot start ({error}); run "
            "`wandb login`, or use logger.wandb_mode=offline and `wandb sync` later"
        ) from None


def _start_tensorboard(output: Path, purge_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError(
            "logger.tensorboard=true but tensorboard is not installed; "
            "pip install 'mace-train[loggers]'"
        ) from None
    return SummaryWriter(str(output / "tensorboard"), purge_step=purge_step)


def rmse_text(errors: dict[str, Any]) -> str:
    """RMSEs of a row of an error table in meV, meV/Å and meV/Å^3, as far as it has them."""
    shown = {
        "energy_rmse_eV_per_atom": "E {:.2f} meV/atom",
        "forces_rmse_eV_per_A": "F {:.1f} meV/Å",
        "stress_rmse_eV_per_A3": "S {:.2f} meV/Å^3",
    }
    return "  ".join(
        text.format(1000 * errors[key]) for key, text in shown.items() if key in errors
    )


def epoch_line(record: dict[str, Any], max_num_epochs: int) -> str:
    """The console's line about one epoch."""
    parts = [
        f"epoch {record['epoch'] + 1}/{max_num_epochs}",
        f"loss {record['train_loss']:.4g}",
    ]
    if record.get("valid_loss") is not None:
        parts.append(f"valid {record['valid_loss']:.4g}")
        errors = {key.removeprefix("valid_"): value for key, value in record.items()}
        parts.append(f"RMSE {rmse_text(errors)}")
    parts += [
        f"{record['atoms_per_s']:.0f} atoms/s",
        f"imbalance {record['imbalance']:.3f}",
        f"{_duration(record['time_to_go_s'])} to go",
    ]
    return "  ".join(parts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
