"""A training killed with SIGKILL and resumed ends where an uninterrupted one ends.

Trains twice on two gloo ranks (torchrun), the second time with one rank killed in the middle of an
epoch and started again with restart_latest=true, evaluates both on --test and compares the error
tables.

    python scripts/bench/kill_and_resume.py --data prepared --test test.xyz --json kill.json

--data is a folder written by `mace-train preprocess`. Linux only: the ranks are found in /proc.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
PYTHON = [sys.executable, "-m"]


def main() -> int:
    """Run both trainings, print and compare the tables; 0 if every RMSE agrees within 1 %."""
    arguments = _arguments()
    arguments.work.mkdir(parents=True, exist_ok=True)
    whole, killed = arguments.work / "whole", arguments.work / "killed"
    for folder in (whole, killed):
        shutil.rmtree(folder, ignore_errors=True)
    subprocess.run(_train(arguments, whole), check=True, env=ENVIRONMENT)
    _train_and_kill(arguments, killed)
    subprocess.run(_train(arguments, killed), check=True, env=ENVIRONMENT)
    rows = _compare(_evaluate(arguments, killed), _evaluate(arguments, whole))
    for row in rows:
        print(f"{row['name']}: resumed {row['ours']:.6g}, whole {row['peer']:.6g}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0 if all(row["ratio"] >= row["at_least"] for row in rows) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of shards")
    parser.add_argument("--test", type=Path, required=True, help="file that ASE reads")
    parser.add_argument("--work", type=Path, default=Path("runs/kill_and_resume"))
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--settings", nargs="*", default=["model=tiny", "batching.batch_size=5"])
    parser.add_argument("--json", type=Path, help="write the rows here")
    return parser.parse_args()


def _train(arguments: argparse.Namespace, output: Path) -> list[str]:
    launcher = [*PYTHON, "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    settings = [f"data_dir={arguments.data}", f"output={output}", "restart_latest=true"]
    settings += [f"max_num_epochs={arguments.epochs}", "cluster=cpu", *arguments.settings]
    return [*launcher, "-m", "mace_train", "train", *settings]


def _train_and_kill(arguments: argparse.Namespace, output: Path) -> None:
    """Start a training and kill its second rank within the epoch after the middle one."""
    process = subprocess.Popen(_train(arguments, output), env=ENVIRONMENT)
    metrics = output / "metrics.jsonl"
    n_before = arguments.epochs // 2
    while not metrics.exists() or len(metrics.read_text().splitlines()) < n_before:
        if process.poll() is not None:
            raise SystemExit("the training ended before it could be killed")
        time.sleep(0.05)
    last = json.loads(metrics.read_text().splitlines()[-1])
    time.sleep(0.5 * last["epoch_s"])
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    code = process.wait()
    print(f"killed rank 1 after {n_before} epochs; torchrun ended with code {code}", flush=True)
    if code == 0:
        raise SystemExit("the training ended before it was killed")


def _evaluate(arguments: argparse.Namespace, run: Path) -> list[dict[str, Any]]:
    output = run / "test"
    settings = [f"checkpoint={run}", f"test_file={arguments.test}", f"output={output}"]
    command = [*PYTHON, "mace_train", "evaluate", *settings, "plots=false", "predictions=false"]
    subprocess.run(command, check=True, env=ENVIRONMENT)
    return json.loads((output / "errors.json").read_text())["errors"]


def _compare(ours: list[dict[str, Any]], peer: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per RMSE of the table: the smaller over the larger must reach 0.99."""
    rows = []
    for one, other in zip(ours, peer, strict=True):
        for key in (key for key in other if "_rmse_" in key):
            low, high = sorted((one[key], other[key]))
            ratio = low / high if high > 0 else 1.0
            name = f"{other['name']} {key}"
            row = {"name": name, "ours": one[key], "peer": other[key], "ratio": ratio}
            rows.append(row | {"at_least": 0.99})
    return rows


if __name__ == "__main__":
    sys.exit(main())
