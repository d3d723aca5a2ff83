"""Trainings of the tests on Slurm, and the numbers that they are compared by."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from mace_train.train import checkpoint
from tests.conftest import TINY_MODEL
from tests.train.processes import records_so_far

SETTINGS = (
    *TINY_MODEL,
    "cluster=cpu",
    "cluster.kernels=reference",
    "cluster.timeout_s=60",
    "default_dtype=float64",
    "batching.batch_size=2",
    "batching.valid_batch_size=4",
)
TWO_NODES = ["--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=1"]


def numbers(output: Path) -> list[dict[str, Any]]:
    """The metrics of every epoch that do not tell time."""
    keys = ("epoch", "step", "train_loss", "valid_loss", "structures")
    return [
        {k: v for k, v in record.items() if k in keys or k.startswith("valid_")}
        for record in records_so_far(output)
    ]


def weights(output: Path) -> str:
    """Checksum of the final weights."""
    tensors, _ = checkpoint.read(output / "checkpoints/last.safetensors")
    return checkpoint.checksum(
        {name: value for name, value in tensors.items() if name.startswith("model.")}, ""
    )


def torchrun(prepared: Path, output: Path, n_ranks: int, n_epochs: int) -> Path:
    """The same training without Slurm."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n_ranks}"]
    settings = [f"data_dir={prepared}", f"output={output}", f"max_num_epochs={n_epochs}"]
    subprocess.run(
        [sys.executable, *launcher, "-m", "mace_train", "train", *settings, *SETTINGS],
        check=True,
        capture_output=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    return output
