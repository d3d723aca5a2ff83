"""Ctrl-C at random moments of every command: exit code, seconds to the end, messages, litter.

Each command is run once to its end, which gives its duration, then interrupted at moments drawn
between its first lines and its end: by a signal to its process group, as from a terminal, to its
process alone, or to one rank.

    python scripts/bench/interrupts.py --draws 40 --commands preprocess train
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.conftest import TINY_MODEL, emt_structures, run_command  # noqa: E402
from tests.interrupted import PROGRAM, interrupted  # noqa: E402

TORCHRUN = [
    *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
    *("-m", "mace_train"),
]
MPIEXEC = [shutil.which("mpiexec") or "mpiexec"]
_KEPT = (".out.partial", *(".out.partial" + n * "/*" for n in range(1, 5)))


@dataclass
class Case:
    """A command line that is interrupted."""

    command: list[str]
    allowed: tuple[str, ...] = ()  # files that may stay
    compiles: bool = False
    targets: tuple[str, ...] = ("group", "process")
    by_launcher: bool = False
    again: list[str] | None = None
    """What the same command needs to continue; None if it only starts again."""
    prepare: Callable[[Path], None] = lambda folder: None


def cases(work: Path) -> dict[str, Case]:
    """By name; inputs lie in ``work``."""
    xyz, data, run = work / "train.xyz", work / "prepared", work / "run"
    cpu = ["cluster=cpu", "default_dtype=float64"]
    short = ["train", f"data_dir={data}", "output=out", "max_num_epochs=6", *cpu, *TINY_MODEL]
    plain = [*short, "cluster.kernels=reference", "batching.batch_size=4"]
    resume = ["restart_latest=true"]
    blocks = ["preprocess", f"data.train_file={xyz}", "r_max=5", "output=out"]
    blocks += ["structures_per_shard=8", "data.valid_fraction=0.2"]
    small = f"{work}/small.xyz"
    two = ("group", "process", "child")
    reference = "cluster.kernels=reference"
    evaluate = ["evaluate", f"checkpoint={run}", f"data_dir={data}", "output=out", reference]
    exchange = work / "run" / "checkpoints" / "best.safetensors"
    return {
        "help": Case([*PROGRAM, "train", "--help"]),
        "preprocess": Case([*PROGRAM, *blocks], _KEPT, again=[]),
        "preprocess workers": Case([*PROGRAM, *blocks, "workers=2"], _KEPT, again=[]),
        "preprocess mpiexec": Case(
            [*MPIEXEC, "-n", "3", *PROGRAM, *blocks], _KEPT, targets=two, by_launcher=True, again=[]
        ),
        "inspect": Case([*PROGRAM, "inspect", str(data)]),
        "balance": Case([*PROGRAM, "balance", f"data_dir={data}", "output=out"]),
        "train": Case([*PROGRAM, *plain], again=resume),
        "train workers": Case([*PROGRAM, *plain, "cluster.num_workers=2"], again=resume),
        "train compile": Case([*PROGRAM, *short, "cluster.kernels=cpp"], compiles=True),
        "train every step": Case([*PROGRAM, *plain, "checkpoints.every_steps=1"], again=resume),
        "train torchrun": Case([*TORCHRUN, *plain], targets=two, by_launcher=True, again=resume),
        "train mpiexec": Case(
            [*MPIEXEC, "-n", "2", *PROGRAM, *plain], targets=two, by_launcher=True, again=resume
        ),
        "evaluate": Case([*PROGRAM, *evaluate]),
        "evaluate torchrun": Case([*TORCHRUN, *evaluate], targets=two, by_launcher=True),
        "report": Case([*PROGRAM, "report", str(run), "output=out", reference]),
        "compare": Case([*PROGRAM, "compare", str(run), f"{run}2", "output=out"]),
        "sweep": Case([*PROGRAM, "sweep", str(work / "sweep")]),
        "tune": Case(
            [*PROGRAM, "tune", "trials=3", "output=out", "--", *plain[1:2], *plain[3:], "seed=1,2"],
            again=[],
        ),
        "md": Case(
            [*PROGRAM, "md", f"checkpoint={run}", f"structure={small}", "steps=200", "output=out"]
        ),
        "relax": Case([*PROGRAM, "relax", f"checkpoint={run}", f"structure={small}", "output=out"]),
        "descriptors": Case(
            [*PROGRAM, "descriptors", f"checkpoint={run}", f"structures={xyz}", "output=out.h5"]
        ),
        "select": Case(
            [*PROGRAM, "select", f"checkpoint={run}", f"structures={xyz}", "n=5", "output=out.xyz"]
        ),
        "export": Case([*PROGRAM, "export", str(exchange), "output=out.model"]),
        "import": Case([*PROGRAM, "import", str(work / "theirs.model"), "output=out.safetensors"]),
        "from-mace-config": Case([*PROGRAM, "from-mace-config", "--", "--r_max=5"]),
        "doctor": Case([*PROGRAM, "doctor"]),
        "multirun": Case([*PROGRAM, "train", "--multirun", *plain[1:], "seed=1,2,3"]),
    }


def main() -> int:
    """Run the campaign; 0 if nothing was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--draws", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--commands", nargs="+")
    parser.add_argument("--work", type=Path, help="inputs of an earlier campaign")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    work = arguments.work or Path(tempfile.mkdtemp(prefix="interrupts-"))
    work.mkdir(parents=True, exist_ok=True)
    os.environ["XDG_CACHE_HOME"] = str(work / "cache")
    if not (work / "run2").exists():
        _prepare(work)
    table, n_found = {}, 0
    for name, case in cases(work).items():
        if arguments.commands and name not in arguments.commands:
            continue
        table[name] = found = _campaign(name, case, work, arguments.draws, arguments.seed)
        n_found += found["n_problems"]
    if arguments.json:
        arguments.json.write_text(json.dumps(table, indent=1) + "\n")
    return int(n_found > 0)


def _prepare(work: Path) -> None:
    """What the commands read."""
    from ase.io import write

    structures = emt_structures(48, 16)
    write(work / "train.xyz", structures, format="extxyz")
    write(work / "small.xyz", structures[6])
    words = [f"data.train_file={work}/train.xyz", "data.valid_fraction=0.2", "r_max=4.0"]
    run_command("preprocess", *words, f"output={work}/prepared")
    words = ["train", f"data_dir={work}/prepared", "max_num_epochs=2", "cluster=cpu", *TINY_MODEL]
    run_command(*words, f"output={work}/run")
    run_command(*words, f"output={work}/run2", "seed=2")
    run_command("train", "--multirun", *words[1:], f"output={work}/sweep", "seed=1,2")
    best = work / "run" / "checkpoints" / "best.safetensors"
    run_command("export", best, f"output={work}/theirs.model")


def _campaign(name: str, case: Case, work: Path, n_draws: int, seed: int) -> dict[str, object]:
    duration = _duration(case, work / f"whole-{os.getpid()}")
    numbers = random.Random(f"{seed} {name}")
    outcomes, problems = [], 0
    for draw in range(n_draws):
        folder = work / f"draw-{os.getpid()}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        if case.compiles:
            os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        to, delay = numbers.choice(case.targets), numbers.uniform(0, duration)
        outcome = interrupted(case.command, folder, delay, to=to, allowed=case.allowed)
        os.environ["XDG_CACHE_HOME"] = str(work / "cache")
        found = outcome.problems(by_launcher=case.by_launcher)
        if outcome.code == 128 + 2 and case.again is not None and draw % 5 == 0:
            found += _continued(case, folder)
        outcomes.append(outcome)
        if found:
            problems += 1
            print(f"{name}: draw {draw}, {to}, after {delay:.2f} s: {'; '.join(found)}")
            print("   | " + "\n   | ".join(outcome.errors.splitlines()[-12:]), flush=True)
    sent = [outcome for outcome in outcomes if outcome.sent]
    seconds = sorted(outcome.seconds for outcome in sent) or [0.0]
    result = {
        "draws": len(sent),
        "n_problems": problems,
        "median_s": seconds[len(seconds) // 2],
        "longest_s": seconds[-1],
        "stretch": max((outcome.stretch for outcome in sent), default=1.0),
    }
    print(
        f"{name}: {len(sent)} of {n_draws} interrupted ({duration:.1f} s), {problems} with "
        f"problems, median {result['median_s']:.2f} s, longest {seconds[-1]:.2f} s",
        flush=True,
    )
    return result


def _duration(case: Case, folder: Path) -> float:
    """Seconds that the command takes, from its first lines."""
    shutil.rmtree(folder, ignore_errors=True)
    begin = time.monotonic()
    outcome = interrupted(case.command, folder, 300.0, allowed=case.allowed)
    assert outcome.code == 0, outcome.errors
    return time.monotonic() - begin


def _continued(case: Case, folder: Path) -> list[str]:
    """Whether the same command then goes on to its end."""
    done = subprocess.run(
        [*case.command, *(case.again or [])],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0 or "already holds data" in done.stderr:  # it had just finished
        return []
    return [f"does not continue: {done.stderr[-300:]}"]


if __name__ == "__main__":
    raise SystemExit(main())
