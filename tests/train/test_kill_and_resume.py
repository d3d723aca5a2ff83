"""Two gloo ranks under torchrun, one killed with SIGKILL, resumed: as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import TINY_MODEL

N_EPOCHS = 16


def command(prepared: Path, output: Path) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [
        *launcher,
        "--nproc-per-node=2",
        "-m",
        "mace_train",
        "train",
        f"data_dir={prepared}",
        f"output={output}",
        f"max_num_epochs={N_EPOCHS}",
        "restart_latest=true",
        "default_dtype=float64",
        "batching.batch_size=2",
        "loss=stress",
        "cluster=cpu",
        *TINY_MODEL,
    ]


def records(output: Path) -> list[dict[str, float]]:
    path = output / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def worker_pids(launcher: int) -> list[int]:
    """The processes that torchrun has started."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return [int(pid) for pid in children]


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc to find the ranks")
def test_a_killed_rank_costs_nothing_but_time(prepared, tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(prepared, whole), check=True, env=environment, capture_output=True)

    process = subprocess.Popen(
        command(prepared, killed),
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while len(records(killed)) < 2 and time.monotonic() < deadline:
        assert process.poll() is None, "training ended before it could be killed"
        time.sleep(0.02)
    os.kill(worker_pids(process.pid)[-1], signal.SIGKILL)
    assert process.wait(timeout=120) != 0
    n_before = len(records(killed))
    assert 2 <= n_before < N_EPOCHS

    subprocess.run(command(prepared, killed), check=True, env=environment, capture_output=True)
    for one, other in zip(records(whole), records(killed), strict=True):
        for key in ("epoch", "step", "train_loss", "valid_loss", "valid_forces_rmse_eV_per_A"):
            assert one[key] == other[key], key  # gloo on one host adds in a fixed order
