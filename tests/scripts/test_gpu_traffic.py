"""What the CUDA kernels of a step move, counted on the host."""

from pathlib import Path

import pytest
import torch

from tests.modules import module_of

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    return module_of(ROOT / "scripts" / "bench" / "gpu" / "traffic.py")


def test_pair_by_pair_nothing_is_summed_over_pairs(script):
    n_edges, by_edge = script.step(0, torch.float32, 4)
    again, by_pair = script.step(0, torch.float32, 4, by_pair=True)
    assert n_edges == again == 4 * script.N_ATOMS
    n_sums = by_edge.launches["sum"] - by_pair.launches["sum"]
    assert n_sums == by_edge.writings == by_pair.writings == 6  # one for every gradient of r
    assert by_edge.radial_sums > 0
    assert by_pair.radial_sums == 0
    # the gradients have half as many rows, and their sums are gone
    row = 4 * script.CHANNELS * 4  # paths, channels, bytes of one edge
    assert by_edge.radial - by_edge.radial_sums - by_pair.radial == 6 * n_edges // 2 * row
