"""Predicted epochs by hand; scaling has the shape it must have; real ranks are predicted."""

import numpy as np
import pytest

from mace_train.balance.bins import Bins
from mace_train.balance.cost_model import CostModel
from mace_train.balance.costs import Costs, derive_capacity
from mace_train.balance.plan import Plan
from mace_train.balance.simulate import (
    ASSUMED_GPU,
    FABRICS,
    Cluster,
    Fabric,
    resized,
    strong_scaling,
    weak_scaling,
)
from mace_train.settings.commands import FABRICS as FABRIC_NAMES
from tests.balance.sizes import paper_like

NET = Fabric("net", 1000.0, 0.5)


def test_reductions_by_hand():
    # 4 ranks: 6 messages of 0.5 s and 6 of a quarter of 400 bytes; a tree has 2 x 2 levels
    assert NET.reduce_s(400, 4, "ring") == pytest.approx(6 * 0.5 + 6 * 0.1)
    assert NET.reduce_s(400, 4, "tree") == pytest.approx(4 * 0.5 + 6 * 0.1)
    assert NET.reduce_s(400, 1, "ring") == 0.0
    assert set(FABRICS) == set(FABRIC_NAMES)
    ring = FABRICS["slingshot-11"].reduce_s(10e6, 740, "ring")
    assert ring == pytest.approx(8.2e-3, rel=0.01)  # 0.8 ms of transfer, 1478 messages


def test_an_epoch_by_hand():
    costs = Costs(np.array([1, 2, 3, 4]), np.array([0, 10, 0, 10]))
    plan = Plan(costs, 2, Bins.listed([[0], [1], [2], [3]]))
    epoch = Cluster(CostModel(1.0, 2.0, 0.1), NET, 100.0).epoch(plan)
    # times 3, 6 | 7, 10; mean 4.5 + 8.5, slowest 6 + 10; two reductions of 2 (0.5 + 0.05)
    assert epoch.compute_s == pytest.approx(13.0)
    assert epoch.waiting_s == pytest.approx(3.0)
    assert epoch.communication_s == pytest.approx(2.2)
    assert epoch.total_s == pytest.approx(18.2)
    assert epoch.efficiency == pytest.approx(13 / 18.2)


def test_scaling_falls_with_ranks_and_balance_helps():
    costs = paper_like(20_000)
    capacity = derive_capacity(costs, 1, 3072, None)
    cluster = Cluster(ASSUMED_GPU, FABRICS["slingshot-11"], 10e6)
    ranks = [8, 32, 128]
    ours = strong_scaling(costs, "balanced", capacity, cluster, ranks, 0)
    theirs = strong_scaling(costs, "first_fit", capacity, cluster, ranks, 0)
    times = [epoch.total_s for epoch in ours]
    assert times == sorted(times, reverse=True)
    assert all(a.total_s < b.total_s for a, b in zip(ours, theirs, strict=True))
    weak = weak_scaling(costs, "balanced", capacity, cluster, ranks, 100, 0)
    assert all(epoch.n_ranks == n for epoch, n in zip(weak, ranks, strict=True))
    assert weak[-1].total_s < 1.3 * weak[0].total_s


@pytest.mark.parametrize("n", [10, 999, 1000, 5000])
def test_a_resized_set_has_the_same_sizes(n):
    costs = paper_like(1000)
    other = resized(costs, n)
    assert len(other) == n
    assert other.n_atoms.mean() == pytest.approx(costs.n_atoms.mean(), rel=0.5 if n < 50 else 0.05)
