"""Preprocessing and loading against mace-torch: same files and structures, one process each.

    python scripts/bench/data.py --data FOLDER [--json data.json] [--structures 1000]
                                 [--parts preprocessing random epoch]

FOLDER holds the real sets (botnet_3BPA, mattersim_bench, ...) as extended XYZ. Three parts:

preprocessing   mace_prepare_data, its imports not counted, without and with statistics, against
                mace-train preprocess, which always finds neighbours and takes statistics
random access   HDF5Dataset of mace-torch against ShardSet.sample and against bins as the trainer
                reads them (Graphs of 32 scattered structures)
epoch           all bins of an epoch, 3000 atoms each, in bytes of the files per second of one core,
                against the limit that is left when Python costs nothing: CRC-32 and conversion of
                the same arrays by zlib and numpy, a whole shard at a time and without pairs of
                edges. Beside it the rates of read(2), from the page cache and from the disk.
                Then by workers, wall time, on all cores but one, which the process that receives
                has to itself, against what bounds them: the disk, or as many processes that make
                the same Graphs and hand them to nobody.

CPU time of the process where both are one process (the machine may be shared), medians of 3.
Needs the extra "interop".
"""

import argparse
import gzip
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch

from mace_train.data.loading.loader import batches
from mace_train.data.preprocess.preprocess import preprocess
from mace_train.data.shards.arrays import OF_ATOMS, OF_EDGES
from mace_train.data.shards.shard_set import ShardSet
from mace_train.settings import DataSettings, PreprocessSettings

R_MAX = 5.0
ATOMS_PER_BIN = 3000  # what a GPU takes at a time
BINS = 100  # of the epoch whose rate is taken
WORKERS_BINS = 2000  # enough to hide the start of workers
SETS = {
    "3BPA": ("botnet_3BPA/train_300K", "botnet_3BPA/train_mixedT"),
    "mixed": (
        "botnet_3BPA/train_300K",
        "mattersim_bench/mptrj-random-1k",
        "mattersim_bench/alexandria-random-1k",
        "polymlp_AgAu/polymlp_AgAu",
        "pynep_C/pynep_C_train",
        "qm7_qml/qm7_qml",
        "zeo22_sample/zeo22_sample",
    ),
}
PARTS = ("preprocessing", "random", "epoch")
# mace_prepare_data in a process that imports first and says what the run itself takes
PEER = """
import sys, time, warnings
warnings.simplefilter("ignore")
from mace import tools
from mace.cli.preprocess_data import run
arguments = tools.build_preprocess_arg_parser().parse_args(sys.argv[1:])
import os
before = sum(os.times()[:4])
run(arguments)
print("seconds", sum(os.times()[:4]) - before)
"""


def main() -> int:
    """Measure, print, and compare with the goals."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--structures", type=int, default=1000, help="of each set")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--json", type=Path, help="write the rows here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for label, files in SETS.items():
            xyz = folder / f"{label}.xyz"
            n = collect(
                [arguments.data / f"{f}.extxyz.gz" for f in files], xyz, arguments.structures
            )
            preprocess_file(xyz)
            if "preprocessing" in arguments.parts:
                rows += preprocessing(label, xyz, n, arguments.repeats)
            if "random" in arguments.parts:
                rows += random_access(label, folder / label, arguments.repeats)
            if "epoch" in arguments.parts:
                rows += epoch(label, folder / label, arguments.repeats)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0 if all(row["ratio"] >= row["at_least"] for row in rows) else 1


def collect(files: list[Path], target: Path, n_structures: int) -> int:
    """Write the same number of structures of every file to one; how many it holds."""
    per_file, written = n_structures // len(files), 0
    with target.open("w") as out:
        for file in files:
            with gzip.open(file, "rt") as lines:
                for _ in range(per_file):
                    count = lines.readline()
                    if not count.strip():
                        break
                    frame = [count, *(lines.readline() for _ in range(int(count) + 1))]
                    frame[1] = frame[1].replace("IsolatedAtom", "Default")
                    out.writelines(frame)
                    written += 1
    return written


def row(
    name: str, ours: float, peer: float, at_least: float, unit: str, **more: Any
) -> dict[str, Any]:
    """One printed comparison of rates."""
    ratio = ours / peer
    print(f"{name}: ours {ours:.4g} {unit}, peer {peer:.4g}, ratio {ratio:.2f} (goal {at_least})")
    sys.stdout.flush()
    return {"name": name, "ours": ours, "peer": peer, "ratio": ratio, "at_least": at_least, **more}


def preprocess_file(xyz: Path) -> None:
    """Preprocess to a folder of the same name."""
    data = DataSettings(train_file=str(xyz), E0s="average", valid_fraction=0.1)
    output = str(xyz.with_suffix(""))
    preprocess(PreprocessSettings(data=data, output=output, r_max=R_MAX, overwrite=True))


def preprocessing(label: str, xyz: Path, n: int, repeats: int) -> list[dict[str, Any]]:
    """Structures per CPU second of both programs."""

    mine = n / cpu_seconds(lambda: preprocess_file(xyz), repeats)
    rows = []
    for statistics_too, at_least in ((False, 5.0), (True, 10.0)):
        theirs = n / statistics.median(
            peer_seconds(xyz, statistics_too) for _ in range(max(1, repeats - 2))
        )
        kind = "with" if statistics_too else "without"
        name = f"{label}: preprocessing, mace_prepare_data {kind} statistics"
        rows.append(row(name, mine, theirs, at_least, "structures/s", n_structures=n))
    return rows


def peer_seconds(xyz: Path, statistics_too: bool) -> float:
    """CPU seconds of mace_prepare_data and its worker, after its imports."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", PEER, f"--train_file={xyz}", "--valid_fraction=0.1"]
        command += [
            f"--r_max={R_MAX}",
            f"--h5_prefix={folder}/",
            "--num_process=1",
            "--E0s=average",
        ]
        command += ["--energy_key=REF_energy", "--forces_key=REF_forces", "--seed=1"]
        command += ["--compute_statistics"] if statistics_too else []
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if done.returncode:
            raise SystemExit(f"mace_prepare_data failed:\n{done.stderr[-3000:]}")
        return float(done.stdout.split("seconds ")[1])


def random_access(label: str, prepared: Path, repeats: int) -> list[dict[str, Any]]:
    """Structures per second in random order."""
    import warnings

    warnings.simplefilter("ignore")
    import h5py
    from mace.data import HDF5Dataset
    from mace.data.utils import Configuration, save_configurations_as_HDF5
    from mace.tools import AtomicNumberTable

    shards = ShardSet(prepared / "train")
    order = np.random.default_rng(0).permutation(len(shards))
    structures = [shards.sample(i).structure for i in range(len(shards))]
    labels = [{"energy": s.energy, "forces": s.forces, "stress": s.stress} for s in structures]
    configurations = [
        Configuration(
            atomic_numbers=s.numbers,
            positions=s.positions,
            properties={name: value for name, value in of.items() if value is not None},
            property_weights={name: float(value is not None) for name, value in of.items()},
            cell=s.cell,
            pbc=tuple(s.pbc.tolist()),
        )
        for s, of in zip(structures, labels, strict=True)
    ]
    path = prepared / "mace.h5"
    with h5py.File(path, "w") as file:
        save_configurations_as_HDF5(configurations, 0, file)
    theirs = HDF5Dataset(str(path), r_max=R_MAX, z_table=AtomicNumberTable(list(shards.elements)))
    some = order[: min(len(order), 300)].tolist()
    peer = len(some) / cpu_seconds(lambda: [theirs[i] for i in some], repeats)
    bins = [order[i : i + 32] for i in range(0, len(order), 32)]

    def graphs() -> None:
        numbers = shards.elements
        for _ in batches(shards, bins, atomic_numbers=numbers, dtype=torch.float32):
            pass

    n, mean_edges = len(order), float(shards.n_edges.mean())
    graphs()  # loads the machine code
    sample = n / cpu_seconds(lambda: [shards.sample(i) for i in order.tolist()], repeats)
    graph = n / cpu_seconds(graphs, repeats)
    path.unlink()
    edges = {"edges_per_s": graph * mean_edges, "peer_edges_per_s": peer * mean_edges}
    return [
        row(f"{label}: random structures, HDF5Dataset", sample, peer, 30.0, "structures/s"),
        row(
            f"{label}: random bins as Graphs, HDF5Dataset",
            graph,
            peer,
            30.0,
            "structures/s",
            **edges,
        ),
    ]


def epoch(label: str, prepared: Path, repeats: int) -> list[dict[str, Any]]:
    """Bytes per second of an epoch, of reading the files, and of what has to be computed."""
    shards = ShardSet(prepared / "train")
    size = sum(header.path.stat().st_size for header in shards.headers) / 1e6
    number = shards.n_atoms.cumsum() // ATOMS_PER_BIN
    bins = np.split(np.arange(len(shards)), np.flatnonzero(np.diff(number)) + 1)
    scattered = np.array_split(np.random.default_rng(0).permutation(len(shards)), len(bins))

    def read() -> None:
        for header in shards.headers:
            with open(header.path, "rb", buffering=0) as file:
                while file.read(1 << 20):
                    pass

    def graphs(of: list[np.ndarray], num_workers: int = 0) -> None:
        options = {"atomic_numbers": shards.elements, "dtype": torch.float32}
        for _ in batches(shards, of, num_workers=num_workers, **options):
            pass

    graphs(bins)  # loads the machine code
    repeats *= 3
    epochs = -(-BINS // len(bins))  # in one go, as starting the loader costs as much as some bins
    rate = epochs * size / cpu_seconds(lambda: graphs(epochs * bins), repeats)
    more = {
        "scattered": epochs * size / cpu_seconds(lambda: graphs(epochs * scattered), repeats),
        "gathering": size / cpu_seconds(lambda: [shards.batch(ids) for ids in bins], repeats),
        "read(2)": size / cpu_seconds(read, repeats),
        "disk": statistics.median(disk_rate(prepared) for _ in range(repeats)),
        "edges": rate / size * int(shards.n_edges.sum()) / 1e6,
    }
    print(f"  MB/s: {', '.join(f'{k} {v:.0f}' for k, v in more.items())} (edges: million/s)")
    limit = size / cpu_seconds(
        lambda: [convert(shards, k) for k in range(shards.n_shards)], repeats
    )
    workers = max(1, len(os.sched_getaffinity(0)) - 1)
    many = WORKERS_BINS // len(bins) * bins
    work = len(many) / len(bins) * size
    together = work / wall_seconds(lambda: graphs(many, workers), repeats)
    alone = workers * work / wall_seconds(lambda: in_processes(workers, graphs, many), repeats)
    what, bound = min(("disk", more["disk"]), ("processors", alone), key=lambda pair: pair[1])
    print(f"  {workers} process(es) that hand nothing over: {alone:.0f} MB/s; bound: {what}")
    return [
        row(f"{label}: epoch, checksums and conversion", rate, limit, 0.1, "MB/s", **more),
        row(f"{label}: epoch, {workers} worker(s), {what}", together, bound, 0.8, "MB/s"),
    ]


def in_processes(n: int, work: Callable[[Any], None], argument: object) -> None:
    """Do all of the work in each of n processes at the same time."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=work, args=(argument,)) for _ in range(n)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        if process.exitcode:
            raise SystemExit(f"a process ended with {process.exitcode}")


def convert(shards: ShardSet, shard: int) -> list[np.ndarray]:
    """The arrays of a shard compared and in the types of tensors, without Python's loops."""
    arrays = shards.arrays(shard)
    for name in (*OF_ATOMS, *OF_EDGES, "structures", "sources"):
        zlib.crc32(arrays[name].reshape(-1).view(np.uint8).data)
    every = np.arange(len(arrays["structures"]))
    graphs = [np.repeat(every, np.diff(arrays[f"{of}_offsets"])) for of in ("atom", "edge")]
    integers = [arrays[name].astype(np.int64) for name in ("numbers", "senders", "receivers")]
    floats = [arrays[name].astype(np.float32) for name in ("positions", "forces", "shifts")]
    return graphs + integers + floats


def disk_rate(folder: Path, n_bytes: int = 1 << 28) -> float:
    """MB per second of reading a file that is not in the page cache, wall time."""
    path = folder / "disk"
    with path.open("wb") as file:
        for _ in range(n_bytes >> 20):
            file.write(os.urandom(1 << 20))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    start = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.read(1 << 20):
            pass
    seconds = time.perf_counter() - start
    path.unlink()
    return n_bytes / seconds / 1e6


def cpu_seconds(work: Callable[[], object], repeats: int) -> float:
    """Median CPU time of this process."""
    return _median(time.process_time, work, repeats)


def wall_seconds(work: Callable[[], object], repeats: int) -> float:
    """Median wall time, where several processes work."""
    return _median(time.perf_counter, work, repeats)


def _median(clock: Callable[[], float], work: Callable[[], object], repeats: int) -> float:
    found = []
    for _ in range(repeats):
        start = clock()
        work()
        found.append(clock() - start)
    return statistics.median(found)


if __name__ == "__main__":
    sys.exit(main())
