"""Python in MPI ranks, and a task for them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mace_train.errors import InvalidStructureError

ROOT = Path(__file__).parents[3]


def square(number: int) -> int:
    """The task of the tests; it fails for 7 and 9."""
    if number in (7, 9):
        raise InvalidStructureError("seven or nine", f"{number} does not work")
    return number * number


def mpiexec(n: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in ``n`` MPI ranks, or skip."""
    pytest.importorskip("mpi4py", reason="mpi4py is not installed (extra 'mpi')")
    found = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if found is None:
        pytest.skip("there is no mpiexec (extra 'mpi' brings one)")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    environment["PRTE_MCA_rmaps_default_mapping_policy"] = ":oversubscribe"
    return subprocess.run(
        [found, "-n", str(n), sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        env=environment,
        check=False,
    )
