"""Preprocessing of 1e4, 1e5 and 1e6 structures: time, memory of every process, one plot.

    python scripts/bench/data_scale.py --data FOLDER --output FOLDER [--sizes 1e4 1e5 1e6]
                                       [--workers 2] [--keep] [--limit 300]

Structures come from the real sets in FOLDER by supercells (of cells below 8 atoms), rattling with
0.05 Å and repetition, and are written to several extended XYZ files of different sizes, as users'
data are. The plot (scale.png) and the numbers (scale.json) go to the output folder. With a limit,
the script interrupts itself after so many seconds (exit code 75); the same command continues, as
preprocessing does, and times are sums over the parts. Sizes that scale.json has are not repeated.
Exit code 1 if a process needs more than 1.5 GB, or CPU time per structure grows by more than 30 %
from the smallest to the largest set.
"""

import argparse
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

SOURCES = (
    "botnet_3BPA/train_300K",
    "botnet_acac/train_600K",
    "qm7_qml/qm7_qml",
    "mattersim_bench/alexandria-random-1k",
    "mvl_MoNbTaW/mvl_MoNbTaW",
)
SHARES = (0.5, 0.3, 0.15, 0.05)  # of the structures, in files of different sizes
MAX_BYTES = 1.5e9
MAX_GROWTH = 1.3
INTERRUPTED = 75  # exit code: the same command continues


def main() -> int:
    """Generate, preprocess, measure, plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--sizes", type=float, nargs="+", default=[1e4, 1e5, 1e6])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--keep", action="store_true", help="keep data and shards")
    parser.add_argument("--limit", type=float, help="interrupt after so many seconds")
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where & started this
    end = time.monotonic() + (arguments.limit or float("inf"))
    arguments.output.mkdir(parents=True, exist_ok=True)
    table = arguments.output / "scale.json"
    rows: list[dict[str, Any]] = json.loads(table.read_text()) if table.exists() else []
    for size in sorted({int(size) for size in arguments.sizes} - {r["n_structures"] for r in rows}):
        folder = arguments.output / f"{size}"
        generate(arguments.data, folder, size)
        found = measure(folder, size, arguments.workers, end)
        if found is None:
            return INTERRUPTED
        rows = sorted([*rows, found], key=lambda row: row["n_structures"])
        print(json.dumps(found), flush=True)
        table.write_text(json.dumps(rows, indent=1) + "\n")
        if not arguments.keep:
            shutil.rmtree(folder)
    plot(rows, arguments.output / "scale.png")
    rates = [row["cpu_s"] / row["n_structures"] for row in rows]
    small = max(row["max_rss_bytes"] for row in rows) < MAX_BYTES
    return 0 if small and rates[-1] < MAX_GROWTH * rates[0] else 1


Lines = tuple[str, list[str], np.ndarray]  # header, symbols, numbers of a structure's columns


def real_frames(data: Path, per_file: int = 300) -> Iterator[Lines]:
    """Structures of the real sets as columns; small cells doubled along their first vector."""
    for name in SOURCES:
        with gzip.open(data / f"{name}.extxyz.gz", "rt") as file:
            for _ in range(per_file):
                count = file.readline()
                if not count.strip():
                    break
                header = file.readline().rstrip("\n").replace("IsolatedAtom", "Default")
                rows = [file.readline().split() for _ in range(int(count))]
                symbols = [row[0] for row in rows]
                numbers = np.array([row[1:] for row in rows], dtype=float)
                yield supercell(header, symbols, numbers)


def supercell(header: str, symbols: list[str], numbers: np.ndarray) -> Lines:
    """The structure, twice along its first vector if its cell holds less than 8 atoms."""
    if 'Lattice="' not in header or len(symbols) >= 8:
        return header, symbols, numbers
    before, rest = header.split('Lattice="', 1)
    lattice, after = rest.split('"', 1)
    cell = np.array(lattice.split(), dtype=float).reshape(3, 3)
    copy = numbers.copy()
    copy[:, :3] += cell[0]
    cell[0] *= 2
    energy = float(after.split("REF_energy=")[1].split()[0])
    after = after.replace(
        f"REF_energy={after.split('REF_energy=')[1].split()[0]}", f"REF_energy={2 * energy}"
    )
    text = " ".join(map(str, cell.ravel()))
    return f'{before}Lattice="{text}"{after}', symbols * 2, np.concatenate([numbers, copy])


def generate(data: Path, folder: Path, size: int) -> None:
    """Write ``size`` rattled structures to files of different sizes, unless they are there."""
    if folder.exists():
        return
    partial = folder.with_name(f"{folder.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    frames = [
        (header, symbols, numbers[:, :3], [" ".join(f"{x:.8f}" for x in row) for row in rest])
        for header, symbols, numbers in real_frames(data)
        for rest in [numbers[:, 3:].tolist()]
    ]
    rng = np.random.default_rng(0)
    made = 0
    for k, share in enumerate(SHARES):
        n = size - made if k == len(SHARES) - 1 else int(share * size)
        with (partial / f"part{k}.xyz").open("w") as out:
            for i in range(made, made + n):
                header, symbols, positions, rest = frames[i % len(frames)]
                moved = positions + rng.normal(scale=0.05, size=positions.shape)
                body = "".join(
                    f"{symbol} {x:.8f} {y:.8f} {z:.8f} {more}\n"
                    for symbol, (x, y, z), more in zip(symbols, moved.tolist(), rest, strict=True)
                )
                out.write(f"{len(symbols)}\n{header}\n{body}")
        made += n
    partial.rename(folder)


def measure(folder: Path, size: int, workers: int, end: float) -> dict[str, Any] | None:
    """Time of a run and the largest memory of its processes; None if ``end`` came before."""
    command = [sys.executable, "-m", "mace_train", "preprocess", f"data.train_file={folder}/*.xyz"]
    command += ["data.E0s=average", "r_max=5.0", f"workers={workers}", f"output={folder}/shards"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    state = folder / "so_far.json"
    before = json.loads(state.read_text()) if state.exists() else {}
    start = time.monotonic()
    process = subprocess.Popen(command, env=environment)
    watch = Watch(process, end)
    _, status, usage = os.wait4(process.pid, 0)
    watch.stop()
    if status and not watch.interrupted:
        raise SystemExit(f"preprocess failed with status {status}")
    found = {
        "n_structures": size,
        "workers": workers,
        "n_runs": before.get("n_runs", 0) + 1,
        "wall_s": before.get("wall_s", 0.0) + time.monotonic() - start,
        # the worker processes' as well
        "cpu_s": before.get("cpu_s", 0.0) + usage.ru_utime + usage.ru_stime,
        "max_rss_bytes": max(before.get("max_rss_bytes", 0), watch.largest),
    }
    if status:
        state.write_text(json.dumps(found))
        return None
    found["text_bytes"] = sum(path.stat().st_size for path in folder.glob("*.xyz"))
    found["shard_bytes"] = sum(p.stat().st_size for p in (folder / "shards").rglob("*.h5"))
    return found


class Watch:
    """Notes the largest memory of a process and its children, and interrupts it at ``end``."""

    def __init__(self, process: subprocess.Popen[bytes], end: float) -> None:
        self.largest, self.interrupted = 0, False
        self._process, self._end, self._stopped = process, end, threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        """End watching."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(0.5):
            pid = self._process.pid
            for each in (pid, *children(pid)):
                self.largest = max(self.largest, peak(each))
            if time.monotonic() > self._end and not self.interrupted:
                self.interrupted = True
                self._process.send_signal(signal.SIGINT)


def children(pid: int) -> list[int]:
    """Processes that ``pid`` started."""
    try:
        return [int(x) for x in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def peak(pid: int) -> int:
    """The peak of the anonymous memory and the mapped files in memory of a process, bytes."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Time and memory against the number of structures."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    n = np.array([row["n_structures"] for row in rows], dtype=float)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    left.loglog(n, [row["cpu_s"] for row in rows], "o-", label="all processes")
    cpu = rows[-1]["cpu_s"]
    left.loglog(n, cpu * n / n[-1], "k:", label="linear")
    title = f"{rows[-1]['workers']} worker processes"
    left.set(xlabel="structures", ylabel="CPU time, s", title=title)
    left.legend(frameon=False)
    right.semilogx(n, [row["max_rss_bytes"] / 1e9 for row in rows], "o-")
    right.axhline(MAX_BYTES / 1e9, color="k", ls=":", label="limit")
    right.set(xlabel="structures", ylabel="peak memory of a process, GB", ylim=(0, 1.6))
    right.legend(frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
