"""All measurements that need a GPU, one after the other; an interrupted run continues.

    python scripts/bench/gpu/campaign.py --folder OUT [--minutes 9] [--pack OUT.tar.gz]
                                         [--openequivariance FOLDER]
    python scripts/bench/gpu/campaign.py --list
    python scripts/bench/gpu/campaign.py --folder OUT --rehearse     all of them, tiny, on a CPU

Each of the ``measurements`` runs in a process of its own with a limit of time. Its rows, exit code
and the end of its log stand in OUT/NAME.json, its log in OUT/NAME.log; one that fails or takes too
long is recorded so, and the next goes on. A later run continues with what has not been started;
--retry also takes what failed, --only NAME takes one measurement again. With --minutes no
measurement is started that would not fit, and none outlives that time: it is cut off and left for
the next run. After every measurement OUT/campaign.md is the section for kernels/RESULTS.md so far,
and --pack keeps the folder in one file as well, from which a run on another machine continues.

OpenEquivariance compiles an extension when it is imported, and again in every process where that
fails; so its folder is given apart, and is used only after the measurement that compiles it has
passed.

Exit code: 1 if a measurement failed or a row falls short (a rehearsal asks for no goals), 75 if all
is well but measurements are left, 0 if nothing is left.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

from campaign_report import (
    END_OF_LOG,
    is_wrong,
    markdown,
    records_of,
    rows_of,
    summary,
)
from goals import reaches, read
from measurements import OPENEQUIVARIANCE, ROOT, Measurement, measurements

LARGEST_LOG = 1 << 20
RESERVE_S = 10.0  # of the whole time, to write down what there is
EXIT_OK = (0, 1)  # of a benchmark that wrote its rows: 1 says that one falls short


@dataclass(frozen=True)
class Campaign:
    """Where the state is, and how measurements are run."""

    folder: Path
    rehearse: bool = False
    openequivariance: Path | None = None
    end: float = float("inf")  # on the clock of ``time.monotonic``
    pack: Path | None = None

    @property
    def left_s(self) -> float:
        """Seconds that measurements may still take."""
        return self.end - time.monotonic() - RESERVE_S


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is not done and fits, and print the table."""
    options = _options(arguments)
    chosen = [p for p in measurements() if not options.rehearse or p.rehearsal is not None]
    if options.list:
        for measurement in chosen:
            print(f"{measurement.name:22} {measurement.estimate_s:4} s of {measurement.limit_s} s")
        return 0
    campaign = Campaign(
        options.folder.resolve(),  # measurements run elsewhere
        options.rehearse,
        options.openequivariance and options.openequivariance.resolve(),
        time.monotonic() + 60 * options.minutes,
        options.pack,
    )
    names = [measurement.name for measurement in chosen]
    if options.only and options.only not in names:
        raise SystemExit(
            f"--only {options.only}: no such measurement; there are {', '.join(names)}"
        )
    prepare(campaign, names)
    wanted = [measurement for measurement in chosen if options.only in (None, measurement.name)]
    run_all(campaign, wanted, names, again=bool(options.only), retry=options.retry)
    records = records_of(campaign.folder, names)
    left = [name for name in names if name not in records]
    print(summary(records, left))
    return exit_code(records, left, rehearse=campaign.rehearse)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/gpu_campaign"))
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--only", metavar="NAME")
    parser.add_argument("--retry", action="store_true", help="also measurements that failed before")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, with tiny sizes")
    parser.add_argument("--pack", type=Path, metavar="FILE.tar.gz", help="the folder in one file")
    parser.add_argument("--openequivariance", type=Path, metavar="FOLDER", help="where it lies")
    return parser.parse_args(arguments)


def prepare(campaign: Campaign, names: Sequence[str]) -> None:
    """Make the folder, from the packed one if that is all there is; SystemExit if it is another."""
    folder = campaign.folder
    if not folder.exists() and campaign.pack is not None and campaign.pack.exists():
        with tarfile.open(campaign.pack) as packed:
            safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Python 3.11.4
            packed.extractall(folder, **safely)
    folder.mkdir(parents=True, exist_ok=True)
    for name, record in records_of(folder, names).items():
        if record["rehearsal"] != campaign.rehearse:
            kind = "a rehearsal" if record["rehearsal"] else "measurements"
            raise SystemExit(f"{folder}: {name} is from {kind}; give another --folder")


def run_all(
    campaign: Campaign,
    wanted: Sequence[Measurement],
    names: Sequence[str],
    *,
    again: bool = False,
    retry: bool = False,
) -> None:
    """Run every measurement that is not done and fits into the time."""
    for measurement in wanted:
        record = records_of(campaign.folder, [measurement.name]).get(measurement.name)
        if record is not None and not again and not (retry and is_wrong(record)):
            continue
        if measurement.estimate_s > campaign.left_s:
            print(
                f"{measurement.name}: some {measurement.estimate_s} s do not fit any more",
                flush=True,
            )
            continue
        if not _has_what_it_needs(campaign, measurement):
            print(f"{measurement.name}: needs --openequivariance FOLDER", flush=True)
            continue
        print(f"{measurement.name}: some {measurement.estimate_s} s", flush=True)
        found = run(campaign, measurement)
        if found is None:
            print(
                f"{measurement.name}: cut off at the end of the time, left for the next run",
                flush=True,
            )
            continue
        (campaign.folder / f"{measurement.name}.json").write_text(
            json.dumps(found, indent=1) + "\n"
        )
        print(f"{measurement.name}: {found['status']} after {found['seconds']:.0f} s", flush=True)
        records = records_of(campaign.folder, names)
        left = [name for name in names if name not in records]
        (campaign.folder / "campaign.md").write_text(markdown(records, left))
        if campaign.pack is not None:
            _pack(campaign.folder, campaign.pack)


def _has_what_it_needs(campaign: Campaign, measurement: Measurement) -> bool:
    return measurement.name != OPENEQUIVARIANCE or campaign.openequivariance is not None


def run(campaign: Campaign, measurement: Measurement) -> dict[str, Any] | None:
    """Run a measurement to its end or limit; None if only the time of the whole was too short."""
    rows_path = campaign.folder / f"{measurement.name}.rows"
    rows_path.unlink(missing_ok=True)
    template = measurement.rehearsal if campaign.rehearse else measurement.command
    assert template is not None
    places = {"{json}": str(rows_path), "{folder}": str(campaign.folder)}
    command = [_filled(word, places) for word in template]
    pictures = {path: path.stat().st_mtime_ns for path in campaign.folder.glob("*.png")}
    limit = min(float(measurement.limit_s), campaign.left_s)
    log = campaign.folder / f"{measurement.name}.log"
    start = time.monotonic()
    code = _run_command(command, log, limit, _environment(campaign, measurement))
    seconds = time.monotonic() - start
    if code is None and limit < measurement.limit_s:
        return None
    found = read(rows_path) if rows_path.exists() else {"rows": [], "complete": False}
    rows_path.unlink(missing_ok=True)
    status = "done"
    if code is None:
        status = f"stopped at its limit of {measurement.limit_s} s"
    elif not _came_to_its_end(measurement, code, found):
        status = "failed"
    new = [p.name for p in campaign.folder.glob("*.png") if pictures.get(p) != p.stat().st_mtime_ns]
    return {
        "name": measurement.name,
        "status": status,
        "exit": code,
        "seconds": seconds,
        "rehearsal": campaign.rehearse,
        "command": [*template],
        "rows": found.pop("rows"),
        "found": found,
        "pictures": new,
        "tail": log.read_text(errors="replace").splitlines()[-END_OF_LOG:],
    }


def _came_to_its_end(measurement: Measurement, code: int, found: dict[str, Any]) -> bool:
    """Rows that fall short are an end as well; an error that Python reports is not."""
    if not measurement.rows or not found["rows"]:
        return code == 0 and (found["complete"] or not measurement.rows)
    return code in EXIT_OK and bool(found["complete"])


def _filled(word: str, places: dict[str, str]) -> str:
    for name, place in places.items():
        word = word.replace(name, place)
    return word


def _environment(campaign: Campaign, measurement: Measurement) -> dict[str, str]:
    """This checkout first; OpenEquivariance once it is known to load."""
    paths = [str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    if measurement.with_openequivariance and campaign.openequivariance is not None:
        built = records_of(campaign.folder, [OPENEQUIVARIANCE]).get(OPENEQUIVARIANCE)
        if measurement.name == OPENEQUIVARIANCE or (built is not None and not is_wrong(built)):
            paths.append(str(campaign.openequivariance))
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _run_command(
    command: Sequence[str], log: Path, limit_s: float, environment: dict[str, str]
) -> int | None:
    """The exit code; None if the command, with all that it started, had to be stopped."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
            env=environment | {"PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(timeout=limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _stop(process)
    if log.stat().st_size > LARGEST_LOG:
        log.write_bytes(log.read_bytes()[-LARGEST_LOG:])
    return code


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End what is left of the process and of those that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def _pack(folder: Path, path: Path) -> None:
    """All files of the folder, as one; whole at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    with tarfile.open(temporary, "w:gz") as packed:
        for file in sorted(folder.iterdir()):
            if file.is_file() and file != temporary and file != path:
                packed.add(file, file.name)
    temporary.replace(path)


def exit_code(records: dict[str, Any], left: Sequence[str], *, rehearse: bool) -> int:
    """1 for a failure or a row that falls short, 75 (EX_TEMPFAIL) if some are left, or 0."""
    if any(is_wrong(record) for record in records.values()):
        return 1
    if not rehearse and not all(reaches(row) for row in rows_of(records)):
        return 1
    return os.EX_TEMPFAIL if left else 0


if __name__ == "__main__":
    sys.exit(main())
