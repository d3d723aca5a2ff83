"""Thirty-two ranks on this machine: start, validation, checkpoint, early stop, another size."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase.io import write

from mace_train.balance.costs import Costs
from mace_train.balance.sampler import BinSampler
from mace_train.distributed.world import World
from mace_train.settings import BatchingSettings, ClusterSettings, OptimizerSettings
from mace_train.train.setup import set_up
from mace_train.train.validation import validate
from tests.conftest import emt_structures, run_command
from tests.train.many import training
from tests.train.ranks import run_ranks
from tests.train.training import settings_for


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> Path:
    """96 structures for training and 32 for validation."""
    folder = tmp_path_factory.mktemp("many")
    write(folder / "train.xyz", emt_structures(96, 32), format="extxyz")
    settings = [f"data.train_file={folder}/train.xyz", "data.valid_fraction=0.25", "r_max=3.5"]
    run_command("preprocess", *settings, f"output={folder}/prepared")
    return folder / "prepared"


@pytest.mark.slow
def test_thirty_two_ranks(many, tmp_path):
    batching = BatchingSettings(batch_size=1, valid_batch_size=2)
    cluster = ClusterSettings(device="cpu", kernels="reference", num_threads=1)
    settings = settings_for(
        many, tmp_path / "run", max_num_epochs=1, batching=batching, cluster=cluster, ema=False
    )
    results = run_ranks(32, training, tmp_path, settings)
    assert len({str(result) for result in results}) == 1  # the ranks agree in everything
    progress, loss, _ = results[0]
    assert progress["epoch"] == 0
    # one rank sees the same validation errors, with the weights of the checkpoint
    again = replace(settings, restart_latest=True)
    assert validate(set_up(again, World()))[0] == pytest.approx(loss, rel=1e-9)
    # eight ranks go on, and stop early when nothing improves
    idle = OptimizerSettings(lr=1e-30)
    more = replace(again, max_num_epochs=9, patience=1, optimizer=idle)
    results = run_ranks(8, training, tmp_path, more)
    assert len({str(result) for result in results}) == 1
    assert 1 <= results[0][0]["epoch"] < 8
    assert results[0][0]["bad_validations"] == 1


@pytest.mark.parametrize("world_size", [740, 4096])
def test_every_structure_has_one_rank_of_many(world_size):
    random = np.random.default_rng(world_size)
    n_atoms = random.integers(2, 200, size=2 * world_size)
    costs = Costs(n_atoms, n_atoms * random.integers(20, 60, size=len(n_atoms)))
    ranks = [0, world_size - 1]
    samplers = [
        BinSampler(costs, BatchingSettings(batch_size=2), world_size, rank, seed=3)
        for rank in ranks
    ]
    plan = samplers[0].plan(0)
    taken = np.concatenate([ids for r in range(world_size) for ids in plan.of_rank(r)])
    assert sorted(taken.tolist()) == list(range(len(costs)))
    lengths = {len(list(plan.of_rank(rank))) for rank in range(world_size)}
    assert len(lengths) == 1  # all ranks take the same number of steps
    for sampler, rank in zip(samplers, ranks, strict=True):  # each rank plans alone, and agrees
        own = [ids.tolist() for ids in sampler.bins(0)]
        assert own == [ids.tolist() for ids in plan.of_rank(rank)]
