"""``mace-train sweep FOLDER``: jobs by validation error, and the effect of each setting.

Reads what the jobs have written so far, so it may run at any time, while some still run.
"""

import csv
import json
import logging
import math
from pathlib import Path
from typing import Any

from rich.table import Table

from mace_train.atomic_files import written_together
from mace_train.checks import did_you_mean
from mace_train.console import Console
from mace_train.errors import InputError
from mace_train.evaluate.compare import best_epoch, read_metrics
from mace_train.folders import existing_folder, is_locked
from mace_train.settings import SweepSettings
from mace_train.sweep.effects import draw_effects
from mace_train.sweep.job_status import job_folders, read_record

LOGGER = logging.getLogger("mace_train")


def summarise(settings: SweepSettings) -> list[dict[str, Any]]:
    """Print the table, write sweep.json, sweep.csv and sweep.png; one row per job, best first."""
    folder = existing_folder("folder", settings.folder)
    folders = job_folders(folder)
    if not folders:
        raise InputError(
            f"folder={folder} holds no jobs of a sweep; give the output of `mace-train train "
            "--multirun`, of slurm/sweep.sbatch or of `mace-train tune`"
        )
    jobs = [_job(path, settings.by) for path in folders]
    names = _different(jobs)
    jobs.sort(key=lambda job: (math.inf if job["error"] is None else job["error"], job["job"]))
    _print(jobs, names, settings.by)
    rows = [job | {"settings": {name: job["settings"].get(name) for name in names}} for job in jobs]
    written = ["sweep.json", "sweep.csv"]
    with written_together(folder) as new:
        (new / "sweep.json").write_text(json.dumps({"by": settings.by, "jobs": rows}, indent=1))
        _write_csv(new / "sweep.csv", rows, names, settings.by)
        if names and any(job["error"] is not None for job in jobs):
            draw_effects(rows, names, settings.by, new / "sweep.png")
            written.append("sweep.png")
    LOGGER.info("wrote %s to %s", ", ".join(written), folder)
    return rows


def _job(path: Path, by: str) -> dict[str, Any]:
    """Settings, state and best epoch of one job."""
    record = read_record(path) or {}
    job: dict[str, Any] = {
        "job": path.name,
        "state": record["state"],
        "settings": dict(word.split("=", 1) for word in record["overrides"] if "=" in word),
        "epochs": 0,
        "best_epoch": None,
        "error": None,
        "why": record.get("error"),
    }
    if job["state"] == "running" and not is_locked(path):
        job["state"] = "killed or starting"
        job["why"] = _last_line(record)
    if (path / "metrics.jsonl").is_file():
        records = read_metrics(path)
        best = best_epoch(records)
        job |= {"epochs": len(records), "best_epoch": best["epoch"] + 1}
        if not isinstance(best.get(by), (int, float, type(None))) or by not in best:
            known = [key for key in best if key.startswith("valid_")]
            raise InputError(
                f"by={by}: the jobs have no such error{did_you_mean(by, known)}; they have: "
                f"{', '.join(known)}"
            )
        job["error"] = best[by]
    return job


def _last_line(record: dict[str, Any]) -> str:
    """Last line of the log of a job that did not finish, or where to look."""
    where = f"process {record['process']} on {record['host']}"
    where += f", Slurm job {record['slurm_job']}" if "slurm_job" in record else ""
    log = Path(record["log"]) if record.get("log") else None
    if log is None or not log.is_file():
        return where
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f"{lines[-1].strip()} ({log})" if lines else f"{where} ({log})"


def _different(jobs: list[dict[str, Any]]) -> list[str]:
    """Settings that are not the same in all jobs, in the order of the command line."""
    names = list(dict.fromkeys(name for job in jobs for name in job["settings"]))
    return [name for name in names if len({job["settings"].get(name) for job in jobs}) > 1]


def _print(jobs: list[dict[str, Any]], names: list[str], by: str) -> None:
    table = Table("job", *names, by, "best epoch", "epochs", "state")
    for job in jobs:
        values = [str(job["settings"].get(name, "")) for name in names]
        error = "" if job["error"] is None else f"{job['error']:.5g}"
        best = "" if job["best_epoch"] is None else str(job["best_epoch"])
        table.add_row(job["job"], *values, error, best, str(job["epochs"]), job["state"])
    console = Console()
    console.width = max(console.width, 100)
    console.print(table)
    for job in jobs:
        if job["why"] is not None:
            console.print(f"job {job['job']} {job['state']}: {job['why']}", markup=False)


def _write_csv(path: Path, rows: list[dict[str, Any]], names: list[str], by: str) -> None:
    with open(path, "w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["job", *names, by, "best_epoch", "epochs", "state", "why"])
        for row in rows:
            values = [row["settings"][name] for name in names]
            ends = [row[key] for key in ("error", "best_epoch", "epochs", "state", "why")]
            writer.writerow([row["job"], *values, *ends])
