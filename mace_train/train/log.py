"""Where the numbers of a run go: console, metrics.jsonl, metrics.csv, plot, wandb, TensorBoard.

Only rank 0 makes a MetricsLog. JSON lines are the record (complete lines, flushed), the CSV is
their table for spreadsheets, learning.png their plot (drawn at most once a minute, and at the end),
and train.log keeps what the console shows.
"""

import csv
import io
import json
import logging
import math
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from mace_train import interrupts
from mace_train.atomic_files import append_text, write_text
from mace_train.errors import system_error
from mace_train.settings import LoggerSettings
from mace_train.train.boards import Board, start_tensorboard, start_wandb

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
        self._boards: list[Board] = []
        self._name, self._drawn = name, time.monotonic()
        self._text = _LogFile(output / "train.log")
        LOGGER.addHandler(self._text)
        if settings.wandb:
            try:
                self._boards.append(start_wandb(settings, output, name, config))
            except BaseException:
                self._close_text()
                raise

    def on_close(self, action: Callable[[], None]) -> None:
        """Call ``action`` when the log is closed."""
        self._at_close.append(action)

    def keep_until(self, epoch: int, step: int) -> None:
        """Drop records after ``epoch`` and ``step``, which a resumed run will write again."""
        kept = [record for record in self.records() if record["epoch"] <= epoch]
        write_text(self._json, "".join(_line(record) for record in kept))
        self._write_csv(kept)
        if self._settings.tensorboard:
            self._boards.append(start_tensorboard(self._output, step + 1))

    def records(self) -> list[dict[str, Any]]:
        """All records so far; see ``read_records``."""
        return read_records(self._json)

    def write(self, record: dict[str, Any]) -> None:
        """Append one record; its values are numbers or strings."""
        append_text(self._json, _line(record))
        if self._csv.exists():
            append_text(self._csv, _csv_text([record], header=False))
        else:
            self._write_csv(self.records())
        numbers = {k: v for k, v in record.items() if isinstance(v, (int, float))}
        for board in self._boards:
            board.write(numbers)
        if time.monotonic() - self._drawn > _SECONDS_BETWEEN_PLOTS:
            self._draw()

    def _draw(self) -> None:
        """Draw the plot; where it cannot be written the training goes on without."""
        from mace_train.train.learning_curves import draw_learning  # a second that other ranks save

        try:
            records = self.records()
            if records:
                draw_learning({self._name: records}, self._output / "learning.png")
        except Exception as error:
            explained = system_error(error)
            if explained is None:
                raise
            LOGGER.warning("no plot of the learning curves: %s", explained)
        self._drawn = time.monotonic()

    def _write_csv(self, records: list[dict[str, Any]]) -> None:
        write_text(self._csv, _csv_text(records, header=True), durable=False)

    def close(self, exit_code: int = 0) -> None:
        """Flush and finish; a non-zero ``exit_code`` marks the wandb run as failed."""
        if not interrupts.received():  # it must end within a second
            self._draw()
        self._close_text()
        for board in self._boards:
            board.close(exit_code)
        for action in self._at_close:
            action()

    def _close_text(self) -> None:
        LOGGER.removeHandler(self._text)
        self._text.close()


class _LogFile(logging.FileHandler):
    """train.log; where it cannot be written, one line says so and the training goes on."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8")
        self._told = False

    def handleError(self, record: logging.LogRecord) -> None:
        """Say it once, elsewhere."""
        error = sys.exc_info()[1]
        if self._told or error is None:
            return
        self._told = True
        LOGGER.warning("no more lines in this file: %s", system_error(error, self.path) or error)

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.baseFilename)

    def close(self) -> None:
        """Close the file, of which a full disk takes no last line."""
        with suppress(OSError):
            super().close()


def _with_epoch(record: Any) -> dict[str, Any]:
    if not isinstance(record, dict) or type(record.get("epoch")) is not int:
        raise ValueError(f"{str(record)[:40]} is no record of an epoch")
    return record


def read_records(
    path: Path, checked: Callable[[Any], dict[str, Any]] = _with_epoch
) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, [] where there is none; ``checked`` raises ValueError.

    An incomplete last line, after a kill, is skipped; other lines that are none, after a loss of
    power, are skipped with a warning.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return []
    records, broken = [], []  # the latter as text
    for number, line in enumerate(lines[:-1], start=1):
        try:
            records.append(checked(json.loads(line)))
        except (ValueError, RecursionError) as error:
            broken.append(f"line {number} is damaged ({error})")
    if broken:
        LOGGER.warning("%s: %s and skipped (%d such)", path, broken[0], len(broken))
    return records


def _csv_text(records: list[dict[str, Any]], *, header: bool) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, CSV_COLUMNS, extrasaction="ignore")
    if header:
        writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def _line(record: dict[str, Any]) -> str:
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in record.items()
    }
    return json.dumps(finite, allow_nan=False) + "\n"


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
