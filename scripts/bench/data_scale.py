"""Preprocessing of 1e4, 1e5 and 1e6 structures: time, memory of every process, one plot.

    python scripts/bench/data_scale.py --data FOLDER --output FOLDER [--sizes 1e4 1e5 1e6]
                                       [--workers 2] [--keep]

Structures come from the real sets in FOLDER by supercells (of cells below 8 atoms), rattling with
0.05 Å and repetition, and are written to several extended XYZ files of different sizes, as users'
data are. The plot (scale.png) and the numbers (scale.json) go to the output folder. Exit code 1 if
a process needs more than 1.5 GB, or CPU time per structure grows by more than 30 % from the
smallest to the largest set.
"""

import argparse
import gzip
import json
import os
import shutil
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


def main() -> int:
    """Generate, preprocess, measure, plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--sizes", type=float, nargs="+", default=[1e4, 1e5, 1e6])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--keep", action="store_true", help="keep data and shards")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    frames = list(real_frames(arguments.data))
    rows = []
    for size in map(int, arguments.sizes):
        folder = arguments.output / f"{size}"
        generate(frames, folder, size)
        rows.append(measure(folder, size, arguments.workers))
        print(json.dumps(rows[-1]), flush=True)
        if not arguments.keep:
            shutil.rmtree(folder)
    (arguments.output / "scale.json").write_text(json.dumps(rows, indent=1) + "\n")
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


def generate(frames: list[Lines], folder: Path, size: int) -> None:
    """Write ``size`` rattled structures to files of different sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    made = 0
    for k, share in enumerate(SHARES):
        n = size - made if k == len(SHARES) - 1 else int(share * size)
        with (folder / f"part{k}.xyz").open("w") as out:
            for i in range(made, made + n):
                header, symbols, numbers = frames[i % len(frames)]
                moved = numbers.copy()
                moved[:, :3] += rng.normal(scale=0.05, size=(len(symbols), 3))
                body = "\n".join(
                    f"{symbol} {' '.join(f'{x:.8f}' for x in row)}"
                    for symbol, row in zip(symbols, moved.tolist(), strict=True)
                )
                out.write(f"{len(symbols)}\n{header}\n{body}\n")
        made += n


def measure(folder: Path, size: int, workers: int) -> dict[str, Any]:
    """Wall and CPU time of a run, and the largest resident memory of any of its processes."""
    command = [sys.executable, "-m", "mace_train", "preprocess", f"data.train_file={folder}/*.xyz"]
    command += ["data.E0s=average", "r_max=5.0", f"workers={workers}", f"output={folder}/shards"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    start = time.monotonic()
    process = subprocess.Popen(command, env=environment)
    watch = Watch(process.pid)
    _, status, usage = os.wait4(process.pid, 0)
    watch.stop()
    if status:
        raise SystemExit(f"preprocess failed with status {status}")
    written = sum(path.stat().st_size for path in (folder / "shards").rglob("*.h5"))
    return {
        "n_structures": size,
        "workers": workers,
        "wall_s": time.monotonic() - start,
        "cpu_s": usage.ru_utime + usage.ru_stime,  # the worker processes' as well
        "max_rss_bytes": watch.largest,
        "text_bytes": sum(path.stat().st_size for path in folder.glob("*.xyz")),
        "shard_bytes": written,
    }


class Watch:
    """Notes the largest private and shared memory of a process and its children, each second."""

    def __init__(self, pid: int) -> None:
        self.largest = 0
        self._pid, self._stopped = pid, threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        """End watching."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(0.5):
            for pid in (self._pid, *children(self._pid)):
                self.largest = max(self.largest, peak(pid))


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
    for key, label in (("wall_s", "wall"), ("cpu_s", "CPU, all processes")):
        seconds = np.array([row[key] for row in rows])
        left.loglog(n, seconds, "o-", label=label)
    cpu = rows[-1]["cpu_s"]
    left.loglog(n, cpu * n / n[-1], "k:", label="linear")
    left.set(xlabel="structures", ylabel="s", title=f"{rows[-1]['workers']} worker processes")
    left.legend(frameon=False)
    right.semilogx(n, [row["max_rss_bytes"] / 1e9 for row in rows], "o-")
    right.axhline(MAX_BYTES / 1e9, color="k", ls=":", label="limit")
    right.set(xlabel="structures", ylabel="peak memory of a process, GB", ylim=(0, 1.6))
    right.legend(frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
