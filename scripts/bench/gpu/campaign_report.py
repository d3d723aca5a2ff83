"""What a campaign of measurements on a GPU found: as a table, and as a section for RESULTS.md."""

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from goals import reaches

ROOT = Path(__file__).resolve().parents[3]
Record = dict[str, Any]
END_OF_LOG = 25  # lines


def records_of(folder: Path, names: Sequence[str]) -> dict[str, Record]:
    """What is known of the measurements that were started, by name."""
    paths = {name: folder / f"{name}.json" for name in names}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def rows_of(records: Mapping[str, Record]) -> list[dict[str, Any]]:
    """The rows of all measurements; one without rows gives a row, which is reached if it passed."""
    rows: list[dict[str, Any]] = []
    for name, record in records.items():
        if record["rows"]:
            rows += [row | {"measurement": name} for row in record["rows"]]
        elif record["status"] == "done":
            rows.append(
                {"measurement": name, "name": f"{name} passes", **_passed(record["exit"] == 0)}
            )
    return rows


def _passed(passed: bool) -> dict[str, Any]:
    return {
        "ours": float(passed),
        "peer": None,
        "peer_name": "",
        "ratio": float(passed),
        "at_least": 1.0,
    }


def is_wrong(record: Record) -> bool:
    """Whether a measurement came to no proper end, or a test in it failed."""
    return record["status"] != "done" or (not record["rows"] and record["exit"] != 0)


def summary(records: Mapping[str, Record], left: Sequence[str]) -> str:
    """Short, for a terminal: rows, then what failed and what is left."""
    lines = []
    for row in rows_of(records):
        mark = "  " if reaches(row) else "! "
        lines.append(mark + " | ".join(_cells(row)))
    for name, record in records.items():
        if is_wrong(record):
            lines.append(f"! {name}: {record['status']}, exit {record['exit']}")
    if left:
        lines.append(f"left: {', '.join(left)}")
    return "\n".join(lines)


def markdown(records: Mapping[str, Record], left: Sequence[str]) -> str:
    """The section for kernels/RESULTS.md."""
    facts = records.get("facts", {}).get("found", {}).get("facts", {})
    date, device = facts.get("date", "no date"), facts.get("device", "no GPU")
    parts = [f"## {date}: measured on {device}"]
    parts.append(", ".join(f"{name} {value}" for name, value in facts.items() if name != "date"))
    table = ["| measured | ours | peer | ratio | goal |", "|---|---|---|---|---|"]
    for row in rows_of(records):
        measured, ours, peer, ratio, goal = _cells(row)
        ratio = ratio if reaches(row) else f"**{ratio}**"
        table.append(f"| {measured} | {ours} | {peer} | {ratio} | {goal} |")
    parts.append("\n".join(table))
    parts += _not_compared(records)
    if any((record.get("pictures") or []) for record in records.values()):
        pictures = [name for record in records.values() for name in record.get("pictures") or []]
        parts.append("\n".join(f"![time against size and bound]({name})" for name in pictures))
    for name, record in records.items():
        if is_wrong(record):
            tail = "\n".join(f"    {line}" for line in record["tail"])
            parts.append(f"`{name}` {record['status']}, exit {record['exit']}:\n\n{tail}")
    if left:
        parts.append(f"Not measured: {', '.join(left)}.")
    commands = [
        f"    {_readable(record['command'])}  # {name}, {record['seconds']:.0f} s"
        for name, record in records.items()
    ]
    parts.append("Commands:\n\n" + "\n".join(commands))
    return "\n\n".join(part for part in parts if part) + "\n"


def _cells(row: Mapping[str, Any]) -> list[str]:
    peer = "" if row.get("peer") is None else f"{row['peer']:.4g}"
    name = row.get("peer_name") or ""
    if "at_most" in row:
        return [row["name"], f"{row['ours']:.4g}", "", "", f"at most {row['at_most']:g}"]
    ratio = "not measured" if row["ratio"] is None else f"{row['ratio']:.3g}"
    return [row["name"], f"{row['ours']:.4g}", f"{peer} {name}".strip(), ratio, _goal(row)]


def _goal(row: Mapping[str, Any]) -> str:
    return f"{row['at_least']:.3g}"


def _not_compared(records: Mapping[str, Record]) -> list[str]:
    """Peers that did not run, with the reason, one line for each reason."""
    cases: dict[tuple[str, str], list[str]] = {}
    for record in records.values():
        found = record.get("found", {})
        models = [{"case": name, **more} for name, more in found.get("models", {}).items()]
        for case in [*found.get("cases", []), *models]:
            for peer, reason in case.get("missing", {}).items():
                cases.setdefault((peer, reason), []).append(case["case"])
    return [
        f"Not compared with {peer} ({reason}): {', '.join(names)}."
        for (peer, reason), names in cases.items()
    ]


def _readable(command: Sequence[str]) -> str:
    """Without the places of this machine."""
    words = ["python" if word == sys.executable else word for word in command]
    return shlex.join(word.replace(f"{ROOT}{os.sep}", "") for word in words)
