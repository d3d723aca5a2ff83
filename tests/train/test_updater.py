"""What changes the weights: void gradients, what a checkpoint keeps, which weights are used."""

import logging
import math
from typing import Any

import pytest
import torch

from mace_train.distributed.world import World
from mace_train.model.mace import MACE, Head, ModelData
from mace_train.settings import ModelSettings, OptimizerSettings, TrainSettings
from mace_train.train.checkpoint import with_prefix
from mace_train.train.timing import StepTimer
from mace_train.train.updater import Updater


def updater_of(name: str = "adam", **changes: Any) -> Updater:
    """An updater of a small model with random weights, always the same."""
    settings = ModelSettings(num_channels=4, max_L=0, max_ell=1, correlation=2, radial_MLP=[8])
    torch.manual_seed(0)
    model = MACE(settings, ModelData(4.0, (1, 8), 5.0, (Head((0.0, 0.0), 1.0, 0.0),))).double()
    given = TrainSettings(data_dir="", optimizer=OptimizerSettings(optimizer="adam"), **changes)
    return Updater(model, given, name, World())


def step(updater: Updater, seed: int, fill: float | None = None) -> float:
    """One update with a random gradient, or one that holds ``fill``; its norm."""
    updater.zero_gradients()
    values = torch.randn(len(updater.gradients.flat), generator=torch.Generator().manual_seed(seed))
    values[-1] = 0.0
    if fill is not None:
        values[0] = fill
    updater.gradients.flat.copy_(values)
    return updater.update(0.01, StepTimer())()


def weights(updater: Updater) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in updater.parameters]).clone()


@pytest.mark.parametrize("fill", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(fill):
    updater = updater_of()
    assert math.isfinite(step(updater, 1))
    before, n_updates = weights(updater), updater.ema.n_updates
    assert not math.isfinite(step(updater, 2, fill))
    assert torch.equal(weights(updater), before)
    assert updater.ema.n_updates == n_updates == 1
    assert math.isfinite(step(updater, 3))
    assert not torch.equal(weights(updater), before)


@pytest.mark.parametrize("name", ["adam", "adamw", "schedulefree"])
def test_a_loaded_updater_continues_bit_for_bit(name):
    first, second = updater_of(name), updater_of(name)
    for seed in range(3):
        step(first, seed)
    tensors, header = first.state()
    tensors |= with_prefix("model.", dict(first.model.named_parameters()))
    tensors = {key: value.detach().clone() for key, value in tensors.items()}
    second.model.load_state_dict(first.model.state_dict())
    second.load_state(tensors, header, name)
    for seed in range(3, 5):
        assert step(first, seed) == step(second, seed)
    assert torch.equal(weights(first), weights(second))
    used, of_second = first.weights_to_use(), second.weights_to_use()
    assert used.keys() == of_second.keys()
    assert all(torch.equal(value, of_second[key]) for key, value in used.items())


def test_adam_and_adamw_share_their_state_and_others_start_from_zero(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("mace_train"), "propagate", True)
    first = updater_of("adam", ema=False)
    step(first, 0)
    tensors, header = first.state()
    other = updater_of("adam", ema=False)
    other.load_state(tensors, header, "adamw")
    assert isinstance(other.optimizer, torch.optim.AdamW)
    assert all(other.optimizer.state[p]["step"] == 1 for p in other.parameters)
    assert caplog.text == ""
    other.load_state(tensors, header, "lbfgs")
    assert not other.optimizer.state
    assert "the optimizer was adam and is lbfgs now" in caplog.text


def test_the_ema_is_used_with_adam_alone():
    updater = updater_of("adam")
    step(updater, 0)
    assert updater.weights_to_use() is updater.ema.shadow
    updater.start_optimizer("lbfgs")
    assert updater.weights_to_use() is None
    assert not updater.starts_ahead
