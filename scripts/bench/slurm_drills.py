"""One training through a real Slurm with --drills random faults, and nothing is lost.

Starts a Slurm of four nodes on this machine (tests/slurm/cluster.sh; needs root and apt-get
install slurm-wlm munge iproute2), submits slurm/train.sbatch on two nodes, and again and again,
after at least one more epoch each time, does one of these: `scontrol requeue`; SIGUSR1, as before
a time limit; preemption by a job that wants all nodes; SIGKILL to a random rank; with --power also
the loss of a node. The same training is done undisturbed: the metrics and the structures of every
epoch and the last weights must be the same.

    python scripts/bench/slurm_drills.py --drills 20 --json drills.json
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.conftest import emt_structures, run_command  # noqa: E402
from tests.slurm.cluster import Cluster, why_not  # noqa: E402
from tests.slurm.trainings import SETTINGS, TWO_NODES, numbers, torchrun, weights  # noqa: E402
from tests.train.processes import records_so_far  # noqa: E402


def main() -> int:
    """Run the drills and the comparison; 0 if nothing was lost."""
    arguments = _arguments()
    reason = why_not()
    if reason is not None:
        raise SystemExit(f"no Slurm here: {reason}")
    work = Path(tempfile.mkdtemp(prefix="drills-"))
    work.chmod(0o755)
    data = _data(work)
    cluster = Cluster(4)
    try:
        done, seconds, job = _disturbed(arguments, cluster, work, data)
        restarts = cluster.restarts(job)
    finally:
        cluster.stop()
    torchrun(data, work / "whole", 2, arguments.epochs)
    ours, peer = numbers(work / "run"), numbers(work / "whole")
    same = sum(a == b for a, b in zip(ours, peer, strict=False))
    counts = [row["structures"] for row in records_so_far(work / "run")]
    whole = [row["structures"] for row in records_so_far(work / "whole")]
    rows = [
        _row("drills survived", sum(done.values()), arguments.drills),
        _row("epochs with the same metrics", same, len(peer)),
        _row("epochs with every structure once", counts.count(whole[0]), len(whole)),
        _row("same last weights", int(weights(work / "run") == weights(work / "whole")), 1),
    ]
    print(f"{dict(done)}; {restarts} times back in the queue; training again after", end=" ")
    print(f"{sum(seconds) / len(seconds):.1f} s on average, {max(seconds):.1f} s at most")
    for row in rows:
        verdict = "ok" if row["ratio"] >= row["at_least"] else "FALLS SHORT"
        print(f"{row['name']}: {row['ours']} of {row['peer']}: {verdict}")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0 if all(row["ratio"] >= row["at_least"] for row in rows) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--drills", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=150)
    parser.add_argument("--power", action="store_true", help="also cut the power of nodes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the rows here")
    return parser.parse_args()


def _row(name: str, ours: int, peer: int) -> dict[str, Any]:
    return {"name": name, "ours": ours, "peer": peer, "ratio": ours / peer, "at_least": 1.0}


def _data(work: Path) -> Path:
    from ase.io import write

    write(work / "train.xyz", emt_structures(), format="extxyz")
    settings = [f"data.train_file={work}/train.xyz", "data.valid_fraction=0.25", "r_max=4.0"]
    run_command("preprocess", *settings, f"output={work}/prepared")
    return work / "prepared"


def _disturbed(
    arguments: argparse.Namespace, cluster: Cluster, work: Path, data: Path
) -> tuple["Counter[str]", list[float], str]:
    """(drills by kind, seconds until the next epoch, job)."""
    choice = random.Random(arguments.seed)
    kinds = ["requeue", "usr1", "preempt", "kill"] + ["power"] * arguments.power
    settings = [f"data_dir={data}", f"output={work}/run", f"max_num_epochs={arguments.epochs}"]
    job = cluster.submit("train.sbatch", work, TWO_NODES, *settings, *SETTINGS, MAX_FAILURES="1000")
    _wait_for_epoch(cluster, job, work, 1)
    done: Counter[str] = Counter()
    seconds = []
    for _ in range(arguments.drills):
        time.sleep(choice.uniform(0.0, 1.5))
        n_epochs = len(records_so_far(work / "run"))
        if cluster.states(job) != ["RUNNING"]:
            print("the training was over before the drills were; raise --epochs")
            break
        kind = choice.choice(kinds)
        start, n_restarts = time.monotonic(), cluster.restarts(job)
        _inflict(cluster, job, kind, choice)
        if kind != "kill":  # after which the training starts again in the same allocation
            _wait_for_requeue(cluster, job, n_restarts + 1)
            n_epochs = len(records_so_far(work / "run"))
        _wait_for_epoch(cluster, job, work, n_epochs + 2)  # one may have been under way
        done[kind] += 1
        seconds.append(time.monotonic() - start)
        print(f"{kind} after epoch {n_epochs}: {seconds[-1]:.1f} s", flush=True)
    assert cluster.wait(job, 600) == ["COMPLETED"], work
    return done, seconds, job


def _inflict(cluster: Cluster, job: str, kind: str, choice: random.Random) -> None:
    nodes = cluster.run("scontrol", "show", "hostnames", _nodes(cluster, job)).split()
    node = int(choice.choice(nodes).removeprefix("node"))
    if kind == "requeue":
        cluster.run("scontrol", "requeue", job)
    elif kind == "usr1":
        cluster.run("scancel", "--signal=USR1", job)
    elif kind == "preempt":
        cluster.run(
            "sbatch",
            "--partition=main",
            "--nodes=4",
            "--exclusive",
            "--output=/dev/null",
            "--wrap=sleep 1",
        )
    elif kind == "kill":
        os.kill(cluster.pids(node, "bin/mace-train train")[-1], signal.SIGKILL)
    else:
        cluster.cut_power(node)
        while cluster.states(job) == ["RUNNING"]:
            time.sleep(0.5)
        cluster.boot(node)


def _nodes(cluster: Cluster, job: str) -> str:
    return cluster.run("squeue", "-h", "-j", job, "-o", "%N")


def _wait_for_requeue(cluster: Cluster, job: str, n_restarts: int) -> None:
    end = time.monotonic() + 120
    while cluster.restarts(job) < n_restarts:
        if time.monotonic() > end or cluster.states(job) == ["FAILED"]:
            raise SystemExit(f"job {job} did not go back to the queue a {n_restarts}th time")
        time.sleep(0.1)


def _wait_for_epoch(cluster: Cluster, job: str, work: Path, n_epochs: int) -> None:
    end = time.monotonic() + 300
    while len(records_so_far(work / "run")) < n_epochs and cluster.states(job) != ["COMPLETED"]:
        if time.monotonic() > end or cluster.states(job) == ["FAILED"]:
            raise SystemExit(f"no epoch {n_epochs}: see {work}")
        time.sleep(0.1)


if __name__ == "__main__":
    raise SystemExit(main())
