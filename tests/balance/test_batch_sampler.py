"""Balanced batches in PyTorch's DataLoader, with worker processes, restarts and totals."""

import subprocess
import sys

import numpy as np
import pytest
from torch.utils.data import DataLoader

from mace_train.balance.batch_sampler import BalancedBatchSampler
from mace_train.errors import InputError
from tests.balance.sizes import paper_like


def samplers(n: int = 300, world_size: int = 3, **options) -> list[BalancedBatchSampler]:
    costs = paper_like(n)
    options = {"batch_size": 5, "seed": 4, **options}
    return [
        BalancedBatchSampler(
            costs.n_atoms, costs.n_edges, world_size=world_size, rank=rank, **options
        )
        for rank in range(world_size)
    ]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_item_once_through_a_data_loader(num_workers):
    seen = []
    for sampler in samplers():
        sampler.set_epoch(1)
        loader = DataLoader(range(300), batch_sampler=sampler, num_workers=num_workers)
        batches = list(loader)
        assert len(batches) == len(loader)
        seen += [i for batch in batches for i in batch.tolist()]
    assert sorted(seen) == list(range(300))


def test_a_restart_in_the_middle_gives_the_rest():
    whole, part = samplers()[0], samplers()[0]
    whole.set_epoch(2)
    part.set_epoch(2, step=4)
    assert list(part) == list(whole)[4:]
    assert len(part) == len(whole) - 4
    resumed = samplers()[0]
    resumed.load_state_dict(part.state_dict())
    assert list(resumed) == list(part)


def test_totals_are_those_of_all_ranks():
    of_ranks = samplers()
    sizes = paper_like(300).n_atoms
    for step, bins in enumerate(zip(*of_ranks, strict=True)):
        ids = np.concatenate(bins)
        assert of_ranks[0].totals(0, step) == (len(ids), sizes[ids].sum())


def test_what_cannot_be_batched_is_named():
    with pytest.raises(InputError, match="2 structures on 3 ranks"):
        BalancedBatchSampler([3, 4], [6, 12], world_size=3, rank=0)
    with pytest.raises(InputError, match="max_atoms=100"):
        samplers(max_atoms=100)


def test_planning_does_not_need_pytorch():
    code = (
        "import sys; from mace_train.balance.batch_sampler import BalancedBatchSampler as S\n"
        "assert len(list(S([3, 4], [6, 8], world_size=1, rank=0))) == 1\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
