"""Fault-injection test: a random fault every --interval seconds, and nothing is lost.

Trains on --ranks gloo ranks (torchrun) for --minutes. Every interval one of these happens: a rank
is killed (SIGKILL); a rank is stopped for some seconds and continued; a rank gets SIGUSR1, all
write a checkpoint and end, and the training is started again as a queue would; the newest
checkpoint is cut in half and a rank is killed. Then the training is completed, and done again
undisturbed: each epoch must have seen every structure exactly once, and the last metrics must be
the same.

    python scripts/bench/soak.py --ranks 8 --minutes 30 --json soak.json
    python scripts/bench/soak.py --ranks 4 --minutes 3 --interval 20      (a short one)

--data is a folder of `mace-train preprocess`; without it the embedded example data are used.
Linux only: the ranks are found in /proc.
"""

import argparse
import json
import os
import random
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
FAULTS = ("kill", "stop", "usr1", "truncate")
LONGEST_RECOVERY_S = 400.0


def main() -> int:
    """Run both trainings, print what happened; 0 if nothing was lost and the ends agree."""
    arguments = _arguments()
    arguments.work.mkdir(parents=True, exist_ok=True)
    data = arguments.data or _example_data(arguments.work / "prepared")
    disturbed, whole = (arguments.work / name for name in ("disturbed", "whole"))
    for folder in (disturbed, whole):
        shutil.rmtree(folder, ignore_errors=True)
    soak = Soak(arguments, data, disturbed)
    survived = soak.run()
    n_epochs = len(_records(disturbed)) + 1
    log = arguments.work / "log.txt"
    _complete(_command(arguments, data, disturbed, n_epochs), log)
    _complete(_command(arguments, data, whole, n_epochs), log)
    rows = _rows(_records(disturbed), _records(whole), survived, soak.n_faults, n_epochs)
    print(f"faults survived: {sum(survived.values())} of {soak.n_faults}: {dict(survived)}")
    for row in rows:
        verdict = "ok" if row["ratio"] >= row["at_least"] else "FALLS SHORT"
        print(f"{row['name']}: {row['ours']:.12g}, undisturbed {row['peer']:.12g}: {verdict}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0 if all(row["ratio"] >= row["at_least"] for row in rows) else 1


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
    settings += ["restart_latest=true", "cluster=cpu", "cluster.kernels=reference"]
    settings += ["checkpoints.every_steps=5", "default_dtype=float64", *arguments.settings]
    return [*launcher, "-m", "mace_train", "train", *settings]


class Soak:
    """A training and the faults that befall it."""

    def __init__(self, arguments: argparse.Namespace, data: Path, output: Path) -> None:
        self.arguments, self.output = arguments, output
        self.command = _command(arguments, data, output, 100_000)
        self.log = open(arguments.work / "log.txt", "a")  # noqa: SIM115 (open until the end)
        self.random = random.Random(arguments.seed)
        self.n_faults = 0
        self.process = self._start()

    def _start(self) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(self.command, env=ENVIRONMENT, stdout=self.log, stderr=self.log)

    def run(self) -> "Counter[str]":
        """Faults survived, by kind: the training went on behind where the fault hit it."""
        survived: Counter[str] = Counter()
        self._wait_for_step(1)
        end = time.monotonic() + 60 * self.arguments.minutes
        while time.monotonic() < end:
            started = time.monotonic()
            kind = FAULTS[self.n_faults % len(FAULTS)] if self.n_faults < 4 else self._any()
            before = self._step()
            self.n_faults += 1
            getattr(self, f"_{kind}")()
            seconds = self._wait_for_step(max(before, self._step()) + 1)
            survived[kind] += 1
            print(f"{kind}: at step {before}, trained on after {seconds:.0f} s", flush=True)
            time.sleep(max(0.0, self.arguments.interval - (time.monotonic() - started)))
        self._end()
        self.log.close()
        return survived

    def _any(self) -> str:
        return self.random.choice(FAULTS)

    def _step(self) -> int:
        """The step of the newest checkpoint."""
        steps = sorted((self.output / "checkpoints").glob("step-*.safetensors"))
        return int(steps[-1].stem.removeprefix("step-")) if steps else 0

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
    survived: "Counter[str]",
    n_faults: int,
    n_epochs: int,
) -> list[dict[str, Any]]:
    """Faults survived, epochs that saw every structure once, and the last metrics of both."""
    n = peer[0]["structures"]
    whole = sum(r["epoch"] == i and r["structures"] == n for i, r in enumerate(ours))
    rows = [_row("faults survived", sum(survived.values()), n_faults, 1.0)]
    rows.append(_row("epochs with every structure once", whole, n_epochs, 1.0))
    for key in ("step", "train_loss", "valid_loss", "valid_forces_rmse_eV_per_A"):
        rows.append(_row(key, ours[-1][key], peer[-1][key], 0.99))
    return rows


def _row(name: str, ours: float, peer: float, at_least: float) -> dict[str, Any]:
    ratio = 1.0 if ours == peer else min(ours / peer, peer / ours) if ours and peer else 0.0
    return {"name": name, "ours": ours, "peer": peer, "ratio": ratio, "at_least": at_least}


if __name__ == "__main__":
    sys.exit(main())
