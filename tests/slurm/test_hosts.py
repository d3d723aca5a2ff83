"""Four hosts without any launcher: they meet, train, and name the one whose cable is pulled."""

import re
import sys

import pytest

from mace_train.errors import LostRankError
from tests.slurm.test_train import SETTINGS, wait_for_epoch

pytestmark = pytest.mark.slow


def test_a_host_that_is_cut_off_in_mid_step_is_named(cluster, prepared, folder):
    settings = [f"data_dir={prepared}", f"output={folder}/run", "max_num_epochs=10000", *SETTINGS]
    command = [sys.executable, "-m", "mace_train", "train", *settings, "cluster.timeout_s=20"]
    master = {"WORLD_SIZE": "4", "MASTER_ADDR": "node1", "MASTER_PORT": "29511"}
    places = [{"RANK": str(r), "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"} for r in range(4)]
    ranks = [
        cluster.start_on(node, command, **master, **place) for node, place in enumerate(places, 1)
    ]
    try:
        wait_for_epoch(folder / "run", 0)
        cluster.set_cable(4, "down")
        messages = [rank.communicate(timeout=90)[1] for rank in ranks[:3]]
    finally:
        cluster.set_cable(4, "up")
        for rank in ranks:
            rank.kill()
            rank.communicate()
    for rank, message in zip(ranks, messages, strict=False):
        assert rank.returncode == LostRankError.exit_code, message
        # those whose neighbour has given up before them are told that a rank died
        what = r"(no answer within cluster.timeout_s=20|a rank died): "
        assert re.search(what + r".*rank 3 \(process \d+ on node4, step \d+", message), message
    assert any("no answer within" in message for message in messages)
