"""What it costs to start a training on many ranks: nothing may grow faster than their number.

Ranks are forked on this machine from a process that has imported everything, join, set up the
training (one rank reads checkpoints, all map the same shards) and take the first step. Shown are
CPU seconds per rank and phase, against the number of ranks: a line that stays level means that the
sum over all ranks grows with their number, one that climbs with it would be quadratic.

    python scripts/bench/startup.py --ranks 2 4 8 16 32 --plot scripts/results/startup.png
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from mace_train.distributed.world import World  # noqa: E402
from mace_train.settings import ClusterSettings, TrainSettings  # noqa: E402
from mace_train.train.setup import set_up  # noqa: E402
from mace_train.train.train import fit  # noqa: E402
from tests.conftest import run_command  # noqa: E402
from tests.train.ranks import run_ranks  # noqa: E402
from tests.train.training import settings_for  # noqa: E402

PHASES = ("join", "set up", "first epoch")
_GROWTH = 1.5  # of CPU seconds per rank, from the middle to the largest number of ranks


def main() -> int:
    """Measure, print, plot; 0 if the cost per rank does not climb with the number of ranks."""
    arguments = _arguments()
    work = Path(tempfile.mkdtemp(prefix="startup-"))
    run_command("preprocess", "data=example", "r_max=4.0", f"output={work}/prepared")
    run_ranks(2, _start, work, _settings(work, 0))  # starts the server, compiles
    table = {}
    for n_ranks in arguments.ranks:
        begin = time.monotonic()
        results = run_ranks(n_ranks, _start, work, _settings(work, n_ranks))
        seconds = [sum(values) / n_ranks for values in zip(*results, strict=True)]
        table[n_ranks] = seconds
        shown = ", ".join(f"{name} {s:.3f}" for name, s in zip(PHASES, seconds, strict=True))
        print(f"{n_ranks} ranks, {time.monotonic() - begin:.1f} s: CPU s per rank: {shown}")
    if arguments.plot:
        _plot(table, arguments.plot)
    rows = _rows(table)
    for row in rows:
        print(f"{row['name']}: {row['ours']:.3f} s, at fewer ranks {row['peer']:.3f} s")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0 if all(row["ratio"] >= row["at_least"] for row in rows) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8, 16, 32])
    parser.add_argument("--plot", type=Path, help="PNG")
    parser.add_argument("--json", type=Path, help="write the rows here")
    return parser.parse_args()


def _settings(work: Path, n_ranks: int) -> TrainSettings:
    cluster = ClusterSettings(device="cpu", kernels="reference", num_threads=1)
    return settings_for(
        work / "prepared", work / f"run-{n_ranks}", max_num_epochs=1, cluster=cluster
    )


def _start(world: World, settings: TrainSettings) -> tuple[float, float, float]:
    """CPU seconds of this rank until it has joined, until it is set up, and of one epoch."""
    joined = time.process_time()
    run = set_up(settings, world)
    ready = time.process_time()
    fit(run)
    return joined, ready - joined, time.process_time() - ready


def _rows(table: dict[int, list[float]]) -> list[dict[str, Any]]:
    """Joining and setting up at the most ranks, against half as many."""
    most = max(table)
    before = max((n for n in table if n <= most // 2), default=most)
    return [
        {
            "name": f"CPU s per rank to {PHASES[i]} at {most} ranks",
            "ours": table[most][i],
            "peer": table[before][i],
            "ratio": table[before][i] / table[most][i],
            "at_least": 1 / _GROWTH,
        }
        for i in (0, 1)
    ]


def _plot(table: dict[int, list[float]], path: Path) -> None:
    figure = Figure(figsize=(4.8, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for i, name in enumerate(PHASES[:2]):
        axes.plot(list(table), [row[i] for row in table.values()], marker="o", label=name)
    axes.set(xlabel="ranks", ylabel="CPU seconds per rank", xscale="log", ylim=(0, None))
    axes.set_xticks(list(table), [str(n) for n in table])
    axes.minorticks_off()
    axes.grid(alpha=0.3, linewidth=0.5)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    raise SystemExit(main())
