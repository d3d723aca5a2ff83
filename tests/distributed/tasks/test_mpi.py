"""MPI: what is said where there is no MPI library."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
COMMAND = ["preprocess", "data=example", "r_max=4.5", "output=prepared"]


@pytest.mark.parametrize(
    "library",
    [
        {"MPI4PY_LIBMPI": "/nowhere/libmpi.so"},  # as where there is none
        {"MPI4PY_MPIABI": "unknown"},  # as where the one that is there is another
    ],
)
def test_no_mpi_library_is_one_message_with_the_remedy(library, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mace_train", *COMMAND],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "SLURM_STEP_NUM_TASKS": "4", "PYTHONPATH": str(ROOT), **library},
    )
    assert done.returncode == 2, done.stderr
    (line,) = (text for text in done.stderr.splitlines() if "error" in text)
    assert "4 tasks were started (SLURM_STEP_NUM_TASKS), but mpi4py finds no MPI library" in line
    for remedy in ("load the MPI module", "pip install mpich", "workers=N"):
        assert remedy in line
    assert "Traceback" not in done.stderr


def test_one_process_needs_no_mpi_library(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mace_train",
            "preprocess",
            "--dry-run",
            "data=example",
            "r_max=4.5",
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MPI4PY_LIBMPI": "/nowhere/libmpi.so"},
    )
    assert done.returncode == 0, done.stderr
