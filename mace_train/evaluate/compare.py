"""``mace-train compare RUN RUN``: several trainings side by side, as a table and as curves."""

import json
import logging
from pathlib import Path
from typing import Any

from rich.table import Table

from mace_train.atomic_files import written_together
from mace_train.console import Console
from mace_train.errors import InputError
from mace_train.folders import make_folder
from mace_train.json_files import read_json
from mace_train.settings import CompareSettings
from mace_train.train.epoch_records import checked_epoch_record
from mace_train.train.learning_curves import draw_learning
from mace_train.train.log import read_records

LOGGER = logging.getLogger("mace_train")
_NOT_COMPARED = ("output", "name", "restart_latest", "logger.", "cluster.", "checkpoints.")


def compare(settings: CompareSettings) -> list[dict[str, Any]]:
    """Print the table, write compare.json and compare.png if asked; one row per run."""
    runs = _named([Path(run) for run in settings.runs])
    records = {name: read_metrics(path) for name, path in runs.items()}
    rows = [_row(name, records[name]) for name in runs]
    different = _different_settings({name: _settings(path) for name, path in runs.items()})
    _print(rows, different)
    if settings.output is not None:
        folder = Path(settings.output)
        make_folder("output", folder)
        content = {"runs": rows, "different_settings": different}
        with written_together(folder) as new:
            (new / "compare.json").write_text(json.dumps(content, indent=1) + "\n")
            draw_learning(records, new / "compare.png")
        LOGGER.info("wrote %s and compare.json beside it", folder / "compare.png")
    return rows


def _named(paths: list[Path]) -> dict[str, Path]:
    """Runs by the shortest end of their paths that tells them apart."""
    for depth in range(1, 1 + max(len(path.parts) for path in paths)):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(paths):
            return dict(zip(names, paths, strict=True))
    raise InputError(f"compare: {paths[0]} is given twice; name different runs")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The epochs of the training in folder ``path``; ``InputError`` if there are none."""
    file = path / "metrics.jsonl"
    if not file.is_file():
        raise InputError(f"{path}: no metrics.jsonl; give the output folder of a training")
    records = read_records(file, checked_epoch_record)
    if not records:
        raise InputError(f"{path}: metrics.jsonl holds no epoch yet; wait for the first one")
    return records


def _settings(path: Path) -> dict[str, Any]:
    file = path / "settings.json"
    remedy = "remove or restore it"
    return flat(read_json(file, dict, remedy)) if file.is_file() else {}


def flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level of dotted names."""
    result: dict[str, Any] = {}
    for name, value in settings.items():
        nested = isinstance(value, dict)
        result |= flat(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return result


def _different_settings(settings: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Settings that are not the same in all runs, by name and run."""
    names = sorted({name for one in settings.values() for name in one})
    table = {name: {run: one.get(name) for run, one in settings.items()} for name in names}
    return {
        name: values
        for name, values in table.items()
        if not name.startswith(_NOT_COMPARED) and len({json.dumps(v) for v in values.values()}) > 1
    }


def best_epoch(records: list[dict[str, Any]]) -> dict[str, Any]:
    """The epoch of the lowest validation loss in the last stage; without validation the last."""
    validated = [record for record in records if record.get("valid_loss") is not None]
    stages = [record["stage"] for record in validated]
    validated = [r for r in validated if r["stage"] == stages[-1]]  # losses of one stage
    return min(validated, key=lambda record: record["valid_loss"], default=records[-1])


def _row(name: str, records: list[dict[str, Any]]) -> dict[str, Any]:
    """The best epoch of a run, and its speed."""
    best = best_epoch(records)
    seconds = sum(record["epoch_s"] for record in records)
    n_structures = sum(record["structures"] for record in records)
    errors = {key: value for key, value in best.items() if key.startswith("valid_")}
    stragglers = [r["straggler"] for r in records if isinstance(r.get("straggler"), float)]
    return {
        "name": name,
        "epochs": len(records),
        "steps": records[-1]["step"],
        "best_epoch": best["epoch"] + 1,
        "train_loss": best["train_loss"],
        **errors,
        "structures_per_s": n_structures / max(seconds, 1e-9),
        "straggler": sum(stragglers) / len(stragglers) if stragglers else None,
        "total_s": records[-1]["total_s"],
    }


def _print(rows: list[dict[str, Any]], different: dict[str, dict[str, Any]]) -> None:
    """One column per run; the settings that differ below."""
    keys = sorted({key for row in rows for key in row} - {"name"}, key=_order(rows))
    table = Table("", *(row["name"] for row in rows))
    for key in keys:
        table.add_row(key.replace("valid_", ""), *(_text(row.get(key)) for row in rows))
    if different:
        table.add_section()
    for name, values in different.items():
        table.add_row(name, *(_text(values[row["name"]]) for row in rows))
    Console().print(table)


def _order(rows: list[dict[str, Any]]) -> Any:
    order = [key for row in rows for key in row]
    return order.index


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.5g}" if isinstance(value, float) else str(value)
