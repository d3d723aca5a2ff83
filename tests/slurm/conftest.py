"""One Slurm for all tests of a pytest process, and what they train on."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, why_not


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Four nodes; skipped with the reason where there can be none, unless one is required."""
    reason = why_not()
    if reason is not None:
        if os.environ.get("MACE_TRAIN_REQUIRE_SLURM"):
            pytest.fail(f"MACE_TRAIN_REQUIRE_SLURM is set, but Slurm cannot run here: {reason}")
        pytest.skip(f"no Slurm here: {reason}")
    cluster = Cluster(4)
    yield cluster
    cluster.stop()


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder to submit from that every node sees."""
    tmp_path.chmod(0o755)
    return tmp_path
