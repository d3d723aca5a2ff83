"""Build the embedded example data: small H, C, N, O structures labelled with GFN1-xTB.

    python scripts/make_example_data.py [--output DIR] [--check] [--workers 2]

writes train.extxyz.gz and test.extxyz.gz and prints the table of the data set's README; `--check`
writes nothing, compares with the files in DIR and exits with 1 on a difference. Every structure
belongs to a named trajectory, and the name seeds its random stream, so a subset can be rebuilt
alone: `build(["molecule-CH3OH"])`. Structures repeat bit for bit, labels to 1e-6 eV; the reasons
are in example_data/dynamics.py. Cost: 8.5 minutes of CPU time over 2 processes. Reference: the
extended XYZ format as in ASE (Larsen et al., J. Phys. Condens. Matter 29, 273002 (2017)).
"""

from __future__ import annotations

import argparse
import gzip
import importlib.metadata
import io
import multiprocessing
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and tblite: processes, not threads

import ase.io
import numpy as np
from ase import Atoms
from example_data.catalogue import trajectories
from example_data.dynamics import METHOD, Trajectory, run
from rich.progress import track

FOLDER = Path(__file__).resolve().parents[1] / "mace_train" / "example_data"
FILES = {"train": "train.extxyz.gz", "test": "test.extxyz.gz"}
LABELS = ("REF_energy", "REF_forces", "REF_stress")
TOLERANCE = 1e-6  # eV, eV/Å and eV/Å^3

Frames = dict[str, list[Atoms]]  # by split
T = TypeVar("T")


def chosen(subset: Sequence[str] | None) -> list[Trajectory]:
    """Return the named trajectories (None: all of them) in the order of the files."""
    known = trajectories()
    unknown = sorted(set(subset or ()) - set(known))
    if unknown:
        raise ValueError(f"no trajectory is called {unknown}; e.g. {list(known)[4]!r} is one")
    return [known[name] for name in known if subset is None or name in subset]


def with_progress(parts: Iterable[T], total: int) -> Iterator[T]:
    """Yield the parts behind a progress bar on stderr."""
    from rich.console import Console

    yield from track(parts, "labelling trajectories", total, console=Console(stderr=True))


def build(subset: Sequence[str] | None = None, *, workers: int = 1) -> Frames:
    """Return {"train": [...], "test": [...]}, labelled; the result does not depend on workers."""
    wanted = chosen(subset)
    longest_first = sorted(wanted, key=lambda trajectory: -trajectory.cost)
    if workers == 1:
        results = list(with_progress(map(run, longest_first), len(wanted)))
    else:
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            parts = pool.imap(run, longest_first, chunksize=1)
            results = list(with_progress(parts, len(wanted)))
    frames_of = {t.name: frames for t, frames in zip(longest_first, results, strict=True)}
    built: Frames = {split: [] for split in FILES}
    for trajectory in wanted:
        built[trajectory.split].extend(frames_of[trajectory.name])
    return built


def write(frames: Frames, folder: Path) -> None:
    """Write one gzip-compressed extended XYZ file per split (no time stamp, no file name)."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, structures in frames.items():
        text = io.StringIO()
        ase.io.write(text, structures, format="extxyz")
        data = gzip.compress(text.getvalue().encode(), compresslevel=9, mtime=0)
        (folder / FILES[split]).write_bytes(data)


def read(folder: Path) -> Frames:
    """Return the structures of both files, in their order."""
    frames: Frames = {}
    for split, name in FILES.items():
        text = gzip.decompress((folder / name).read_bytes()).decode()
        frames[split] = ase.io.read(io.StringIO(text), ":", format="extxyz")
    return frames


def labels(atoms: Atoms) -> dict[str, np.ndarray]:
    """Return the labels that a structure has, by key."""
    every = atoms.info | atoms.arrays
    return {key: np.asarray(every[key]) for key in LABELS if key in every}


def difference(mine: Atoms, theirs: Atoms) -> str | None:
    """Return what differs between two structures (bitwise) or their labels (1e-6), or None."""
    for key in ("trajectory", "frame", "config_type"):
        if mine.info[key] != theirs.info.get(key):
            return f"{key} {theirs.info.get(key)} instead of {mine.info[key]}"
    for name in ("numbers", "positions", "cell", "pbc"):
        if not np.array_equal(getattr(mine, name), getattr(theirs, name)):
            return f"{name} differ"
    ours, other = labels(mine), labels(theirs)
    if ours.keys() != other.keys():
        return f"labels {sorted(other)} instead of {sorted(ours)}"
    for key, value in ours.items():
        worst = float(np.abs(value - other[key]).max())
        if not worst <= TOLERANCE:
            return f"{key} differs by {worst:.2e}"
    return None


def check(built: Frames, shipped: Frames) -> list[str]:
    """Return one line per difference between two builds (empty: equal)."""
    problems = []
    for split, mine in built.items():
        theirs = shipped[split]
        if len(mine) != len(theirs):
            problems.append(f"{split}: {len(theirs)} structures instead of {len(mine)}")
        for i, (a, b) in enumerate(zip(mine, theirs, strict=False)):
            problem = difference(a, b)
            if problem:
                problems.append(f"{split}, structure {i} ({a.info['trajectory']}): {problem}")
    return problems


def row(split: str, config_type: str, structures: Sequence[Atoms]) -> str:
    """Return one line of the table: counts, sizes and forces of a group of structures."""
    sizes = np.array([len(atoms) for atoms in structures])
    forces = np.concatenate([atoms.arrays["REF_forces"] for atoms in structures])
    cells = [
        split,
        config_type,
        f"{len(structures)}",
        f"{sizes.sum()}",
        f"{sizes.min()} / {np.median(sizes):g} / {sizes.max()}",
        f"{sum('REF_stress' in atoms.info for atoms in structures)}",
        f"{np.sqrt((forces**2).mean()):.3f}",
        f"{np.abs(forces).max():.2f}",
    ]
    return "| " + " | ".join(cells) + " |"


def table(frames: Frames) -> list[str]:
    """Return the lines of the README's table, one per split and config_type."""
    lines = [
        "| file | config_type | structures | atoms | atoms min / median / max | with stress "
        "| force RMS (eV/Å) | largest component (eV/Å) |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for split, structures in frames.items():
        for kind in dict.fromkeys(atoms.info["config_type"] for atoms in structures):
            group = [atoms for atoms in structures if atoms.info["config_type"] == kind]
            lines.append(row(split, kind, group))
        lines.append(row(split, "all", structures))
    return lines


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=FOLDER, metavar="DIR")
    parser.add_argument("--check", action="store_true", help="compare with DIR, write nothing")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    options = parser.parse_args()
    built = build(workers=options.workers)
    if options.check:
        problems = check(built, read(options.output))
        print("\n".join(problems) or f"equal: {sum(map(len, built.values()))} structures")
        return 1 if problems else 0
    write(built, options.output)
    versions = (f"{name} {importlib.metadata.version(name)}" for name in ("tblite", "ase", "numpy"))
    print("\n".join([*table(built), f"{METHOD} with " + ", ".join(versions)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
