"""Parts of a model by name, frozen or with a learning rate of their own, in all kinds of blocks."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mace_train.distributed.world import World
from mace_train.errors import InputError
from mace_train.model.lora import add_low_rank
from mace_train.model.mace import MACE
from mace_train.settings import CheckpointSettings, ModelSettings, OptimizerSettings
from mace_train.settings.model import ATTENTION, DENSITY, DENSITY_RESIDUAL
from mace_train.train.optim import freeze, lr_factors, make_optimizer, parameter_groups
from mace_train.train.setup import set_up
from mace_train.train.step import train_step
from mace_train.train.train import train
from tests.charged import SPECS
from tests.model.systems import NONLINEAR_SETTINGS, model_of
from tests.train.training import (
    assert_same_end,
    graph_of,
    settings_for,
    train_until_killed,
)

MODELS = {
    "residual": {},
    "agnostic": {"model": "MACE", "pair_repulsion": True},
    "density": {"interaction_first": DENSITY, "interaction": DENSITY_RESIDUAL},
    "attention": {"interaction": ATTENTION, "interaction_first": ATTENTION},
    "nonlinear": {  # as MACE-MH-1 and OMOL
        **NONLINEAR_SETTINGS,
        "readout_cls": "NonLinearBiasReadoutBlock",
        "use_last_readout_only": True,
        "embedding_specs": SPECS,
        "use_embedding_readout": True,
    },
}
OF_NEW_BLOCKS = {  # parameters that the first models do not have
    "density": ("interactions.0.density_fn.layer0.weight",),
    "attention": ("interactions.1.linear_down.weight", "interactions.1.skip_linear.weight"),
    "nonlinear": (
        *("interactions.0.alpha", "interactions.1.beta", "interactions.1.linear_res.weight"),
        *("interactions.0.source_embedding.weight", "interactions.1.target_embedding.weight"),
        *("interactions.1.linear_1.weight", "interactions.1.linear_2.weight"),  # with gates
        *("readouts.0.linear_mid.bias", "readouts.0.linear_2.bias"),
    ),
}


def make(kind: str) -> MACE:
    return model_of((1, 8), **{"max_ell": 2, "correlation": 2, **MODELS[kind]})


def parts_of(model: MACE) -> dict[str, set[str]]:
    """The parameters of every module and of every parameter, by name."""
    names = [name for name, _ in model.named_parameters()]
    paths = {
        ".".join(name.split(".")[: n + 1]) for name in names for n in range(name.count(".") + 1)
    }
    return {path: {n for n in names if n == path or n.startswith(path + ".")} for path in paths}


@pytest.mark.parametrize("kind", MODELS)
def test_every_part_can_be_frozen_and_have_a_rate(kind):
    model, rates = make(kind), {}
    parts = parts_of(model)
    assert set(OF_NEW_BLOCKS.get(kind, ())) <= parts.keys()
    for part, inside in parts.items():
        factors = lr_factors(model, OptimizerSettings(lr_params_factors={part: 0.3}))
        assert {name for name, factor in factors.items() if factor == 0.3} == inside
        assert set(factors.values()) <= {0.3, 1.0}
        if len(inside) == len(factors):
            continue
        freeze(model, [part])
        assert {n for n, p in model.named_parameters() if not p.requires_grad} == inside
        rates[part] = len(inside)
        model.requires_grad_(True)
    assert len(rates) > 20


@pytest.mark.parametrize("kind", MODELS)
def test_all_parameters_are_in_one_group_with_the_rate_of_the_longest_name(kind):
    model = make(kind)
    given = {"interactions": 0.5, "interactions.1": 0.25, "readouts": 2, "embedding": 0.0}
    new = OF_NEW_BLOCKS.get(kind, ("interactions.1.linear_up.weight",))
    given |= {name: 8.0 + i for i, name in enumerate(new)}
    expected = {}
    for name, _ in model.named_parameters():
        fitting = [p for p in given if name == p or name.startswith(p + ".")]
        expected[name] = float(given[max(fitting, key=len)]) if fitting else 1.0
        if name.startswith("node_embedding."):
            expected[name] = 0.0
    groups = parameter_groups(model, OptimizerSettings(lr_params_factors=given, weight_decay=0.1))
    names = {id(p): name for name, p in model.named_parameters()}
    found = [(names[id(p)], group["lr_factor"]) for group in groups for p in group["params"]]
    assert len(found) == len(names)
    assert dict(found) == expected
    plain = parameter_groups(model, OptimizerSettings(weight_decay=0.1))
    decay = [
        {names[id(p)]: group["weight_decay"] for group in of for p in group["params"]}
        for of in (groups, plain)
    ]
    assert decay[0] == decay[1]


def test_inputs_and_low_rank_changes_have_short_and_long_names():
    model = make("nonlinear")
    factors = lr_factors(model, OptimizerSettings(lr_params_factors={"inputs": 3, "embedding": 2}))
    assert {name.split(".")[0] for name, factor in factors.items() if factor == 3.0} == {
        "joint_embedding",
        "embedding_readout",
    }
    freeze(model, ["inputs", "embedding"])
    frozen = {n.split(".")[0] for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"joint_embedding", "embedding_readout", "node_embedding"}
    model = make("nonlinear")
    add_low_rank(model, 2, 1.0)
    freeze(model, ["interactions.0", "readouts.0.linear_1"])
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert not any(n.startswith(("interactions.0.", "readouts.0.linear_1.")) for n in trained)
    assert any(n.startswith("interactions.1.linear_res.") for n in trained)


@pytest.mark.parametrize("kind", ["density", "nonlinear"])
def test_a_step_of_training_keeps_to_the_rates(kind, prepared, tmp_path):
    architecture = {k: v for k, v in MODELS[kind].items() if "embedding" not in k}
    model = ModelSettings(
        **{"num_channels": 4, "correlation": 2, "radial_MLP": [8], "max_ell": 2} | architecture
    )
    layer = "interactions.0.linear_2" if kind == "nonlinear" else "interactions.0.linear"
    new = "interactions.0.target_embedding" if kind == "nonlinear" else "interactions.0.density_fn"
    factors = {"interactions.0": 0.5, layer: 0.0, new: 2.0}
    optimizer = OptimizerSettings(
        lr_params_factors=factors,
        weight_decay=0.0,
        freeze=["interactions.1.density_fn", "products"],
    )
    changes = {"model": model, "optimizer": optimizer}
    run = set_up(settings_for(prepared, tmp_path / "run", **changes), World())
    before = {name: value.detach().clone() for name, value in run.model.named_parameters()}
    train_step(run, [graph_of(run, [0, 1, 2])], lr=0.01)
    rates = set()
    for name, value in run.model.named_parameters():
        step = float((value.detach() - before[name]).abs().max())  # the first step of Adam is lr
        fitting = [p for p in factors if name.startswith(p + ".")]
        expected = 0.01 * (factors[max(fitting, key=len)] if fitting else 1.0)
        if name.startswith(("interactions.1.density_fn.", "products.")):
            expected = 0.0
        gradient = value.grad
        if gradient is not None and float(gradient.abs().max()) > 0.0:  # not of a weight that is 0
            assert step == pytest.approx(expected, rel=1e-2, abs=1e-12), name
            rates.add(round(expected, 4))
        else:
            assert step == 0.0
    assert rates >= {0.0, 0.005, 0.01, 0.02}


@pytest.mark.parametrize("name", ["adam", "schedulefree"])
def test_rates_of_layers_may_change_and_resume(name, prepared, tmp_path):
    given = {"interactions.0": 0.5, "interactions.0.linear": 2.0}
    optimizer = OptimizerSettings(optimizer=name, lr=0.005, lr_params_factors=given)
    common = {
        "optimizer": optimizer,
        "max_num_epochs": 2,
        "restart_latest": True,
        "checkpoints": CheckpointSettings(every_steps=1),
    }
    train(settings_for(prepared, tmp_path / "whole", **common))
    settings = settings_for(prepared, tmp_path / "run", **common)
    train_until_killed(World(), settings, 3)
    train(settings)
    assert_same_end(tmp_path / "whole", tmp_path / "run")
    for factors in (None, {**given, "products.1": 0.1}):
        changed = replace(optimizer, lr_params_factors=factors)
        n = 3 if factors is None else 4
        train(replace(settings, optimizer=changed, max_num_epochs=n))


@pytest.mark.parametrize(
    ("setting", "kind", "name", "nearest"),
    [
        ("freeze", "residual", "node_embeding", "node_embedding"),
        ("freeze", "nonlinear", "interactions.0.alhpa", "interactions.0.alpha"),
        ("freeze", "density", "interactions.0.densty_fn", "interactions.0.density_fn"),
        ("freeze", "nonlinear", "interactions.1.liner_res", "interactions.1.linear_res"),
        ("factors", "nonlinear", "interactions.2", "interactions.1"),
        ("factors", "nonlinear", "readouts.0.linear_3", "readouts.0.linear_2"),
        ("factors", "residual", "inputs", None),
    ],
)
def test_a_name_that_matches_nothing(setting, kind, name, nearest):
    model = make(kind)
    factors = OptimizerSettings(lr_params_factors={name: 2.0} if setting == "factors" else None)
    with pytest.raises(InputError) as error:
        freeze(model, [name]) if setting == "freeze" else lr_factors(model, factors)
    said = str(error.value)
    which = "freeze" if setting == "freeze" else "lr_params_factors"
    assert said.startswith(f"optimizer.{which} names {name!r}, which is no part of the model")
    assert re.search(r"its parts are .*interactions\.0, .*, and the parameters in them$", said)
    assert nearest is None or f"(did you mean {nearest}?)" in said


def test_two_names_of_one_part_and_of_none():
    factors = {"embedding": 1.0, "node_embedding.linear": 2.0}
    with pytest.raises(InputError, match=r"embedding and node_embedding\.linear are the same part"):
        lr_factors(make("residual"), OptimizerSettings(lr_params_factors=factors))
    with pytest.raises(
        InputError, match=r"embedding, interactions, products, readouts, inputs, or"
    ):
        OptimizerSettings(lr_params_factors={"interaction.0": 1.0})


def test_rates_that_have_no_effect_are_said(caplog):
    model = make("residual")
    make_optimizer(model, OptimizerSettings(lr_params_factors={"readouts": 1}), "lbfgs")
    assert not caplog.text
    make_optimizer(model, OptimizerSettings(lr_params_factors={"readouts": 2}), "lbfgs")
    assert "optimizer.lr_params_factors has no effect on L-BFGS" in caplog.text


def test_wrong_names_are_said_before_kernels_are_compiled(prepared, tmp_path: Path, monkeypatch):
    def late(*_: object, **__: object) -> None:
        raise AssertionError("compiled")

    monkeypatch.setattr("mace_train.train.build_model.compile_kernels_on_all_ranks", late)
    for optimizer in (
        OptimizerSettings(freeze=["interactions.7"]),
        OptimizerSettings(lr_params_factors={"interactions.7": 2.0}),
    ):
        with pytest.raises(InputError, match=r"'interactions\.7', which is no part"):
            set_up(settings_for(prepared, tmp_path / "run", optimizer=optimizer), World())
    assert torch.get_default_dtype() == torch.float32
