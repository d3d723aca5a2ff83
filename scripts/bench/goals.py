"""Rows of benchmarks: what was measured of ours and of a peer, and the ratio that is the goal."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def row(name: str, ours: float, peers: Mapping[str, float], at_least: float, **more: Any) -> Row:
    """One row; the best peer counts. Without a peer the ratio is None: the goal is not reached."""
    best = min(peers, key=lambda peer: peers[peer]) if peers else None
    return {
        "name": name,
        "ours": ours,
        "peer": None if best is None else peers[best],
        "peer_name": best or "none that ran",
        "peers": dict(peers),
        "ratio": None if best is None else peers[best] / ours,
        "at_least": at_least,
        **more,
    }


def reaches(row: Mapping[str, Any]) -> bool:
    """Whether a row of any benchmark reaches its goal."""
    if "at_most" in row:
        return bool(row["ours"] <= row["at_most"])
    return row["ratio"] is not None and bool(row["ratio"] >= row["at_least"])


def describe(row: Mapping[str, Any]) -> str:
    """A row as a line."""
    ratio = "no ratio" if row["ratio"] is None else f"ratio {row['ratio']:.3g}"
    peer = "" if row["peer"] is None else f" {row['peer']:.3g}"
    return (
        f"{row['name']}: ours {row['ours']:.3g}, {row.get('peer_name', 'peer')}{peer}, {ratio} "
        f"(goal {row['at_least']:.3g})"
    )


def write(
    path: Path | None, rows: Sequence[Mapping[str, Any]], *, complete: bool = True, **more: Any
) -> None:
    """Write rows, and whatever else was found, if there is a path.

    Not ``complete`` is what a benchmark has so far, should it be stopped before its end.
    """
    if path is not None:
        found = {"rows": list(rows), "complete": complete, **more}
        path.write_text(json.dumps(found, indent=1) + "\n")


def read(path: Path) -> dict[str, Any]:
    """What a benchmark wrote, whether a list of rows or rows with more."""
    found = json.loads(path.read_text())
    found = {"rows": found} if isinstance(found, list) else dict(found)
    return {"complete": True, **found}
