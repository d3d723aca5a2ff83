"""Recipes: stages, optimizers, freezing, groups, accumulation, scaling, the noise scale."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mace_train.distributed.world import World
from mace_train.errors import InputError
from mace_train.settings import (
    BatchingSettings,
    FinishSettings,
    LoggerSettings,
    LossSettings,
    OptimizerSettings,
    StageTwoSettings,
    TrainSettings,
)
from mace_train.train.checkpoint import load_model, read
from mace_train.train.gradients import NoiseScale
from mace_train.train.lr_schedule import scaled
from mace_train.train.optim import evaluation_weights, freeze, make_optimizer
from mace_train.train.setup import set_up
from mace_train.train.stages import stage_of, stages_of
from mace_train.train.step import train_step
from mace_train.train.train import train
from tests.train.ranks import run_ranks
from tests.train.training import LOSS, graph_of, records, settings_for


def test_stages_have_the_weights_and_rates_of_mace_torch():
    settings = TrainSettings(
        max_num_epochs=40,
        loss=LossSettings(stress_weight=1.0),
        stage_two=StageTwoSettings(enabled=True),
        finish=FinishSettings(optimizer="lbfgs", epochs=4, lr=1.0),
    )
    one, two, finish = stages_of(settings)
    assert (one.start, two.start, finish.start) == (0, 30, 36)  # 40 // 4 * 3
    assert (two.loss.energy_weight, two.loss.forces_weight) == (1000.0, 100.0)
    assert (two.loss.stress_weight, two.loss.virials_weight) == (10.0, 0.0)
    assert (one.lr, two.lr, finish.lr) == (None, 1e-3, 1.0)
    assert (two.optimizer, finish.optimizer) == ("adam", "lbfgs")
    assert [stage_of([one, two, finish], epoch) for epoch in (0, 29, 30, 35, 36, 39)] == [
        0, 0, 1, 1, 2, 2,
    ]  # fmt: skip
    with pytest.raises(InputError, match=r"stage two .* has no epoch"):
        stages_of(replace(settings, stage_two=StageTwoSettings(enabled=True, start=38)))


def test_stage_two_starts_a_new_best_and_keeps_that_of_stage_one(prepared, tmp_path):
    settings = settings_for(
        prepared,
        tmp_path / "run",
        max_num_epochs=6,
        stage_two=StageTwoSettings(enabled=True, start=4, lr=1e-4),
    )
    train(settings)
    rows = records(tmp_path / "run")
    assert [row["stage"] for row in rows] == ["one"] * 4 + ["two"] * 2
    assert [row["lr"] for row in rows] == [0.005] * 4 + [1e-4] * 2
    folder = tmp_path / "run" / "checkpoints"
    assert not (folder / "best.safetensors").samefile(folder / "best_of_stage_one.safetensors")
    best = [read(folder / f"{name}.safetensors")[1] for name in ("best_of_stage_one", "best")]
    assert [header["progress"]["stage"] for header in best] == [0, 1]
    for header, part in zip(best, (rows[:4], rows[4:]), strict=True):
        lowest = min(part, key=lambda row: row["valid_loss"])
        assert header["progress"]["best_epoch"] == lowest["epoch"]


def test_patience_in_stage_one_begins_stage_two(prepared, tmp_path):
    settings = settings_for(
        prepared,
        tmp_path / "run",
        max_num_epochs=20,
        patience=1,
        ema=False,
        loss=replace(LOSS, forces_weight=0.0, stress_weight=0.0),
        optimizer=OptimizerSettings(lr=1e-30),  # too small to change a weight
        stage_two=StageTwoSettings(enabled=True, start=18, lr=1e-30),
    )
    train(settings)
    rows = records(tmp_path / "run")
    assert len(rows) < 8
    assert rows[-1]["epoch"] in (18, 19)
    assert {row["stage"] for row in rows} == {"one", "two"}


@pytest.mark.parametrize("kind", ["schedulefree", "lbfgs"])
def test_a_finish_starts_from_the_best_and_improves_it(kind, prepared, tmp_path):
    n = 1 if kind == "lbfgs" else 3
    finish = FinishSettings(optimizer=kind, epochs=n, lr=1.0 if kind == "lbfgs" else 1e-3)
    settings = settings_for(prepared, tmp_path / "run", max_num_epochs=3 + n, finish=finish)
    train(settings)
    rows = records(tmp_path / "run")
    assert [row["stage"] for row in rows] == ["one"] * 3 + ["finish"] * n
    best_before = min(row["valid_loss"] for row in rows[:3])
    assert min(row["valid_loss"] for row in rows[3:]) < best_before


@pytest.mark.parametrize(("kind", "lr", "n"), [("schedulefree", 0.01, 5), ("lbfgs", 1.0, 2)])
def test_other_optimizers_learn_and_keep_the_weights_they_validated(
    kind, lr, n, prepared, tmp_path
):
    optimizer = OptimizerSettings(optimizer=kind, lr=lr)
    settings = settings_for(prepared, tmp_path / "run", max_num_epochs=n, optimizer=optimizer)
    train(settings)
    rows = records(tmp_path / "run")
    assert rows[-1]["train_loss"] < 0.5 * rows[0]["train_loss"]
    model, header = load_model(tmp_path / "run")
    best = min(rows, key=lambda row: row["valid_loss"])
    assert header["progress"]["best_loss"] == pytest.approx(best["valid_loss"], rel=1e-12)
    assert all(torch.isfinite(value).all() for value in model.parameters())


def test_schedule_free_weights_to_use_are_those_of_its_eval_mode():
    torch.manual_seed(0)
    model = torch.nn.Module()
    model.readouts = torch.nn.Linear(3, 2)
    optimizer = make_optimizer(model, OptimizerSettings(optimizer="schedulefree", lr=0.1))
    optimizer.train()
    for parameter in model.parameters():
        parameter.register_hook(lambda gradient: gradient)
    for group in optimizer.param_groups:
        group["lr"] = 0.1 * group["lr_factor"]
    for _ in range(5):
        optimizer.zero_grad()
        model.readouts(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
    weights = evaluation_weights(optimizer, model)
    optimizer.eval()
    for name, value in model.named_parameters():
        assert torch.equal(value, weights[name])
        assert weights[name].abs().sum() > 0


def test_frozen_parts_stay_and_the_rest_learns(prepared, tmp_path):
    optimizer = OptimizerSettings(lr=0.01, freeze=["node_embedding", "interactions.0"])
    run = set_up(settings_for(prepared, tmp_path / "run", optimizer=optimizer), World())
    before = {name: value.detach().clone() for name, value in run.model.named_parameters()}
    train_step(run, [graph_of(run, [0, 1, 2])], lr=0.01)
    for name, value in run.model.named_parameters():
        frozen = name.startswith(("node_embedding", "interactions.0."))
        assert torch.equal(value, before[name]) == frozen, name
    with pytest.raises(InputError, match=r"node_embeding.*its parts are .*interactions\.0"):
        freeze(run.model, ["node_embeding"])


def test_groups_have_their_own_learning_rates(prepared, tmp_path):
    factors = {"readouts": 0.0, "embedding": 3.0}
    optimizer = OptimizerSettings(lr_params_factors=factors, weight_decay=0.0)
    run = set_up(settings_for(prepared, tmp_path / "run", optimizer=optimizer), World())
    before = {name: value.detach().clone() for name, value in run.model.named_parameters()}
    train_step(run, [graph_of(run, [0, 1, 2])], lr=0.01)
    for name, value in run.model.named_parameters():
        step = float((value.detach() - before[name]).abs().max())  # the first step of Adam is lr
        part = name.split(".")[0]
        expected = {"readouts": 0.0, "node_embedding": 0.03}.get(part, 0.01)
        assert step == pytest.approx(expected, rel=1e-3, abs=1e-12), name
    with pytest.raises(InputError, match="embedding, interactions, products, readouts"):
        OptimizerSettings(lr_params_factors={"head": 1.0})


def test_accumulated_gradients_are_those_of_one_large_bin(prepared, tmp_path):
    run = set_up(settings_for(prepared, tmp_path / "run"), World())
    ids = list(range(11))
    train_step(run, [graph_of(run, ids)], lr=0.0)
    whole = {name: value.grad.clone() for name, value in run.model.named_parameters()}
    train_step(run, [graph_of(run, part) for part in (ids[:2], ids[2:7], ids[7:])], lr=0.0)
    scale = max(float(gradient.abs().max()) for gradient in whole.values())
    for name, value in run.model.named_parameters():
        torch.testing.assert_close(value.grad, whole[name], rtol=1e-12, atol=1e-12 * scale)


@pytest.mark.parametrize(("rule", "factor"), [("none", 1.0), ("linear", 4.0), ("sqrt", 2.0)])
def test_learning_rate_follows_the_structures_of_the_step(rule, factor, prepared, tmp_path):
    optimizer = OptimizerSettings(lr_scaling=rule, lr_structures=2.0)
    assert scaled(0.5, optimizer, 8) == 0.5 * factor
    run = set_up(settings_for(prepared, tmp_path / "run", optimizer=optimizer), World())
    result = train_step(run, [graph_of(run, list(range(8)))], lr=0.5)
    assert result.started.lr == 0.5 * factor
    assert all(group["lr"] == 0.5 * factor for group in run.updater.optimizer.param_groups)


def noise_of_draws(world: World, n_steps: int, noise: float) -> float | None:
    """The noise scale where every structure's gradient is the true one plus known noise."""
    random = np.random.default_rng(3)
    truth = np.full(50, 0.2)
    scale = NoiseScale()
    for _ in range(n_steps):
        n_of_rank = random.integers(2, 9, world.size)
        means = [truth + noise * random.normal(size=(n, 50)).mean(axis=0) for n in n_of_rank]
        n_all = int(n_of_rank.sum())
        own = means[world.rank] * n_of_rank[world.rank] / n_all
        whole = sum(m * n / n_all for m, n in zip(means, n_of_rank, strict=True))
        scale.add(float(own @ own), int(n_of_rank[world.rank]), float(whole @ whole), n_all)
    return scale.result(world)


def test_noise_scale_of_known_noise(tmp_path):
    expected = 50 * 0.5**2 / (50 * 0.2**2)  # trace of the covariance over |G|^2
    for value in run_ranks(2, noise_of_draws, tmp_path, 4000, 0.5):
        assert value == pytest.approx(expected, rel=0.05)
    assert noise_of_draws(World(), 10, 0.5) is None  # one rank cannot tell


def noise_of_training(world: World, settings: TrainSettings) -> list[dict[str, Any]]:
    train_settings = replace(settings, logger=replace(settings.logger, noise_scale=True))
    from mace_train.train.train import fit

    fit(set_up(train_settings, world))
    return records(Path(settings.output)) if world.is_main else []


def test_noise_scale_is_logged(prepared, tmp_path):
    batching = BatchingSettings(batch_size=2)
    settings = settings_for(prepared, tmp_path / "run", max_num_epochs=2, batching=batching)
    rows = run_ranks(2, noise_of_training, tmp_path, settings)[0]
    assert all("noise_scale" in row for row in rows)
    assert any(row["noise_scale"] and row["noise_scale"] > 0 for row in rows)
    assert LoggerSettings().noise_scale is False
