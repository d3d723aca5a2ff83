"""Trainings in processes of their own, started and watched from a test."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TINY_MODEL

REFERENCE = "cluster.kernels=reference"


def records_so_far(output: Path) -> list[dict[str, Any]]:
    """The complete lines of metrics.jsonl, which a training may be writing; [] before the first."""
    path = output / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def words(prepared: Path, output: Path, *more: str) -> list[str]:
    """A training that writes a checkpoint after every second step."""
    return [
        *("train", f"data_dir={prepared}", f"output={output}", "default_dtype=float64"),
        *("batching.batch_size=2", "loss=stress", "cluster=cpu", "checkpoints.every_steps=2"),
        *(REFERENCE, *TINY_MODEL, *more),
    ]


def torchrun(n_ranks: int, n_restarts: int, *words: str) -> list[str]:
    """The command that runs mace-train on ``n_ranks`` ranks of this machine."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher += [f"--max-restarts={n_restarts}", f"--nproc-per-node={n_ranks}"]
    return [*launcher, "-m", "mace_train", *words]


def workers(launcher: int) -> list[int]:
    """The ranks that torchrun has started, in their order."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return [int(pid) for pid in children]


def wait_for(condition: Any, process: "subprocess.Popen[bytes]", seconds: float = 240) -> None:
    """Wait until ``condition()`` holds; fails when the process ends first, or after ``seconds``."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the training ended too early"
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.02)


LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds ranks in /proc")
