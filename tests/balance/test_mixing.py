"""Mixing: by brute force over pairs, 1 for random plans, far from 1 for bad ones."""

import numpy as np
import pytest

from mace_train.balance.bins import Bins
from mace_train.balance.costs import Capacity, Costs, derive_capacity
from mace_train.balance.mixing import mixing, repetition
from mace_train.balance.plan import Plan, make_plan
from tests.balance.sizes import paper_like


def fixed(costs: Costs, epoch: int) -> Plan:
    return make_plan(costs, "fixed_count", Capacity(1, 0, 6), 8, 0, epoch)


def test_repetition_by_brute_force():
    costs = paper_like(90)
    first, second = fixed(costs, 0), fixed(costs, 1)

    def pairs(plan: Plan) -> set[tuple[int, int]]:
        return {(a, b) for ids in plan.bins for a in ids.tolist() for b in ids.tolist() if a < b}

    before, after = pairs(first), pairs(second)
    expected = len(before & after) / len(before) / (len(after) / (90 * 89 / 2))
    assert repetition(first, second) == pytest.approx(expected, rel=1e-12)


def test_random_plans_mix_and_bins_of_one_kind_do_not():
    costs = paper_like(40_000)
    random = fixed(costs, 0)
    assert repetition(random, fixed(costs, 1)) == pytest.approx(1, abs=0.15)
    assert repetition(random, random) > 1000
    assert mixing(random).within_bins == pytest.approx(1, abs=0.02)
    assert mixing(random).between_steps == pytest.approx(1, abs=0.15)
    by_size = np.argsort(costs.n_atoms, kind="stable").reshape(-1, 5)
    bad = mixing(Plan(costs, 8, Bins.listed(by_size)))
    assert bad.within_bins < 0.01
    assert bad.between_steps > 10


def test_balanced_plans_mix():
    costs = paper_like(60_000)
    capacity = derive_capacity(costs, 1, 3072, None)
    plans = [make_plan(costs, "balanced", capacity, 64, 0, epoch) for epoch in range(2)]
    assert repetition(*plans) < 1.6
    assert repetition(*plans, steps=True) == pytest.approx(1, abs=0.05)
    assert mixing(plans[0]).within_bins == pytest.approx(1, abs=0.1)
    assert mixing(plans[0]).between_steps < 0.2
