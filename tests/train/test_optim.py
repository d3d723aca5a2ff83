"""Schedules against torch's own, the weight average against its definition, parameter groups."""

import copy
import itertools
import math

import pytest
import torch
from torch import nn

from mace_train.settings import OptimizerSettings, SchedulerSettings
from mace_train.train.ema import EMA, holding
from mace_train.train.lr_schedule import Schedule
from mace_train.train.optim import make_optimizer, parameter_groups
from tests.train.networks import Named


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def test_plateau_reduces_like_torch():
    settings = SchedulerSettings(scheduler="plateau", lr_factor=0.5, scheduler_patience=2)
    ours = Schedule(settings, 0.1, 100)
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=2)
    losses = [1.0, 0.9, 0.95, 0.9, 0.89999, 0.9, 0.91, 0.92, 0.5, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6]
    for epoch, loss in enumerate(losses):
        ours.validated(loss)
        theirs.step(loss)
        expected = optimizer.param_groups[0]["lr"]
        assert ours.lr(epoch + 1.0, epoch + 1.1) == pytest.approx(expected, rel=1e-12)
    assert ours.factor < 0.5  # more than one reduction was seen


def test_exponential_and_cosine_end_points():
    exponential = Schedule(
        SchedulerSettings(scheduler="exponential", lr_scheduler_gamma=0.9), 1.0, 10
    )
    assert exponential.lr(3.8, 4.0) == pytest.approx(0.9**3)
    settings = SchedulerSettings(scheduler="cosine", warmup_epochs=2, min_lr_factor=0.1)
    cosine = Schedule(settings, 1.0, 10)
    rates = [cosine.lr(step / 4, (step + 1) / 4) for step in range(40)]
    assert rates[0] == pytest.approx(1 / 8)  # the first of 8 warm-up steps
    assert rates[7] == pytest.approx(1.0)
    assert max(rates) == pytest.approx(1.0)
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[8:]))
    half = 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (31 / 32)))
    assert rates[-1] == pytest.approx(half)


def test_schedule_state_survives():
    settings = SchedulerSettings(scheduler="plateau", scheduler_patience=0, lr_factor=0.5)
    schedule = Schedule(settings, 1.0, 10)
    for loss in (1.0, 1.0, 1.0):
        schedule.validated(loss)
    other = Schedule(settings, 1.0, 10)
    other.load_state_dict(schedule.state_dict())
    for loss in (0.5, 0.6, 0.4):
        schedule.validated(loss)
        other.validated(loss)
        assert other.lr(1.0, 2.0) == schedule.lr(1.0, 2.0)


def test_average_is_its_definition_and_gives_weights_back():
    network = small_network()
    average = EMA(network, 0.9)
    expected = {name: value.detach().clone() for name, value in network.named_parameters()}
    for n in range(1, 30):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter))
        average.update(network)
        decay = min(0.9, (1 + n) / (10 + n))
        for name, value in network.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * value.detach()
    own = copy.deepcopy(network.state_dict())
    with holding(network, average.shadow):
        for name, value in network.named_parameters():
            torch.testing.assert_close(value, expected[name])
    for name, value in network.state_dict().items():
        assert torch.equal(value, own[name])


def test_parameter_groups_decay_what_mace_torch_decays():
    decayed = [
        "interactions.0.linear.weight",
        "products.0.linear.weight",
        "products.0.symmetric_contractions.contractions.0.weights_max",
    ]
    free = [
        "node_embedding.linear.weight",
        "interactions.0.linear_up.weight",
        "interactions.0.skip_tp.weight",
        "interactions.0.conv_tp_weights.layer0.weight",
        "readouts.0.linear.weight",
    ]
    model = Named(decayed + free)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, OptimizerSettings(weight_decay=0.5))
    seen = {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}
    assert seen == {**dict.fromkeys(decayed, 0.5), **dict.fromkeys(free, 0.0)}
    with pytest.raises(AssertionError, match="belongs to no group"):
        parameter_groups(Named(["surprise.weight"]), OptimizerSettings())


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)]
)
def test_optimizer_settings_reach_torch(name, kind):
    settings = OptimizerSettings(optimizer=name, lr=0.3, beta=0.5, beta2=0.9, amsgrad=False)
    optimizer = make_optimizer(Named(["readouts.0.linear.weight"]), settings)
    assert type(optimizer) is kind
    group = next(g for g in optimizer.param_groups if g["params"])
    assert (group["lr"], group["betas"], group["amsgrad"]) == (0.3, (0.5, 0.9), False)
