"""Sums of gradients over ranks: while the backward pass runs, whatever a rank lacks or fails at."""

import math

import pytest
import torch
from torch import nn

from mace_train.distributed.world import World
from mace_train.train.gradients import Gradients
from tests.train.ranks import run_ranks


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(8, 8, dtype=torch.float64) for _ in range(6)))


def data_of(rank: int) -> torch.Tensor:
    return torch.randn(3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(rank))


def summed(world: World) -> dict[str, object]:
    """What several kinds of steps give on this rank."""
    model = network()
    gradients = Gradients(list(model.parameters()), world, bucket_bytes=600)
    result: dict[str, object] = {"n_buckets": len(gradients._buckets)}

    def step(rank_does_it: bool = True, failed: bool = False, n_parts: int = 1) -> torch.Tensor:
        gradients.begin(own_norm=True)
        for part in range(n_parts):
            if part == n_parts - 1:
                gradients.send_when_done()
            if rank_does_it:
                model(data_of(world.rank)).square().sum().backward()
        result["sent_early"] = len(gradients._works)
        gradients.finish(failed=failed)
        return torch.cat([p.grad.flatten() for p in model.parameters()]).clone()

    result["sum"] = step()
    result["own"] = gradients.own_square()
    result["norm"] = gradients.norm()
    early = result["sent_early"]
    result["twice"] = step(n_parts=2)
    result["one_rank_empty"] = step(rank_does_it=world.rank == 0)
    step(failed=world.rank == 1)
    result["norm_of_failed"] = gradients.norm()
    step()
    result["norm_after_failed"] = gradients.norm()
    gradients.clip(gradients.norm(), 0.5)
    result["norm_clipped"] = gradients.norm()
    result["sent_early"] = early
    return result


def own_gradient(rank: int) -> torch.Tensor:
    model = network()
    model(data_of(rank)).square().sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def test_sums_overlap_with_the_backward_pass_and_survive_a_rank_that_fails(tmp_path):
    own = [own_gradient(rank) for rank in range(2)]
    total = own[0] + own[1]
    for rank, result in enumerate(run_ranks(2, summed, tmp_path)):
        assert result["n_buckets"] > 4
        assert result["sent_early"] == result["n_buckets"] - 1  # all but the last, before finish
        torch.testing.assert_close(result["sum"], total, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(result["twice"], 2 * total, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(result["one_rank_empty"], own[0], rtol=1e-13, atol=1e-13)
        assert result["own"] == pytest.approx(float(own[rank].square().sum()), rel=1e-12)
        assert result["norm"] == pytest.approx(float(total.norm()), rel=1e-12)
        assert math.isnan(result["norm_of_failed"])
        assert result["norm_after_failed"] == pytest.approx(float(total.norm()), rel=1e-12)
        assert result["norm_clipped"] == pytest.approx(0.5, rel=1e-5)


def test_clipping_is_torch_s():
    ours, theirs = network(), network()
    gradients = Gradients(list(ours.parameters()), World())
    gradients.begin()
    for model in (ours, theirs):
        model(data_of(0)).square().sum().backward()
    gradients.finish()
    norm = gradients.norm()
    assert norm == pytest.approx(float(nn.utils.clip_grad_norm_(theirs.parameters(), 0.1)))
    gradients.clip(norm, 0.1)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-12, atol=0)
    gradients.clip(norm, None)
