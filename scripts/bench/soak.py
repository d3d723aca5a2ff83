"""Fault-injection test: a random fault every --interval seconds, and nothing is lost.

Trains on --ranks gloo ranks (torchrun) for --minutes. Every interval one of these happens: a rank
is killed (SIGKILL); a rank is stopped for some seconds and continued; a rank gets SIGUSR1, all
write a checkpoint and end, and the training is started again as a queue would; the newest
checkpoint is cut in half and a rank is killed; the disk that the training writes to is full until
the training has failed; a compiled kernel in the cache is replaced by a bad file and a rank is
killed, so that all load their kernels again. Then the training is completed, and done again
undisturbed: each epoch must have seen every structure exactly once, and the last metrics must be
the same.

The full disk is a tmpfs of its own where one may be mounted (as root); elsewhere a limit on the
size of the files of the rank that writes. Kernels are compiled where there is a C++ compiler, in a
cache of this test.

    python scripts/bench/soak.py --ranks 8 --minutes 30 --json soak.json
    python scripts/bench/soak.py --ranks 4 --minutes 3 --interval 20      (a short one)

Rows of --json: what was injected and survived, by kind; then what was lost. The exit code is 1 if
anything was, and --plot draws steps over time with the faults.

--data is a folder of `mace-train preprocess`; without it the embedded example data are used.
Linux only: the ranks are found in /proc.
"""

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
PYTHON = [sys.executable, "-m"]
FAULTS = ("kill", "stop", "usr1", "truncate", "full_disk", "bad_kernel")
LONGEST_RECOVERY_S = 400.0
DISK = "256m"
NO_SPACE = ("no space left on device", "file too large")


def main() -> int:
    """Run both trainings, print what happened; 0 if nothing was lost and the ends agree."""
    arguments = _arguments()
    arguments.work.mkdir(parents=True, exist_ok=True)
    data = arguments.data or _example_data(arguments.work / "prepared")
    os.environ["XDG_CACHE_HOME"] = ENVIRONMENT["XDG_CACHE_HOME"] = str(arguments.work / "cache")
    whole, log = arguments.work / "whole", arguments.work / "log.txt"
    for name in ("whole", "cache"):
        shutil.rmtree(arguments.work / name, ignore_errors=True)
    with Disk(arguments.work / "disk") as disk:
        disturbed = disk.folder / "disturbed"
        soak = Soak(arguments, data, disturbed, disk)
        soak.run()
        n_epochs = len(_records(disturbed)) + 1
        _complete(_command(arguments, data, disturbed, n_epochs), log)
        _complete(_command(arguments, data, whole, n_epochs), log)
        rows = _rows(_records(disturbed), _records(whole), soak, n_epochs)
        rows.append(_row("half-written files left", _n_leftovers(disturbed), 0, 1.0))
    print(f"injected: {dict(soak.injected)}; survived: {dict(soak.survived)}")
    lost = [row["name"] for row in rows if row["ratio"] < row["at_least"]]
    print(f"lost: {', '.join(lost) or 'nothing'} ({n_epochs} epochs, {arguments.ranks} ranks)")
    for row in rows:
        verdict = "ok" if row["ratio"] >= row["at_least"] else "FALLS SHORT"
        print(f"{row['name']}: {row['ours']:.12g}, undisturbed {row['peer']:.12g}: {verdict}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    if arguments.plot:
        soak.draw(arguments.plot, f"lost: {', '.join(lost) or 'nothing'}")
    return 1 if lost else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of shards")
    parser.add_argument("--work", type=Path, default=Path("runs/soak"))
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--interval", type=float, default=60.0, help="seconds between faults")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--settings", nargs="*", default=["model=tiny", "batching.batch_size=2"])
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--plot", type=Path, help="draw steps and faults over time here")
    return parser.parse_args()


def _example_data(folder: Path) -> Path:
    if not (folder / "statistics.json").exists():
        settings = ["data=example", "r_max=4.0", f"output={folder}"]
        command = [*PYTHON, "mace_train", "preprocess", *settings, "overwrite=true"]
        subprocess.run(command, check=True, env=ENVIRONMENT)
    return folder


def _command(arguments: argparse.Namespace, data: Path, output: Path, n_epochs: int) -> list[str]:
    launcher = [*PYTHON, "torch.distributed.run", "--standalone", "--max-restarts=1000"]
    launcher.append(f"--nproc-per-node={arguments.ranks}")
    settings = [f"data_dir={data}", f"output={output}", f"max_num_epochs={n_epochs}"]
    settings += ["restart_latest=true", "cluster=cpu", "logger.progress=false"]
    settings += ["checkpoints.every_steps=5", "default_dtype=float64", *arguments.settings]
    return [*launcher, "-m", "mace_train", "train", *settings]


class Disk:
    """A small file system of its own where one can be mounted, else a plain folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.is_mounted = folder, False

    def __enter__(self) -> "Disk":
        if os.path.ismount(self.folder):  # of a test that was killed
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(self.folder)]
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
        self.is_mounted = done.returncode == 0
        if not self.is_mounted:
            print(f"no file system can be mounted ({done.stderr.strip()}): files are limited")
        return self

    def __exit__(self, *exception: object) -> None:
        if self.is_mounted:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True)

    def fill(self) -> None:
        """Leave no room."""
        with open(self.folder / "filler", "ab", buffering=0) as handle:
            try:
                while True:
                    handle.write(bytes(4096))
            except OSError:
                pass

    def free(self) -> None:
        """Make room again."""
        (self.folder / "filler").unlink()


class Soak:
    """A training and the faults that befall it."""

    def __init__(self, arguments: argparse.Namespace, data: Path, output: Path, disk: Disk) -> None:
        self.arguments, self.output, self.disk = arguments, output, disk
        self.command = _command(arguments, data, output, 100_000)
        self.log = open(arguments.work / "log.txt", "a")  # noqa: SIM115 (open until the end)
        self.random = random.Random(arguments.seed)
        self.injected: Counter[str] = Counter()
        self.survived: Counter[str] = Counter()  # the training went on behind where a fault hit it
        self.began, self.steps = time.monotonic(), [(0.0, 0)]
        self.faults: list[tuple[float, str]] = []
        self.process = self._start()

    def _start(self) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(self.command, env=ENVIRONMENT, stdout=self.log, stderr=self.log)

    def run(self) -> None:
        """Inject faults, each kind once and then at random, until the time is over."""
        self._wait_for_step(1)
        end = time.monotonic() + 60 * self.arguments.minutes
        while time.monotonic() < end:
            started, n_faults = time.monotonic(), len(self.faults)
            kind = FAULTS[n_faults] if n_faults < len(FAULTS) else self._any()
            before = self._step()
            self.injected[kind] += 1
            self.faults.append((started - self.began, kind))
            getattr(self, f"_{kind}")()
            seconds = self._wait_for_step(max(before, self._step()) + 1)
            self.survived[kind] += 1
            print(f"{kind}: at step {before}, trained on after {seconds:.0f} s", flush=True)
            self._rest(self.arguments.interval - (time.monotonic() - started))
        self._end()
        self.log.close()

    def _rest(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.5)
            self._step()

    def draw(self, path: Path, title: str) -> None:
        """Steps on the disk over time, and the faults."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 3.4), layout="constrained")
        axes = figure.subplots()
        axes.step([t / 60 for t, _ in self.steps], [n for _, n in self.steps], where="post")
        for number, kind in enumerate(FAULTS):
            times = [t / 60 for t, name in self.faults if name == kind]
            for i, t in enumerate(times):
                label = f"{kind}: {self.survived[kind]} of {self.injected[kind]} survived"
                color = f"C{number + 1}"
                axes.axvline(t, color=color, linewidth=1.0, label=None if i else label)
        axes.set(xlabel="time, min", ylabel="step of the newest checkpoint", title=title)
        axes.legend(fontsize=7)
        figure.savefig(path, dpi=130)

    def _any(self) -> str:
        return self.random.choice(FAULTS)

    def _step(self) -> int:
        """The step of the newest checkpoint."""
        steps = sorted((self.output / "checkpoints").glob("step-*.safetensors"))
        step = int(steps[-1].stem.removeprefix("step-")) if steps else 0
        if step != self.steps[-1][1]:
            self.steps.append((time.monotonic() - self.began, step))
        return step

    def _wait_for_step(self, step: int) -> float:
        start = time.monotonic()
        while self._step() < step:
            code = self.process.poll()
            if code:
                raise SystemExit(f"the training failed with code {code}, see {self.log.name}")
            if time.monotonic() - start > LONGEST_RECOVERY_S:
                raise SystemExit(f"no step for {LONGEST_RECOVERY_S:.0f} s, see {self.log.name}")
            time.sleep(0.1)
        return time.monotonic() - start

    def _ranks(self) -> list[int]:
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        while len(pids := path.read_text().split()) < self.arguments.ranks:
            time.sleep(0.1)
        return [int(pid) for pid in pids]

    def _signal(self, number: int) -> int:
        pid = self.random.choice(self._ranks())
        os.kill(pid, number)
        return pid

    def _kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _stop(self) -> None:
        pid = self._signal(signal.SIGSTOP)
        time.sleep(self.random.uniform(2.0, 6.0))
        os.kill(pid, signal.SIGCONT)

    def _usr1(self) -> None:
        self._end()
        self.process = self._start()

    def _end(self) -> None:
        """Ask for a checkpoint and the end, and wait for it."""
        self._signal(signal.SIGUSR1)
        try:
            self.process.wait(timeout=LONGEST_RECOVERY_S)
        except subprocess.TimeoutExpired:
            raise SystemExit("SIGUSR1 did not end the training") from None

    def _truncate(self) -> None:
        newest = sorted((self.output / "checkpoints").glob("step-*.safetensors"))[-1]
        with open(newest, "r+b") as handle:
            handle.truncate(newest.stat().st_size // 2)
        self._signal(signal.SIGKILL)

    def _full_disk(self) -> None:
        """No room until the training has said so, and for some seconds more."""
        log = Path(self.log.name)
        begin = log.stat().st_size
        if self.disk.is_mounted:
            self.disk.fill()
        else:
            (rank_0,) = [pid for pid in self._ranks() if _environment(pid).get("RANK") == "0"]
            resource.prlimit(rank_0, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
        end = time.monotonic() + LONGEST_RECOVERY_S
        while not any(words in log.read_bytes()[begin:].decode() for words in NO_SPACE):
            if time.monotonic() > end:
                raise SystemExit("the training did not notice the full disk")
            if self.disk.is_mounted:
                self.disk.fill()  # what the training itself has removed
            time.sleep(0.2)
        time.sleep(self.random.uniform(2.0, 10.0))
        if self.disk.is_mounted:
            self.disk.free()

    def _bad_kernel(self) -> None:
        """An empty, a cut or a foreign file in place of a compiled kernel; all load again."""
        kernels = sorted((self.arguments.work / "cache").rglob("*.so"))
        if kernels:
            path = self.random.choice(kernels)
            whole = path.read_bytes()
            bad = self.random.choice((b"", whole[: len(whole) // 2], bytes(len(whole))))
            planted = path.with_suffix(".planted")
            planted.write_bytes(bad)  # ranks that run keep the file they have mapped
            os.replace(planted, path)
        self._signal(signal.SIGKILL)


def _environment(pid: int) -> dict[str, str]:
    entries = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


def _n_leftovers(output: Path) -> int:
    """Files and folders that only a process that was killed leaves."""
    return sum(path.name.endswith((".tmp", ".partial")) for path in output.rglob(".*"))


def _complete(command: list[str], log: Path) -> None:
    with open(log, "a") as handle:
        subprocess.run(command, check=True, env=ENVIRONMENT, stdout=handle, stderr=handle)


def _records(output: Path) -> list[dict[str, Any]]:
    path = output / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _rows(
    ours: list[dict[str, Any]],
    peer: list[dict[str, Any]],
    soak: Soak,
    n_epochs: int,
) -> list[dict[str, Any]]:
    """Faults survived, epochs that saw every structure once, and the last metrics of both."""
    n = peer[0]["structures"]
    whole = sum(r["epoch"] == i and r["structures"] == n for i, r in enumerate(ours))
    n_survived, n_faults = soak.survived.total(), soak.injected.total()
    rows = [_row("faults survived", n_survived, n_faults, 1.0)]
    rows += [
        _row(f"{kind} survived", soak.survived[kind], n, 1.0) for kind, n in soak.injected.items()
    ]
    rows.append(_row("epochs with every structure once", whole, n_epochs, 1.0))
    for key in ("step", "train_loss", "valid_loss", "valid_forces_rmse_eV_per_A"):
        rows.append(_row(key, ours[-1][key], peer[-1][key], 0.99))
    return rows


def _row(name: str, ours: float, peer: float, at_least: float) -> dict[str, Any]:
    ratio = 1.0 if ours == peer else min(ours / peer, peer / ours) if ours and peer else 0.0
    return {"name": name, "ours": ours, "peer": peer, "ratio": ratio, "at_least": at_least}


if __name__ == "__main__":
    sys.exit(main())
