"""Capacity from measured memory: the fit, what it promises, and that a restart keeps it."""

import sys
from dataclasses import replace

import numpy as np
import pytest

from mace_train.balance.cost_model import fit_linear_costs
from mace_train.distributed.world import World
from mace_train.errors import InputError
from mace_train.settings import BatchingSettings, ModelSettings
from mace_train.train.memory import (
    _bin,
    _peak,
    calibrate_capacity,
    peak,
    reset_peak,
)
from mace_train.train.setup import set_up
from mace_train.train.train import train
from tests.train.training import settings_for

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def test_the_fit_finds_the_slopes():
    random = np.random.default_rng(0)
    atoms, edges = random.uniform(10, 500, 12), random.uniform(100, 9000, 12)
    noise = random.normal(scale=1e5, size=12)
    fit = fit_linear_costs(atoms, edges, 3e8 + 4e4 * atoms + 2e3 * edges + noise)
    assert fit.fixed == pytest.approx(3e8, rel=0.01)
    assert fit.per_atom == pytest.approx(4e4, rel=0.05)
    assert fit.per_edge == pytest.approx(2e3, rel=0.05)
    assert fit.of(10, 100) == pytest.approx(3e8 + 4e5 + 2e5, rel=0.01)


@LINUX
def test_a_bin_of_the_measured_capacity_stays_within_the_memory(prepared, tmp_path):
    reset_peak(World())
    budget = peak(World()) / 1e9 + 0.4
    batching = BatchingSettings(capacity="auto", max_memory_gb=budget)
    model = ModelSettings(num_channels=64, max_ell=2, correlation=2)
    settings = settings_for(prepared, tmp_path / "run", batching=batching, model=model)
    settings = replace(settings, cluster=replace(settings.cluster, kernels="reference"))
    given = replace(settings, batching=BatchingSettings(), output=str(tmp_path / "given"))
    run = set_up(given, World())
    run.settings = settings
    capacity = calibrate_capacity(run)
    costs = run.train.costs
    assert capacity.max_atoms > costs.n_atoms.max()
    order = np.arange(len(costs))
    ids = _bin(costs.n_atoms, order, capacity.max_atoms)
    (graph,) = run.graphs(run.train, [ids], ahead=False)
    used = _peak(run, graph)
    assert used < 1e9 * budget
    small = replace(batching, max_memory_gb=0.01)
    run.settings = replace(settings, batching=small)
    with pytest.raises(InputError, match=r"0\.01 GB is enough for 0 atoms"):
        calibrate_capacity(run)


@LINUX
def test_a_restart_keeps_the_measured_capacity(prepared, tmp_path):
    batching = BatchingSettings(capacity="auto", max_memory_gb=8.0)
    settings = settings_for(prepared, tmp_path / "run", max_num_epochs=1, batching=batching)
    train(settings)
    again = replace(settings, restart_latest=True, max_num_epochs=2)
    runs = [set_up(again, World()) for _ in range(2)]
    assert runs[0].sampler.capacity == runs[1].sampler.capacity
    assert runs[0].sampler.capacity.batch_size is None
