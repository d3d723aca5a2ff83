"""The loop: gradients that do not depend on ranks or bins, learning, resume, early stopping."""

import json
import logging
import os
import re
import threading
from dataclasses import replace
from typing import Any

import pytest
import torch

from mace_train.balance import sampler
from mace_train.balance.epoch_plan import EpochPlan
from mace_train.balance.plan import make_plan
from mace_train.balance.sampler import BinSampler
from mace_train.data.preprocess.preprocess import preprocess
from mace_train.distributed.world import World
from mace_train.errors import InputError
from mace_train.folders import lock_folder
from mace_train.settings import (
    BatchingSettings,
    DataSettings,
    OptimizerSettings,
    PreprocessSettings,
    TrainSettings,
)
from mace_train.train.checkpoint import load_model, read
from mace_train.train.failed_steps import handle_failed_step
from mace_train.train.loss import LossSums
from mace_train.train.setup import set_up
from mace_train.train.step import train_step
from mace_train.train.train import fit, train
from mace_train.train.validation import validate
from tests.train.ranks import run_ranks
from tests.train.training import LOSS, graph_of, settings_for


def gradient_of_one_step(
    world: World, settings: TrainSettings, bins: list[list[int]]
) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Gradients after one step in which this rank holds ``bins[rank]``, and its loss sums."""
    run = set_up(settings, world)
    result = train_step(run, [graph_of(run, bins[world.rank])], lr=0.0)
    gradients = {name: value.grad.clone() for name, value in run.model.named_parameters()}
    return gradients, result.started.sums.numerators.tolist()


def test_gradient_does_not_depend_on_ranks_or_bins(prepared, tmp_path):
    settings = settings_for(prepared, tmp_path / "run")
    ids = list(range(12))
    alone, _ = gradient_of_one_step(World(), settings, [ids])
    assert all(torch.isfinite(gradient).all() for gradient in alone.values())
    assert max(gradient.abs().max() for gradient in alone.values()) > 1e-3
    for bins in ([ids[:3], ids[3:]], [ids[:1], [], ids[1:9], ids[9:]]):  # one rank has nothing
        results = run_ranks(len(bins), gradient_of_one_step, tmp_path, settings, bins)
        scale = max(float(gradient.abs().max()) for gradient in alone.values())
        for gradients, _ in results:
            for name, gradient in gradients.items():
                torch.testing.assert_close(gradient, alone[name], rtol=1e-12, atol=1e-12 * scale)


def test_validation_counts_every_structure_once_on_any_number_of_ranks(prepared, tmp_path):
    settings = settings_for(prepared, tmp_path / "run")
    expected = validate(set_up(settings, World()))
    for found in run_ranks(3, validation_of, tmp_path, settings):
        assert_same_validation(found, expected)


def assert_same_validation(found: Any, expected: Any) -> None:
    """Loss and table agree to 1e-10, and the table has numbers."""
    loss, table = found
    assert loss == pytest.approx(expected[0], rel=1e-10)
    assert [row["name"] for row in table] == [row["name"] for row in expected[1]]
    for row, reference in zip(table, expected[1], strict=True):
        assert row["energy_count" if "energy_count" in row else "forces_count"] > 0
        for key in reference.keys() - {"name"}:
            assert row[key] == pytest.approx(reference[key], rel=1e-10, abs=1e-14)


def validation_of(world: World, settings: TrainSettings) -> tuple[float, list[dict[str, Any]]]:
    """Validation loss and table on this rank."""
    return validate(set_up(settings, world))


N_BINS = 8  # of a step, over all ranks


def curve(world: World, settings: TrainSettings, n_epochs: int) -> tuple[list[float], Any]:
    """Losses of all steps, each with the same eight bins on whatever ranks, and the validation."""
    run = set_up(settings, world)
    eight_ranks = BinSampler(run.train.costs, settings.batching, N_BINS, 0, settings.seed)
    losses = []
    for epoch in range(n_epochs):
        plan = eight_ranks.plan(epoch)
        bins = [list(plan.of_rank(rank)) for rank in range(world.rank, N_BINS, world.size)]
        for of_step in zip(*bins, strict=True):
            result = train_step(run, [graph_of(run, ids.tolist()) for ids in of_step], lr=0.01)
            sums = world.sum(
                torch.stack((result.started.sums.numerators, result.started.sums.counts))
            )
            losses.append(float(LossSums(*sums).loss(settings.loss)))
    return losses, validate(run)


@pytest.mark.slow
def test_the_same_bins_give_the_same_curve_and_validation_on_1_2_4_and_8_ranks(prepared, tmp_path):
    settings = settings_for(prepared, tmp_path / "run", batching=BatchingSettings(batch_size=1))
    losses, validation = curve(World(), settings, 3)
    assert len(losses) >= 9
    assert losses[-1] < 0.9 * losses[0]
    for n_ranks in (2, 4, 8):
        for found, other_validation in run_ranks(n_ranks, curve, tmp_path, settings, 3):
            assert found == pytest.approx(losses, rel=1e-10)
            assert_same_validation(other_validation, validation)


def test_training_learns_and_leaves_its_record(prepared, tmp_path):
    output = tmp_path / "run"
    settings = settings_for(prepared, output, max_num_epochs=12)
    last = train(settings)
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == list(range(12))
    assert records[-1] == json.loads(json.dumps(last))
    assert records[-1]["valid_loss"] < 0.5 * records[0]["valid_loss"]
    assert records[-1]["train_loss"] < 0.5 * records[0]["train_loss"]
    assert len((output / "metrics.csv").read_text().splitlines()) == 13
    best = min(records, key=lambda record: record["valid_loss"])
    _, header = read(output / "checkpoints" / "best.safetensors")
    assert header["progress"]["best_epoch"] == best["epoch"]
    assert json.loads((output / "checkpoints" / "best.json").read_text()) == header
    assert json.loads((output / "settings.json").read_text())["max_num_epochs"] == 12


def test_best_checkpoint_gives_the_validation_loss_it_claims(prepared, tmp_path):
    settings = settings_for(prepared, tmp_path / "run", max_num_epochs=3)
    run = set_up(settings, World())
    fit(run)
    model, header = load_model(tmp_path / "run")
    run.model.load_state_dict(model.state_dict(), strict=False)
    run.updater.ema = None
    assert validate(run)[0] == pytest.approx(header["progress"]["best_loss"], rel=1e-12)


def test_resume_is_bit_for_bit(prepared, tmp_path):
    whole = settings_for(prepared, tmp_path / "whole", max_num_epochs=5)
    train(whole)
    part = settings_for(prepared, tmp_path / "part", max_num_epochs=5, restart_latest=True)
    run = set_up(part, World())
    run.settings = replace(part, max_num_epochs=2)  # as if killed after two epochs
    fit(run)
    with open(tmp_path / "part" / "metrics.jsonl", "a") as handle:
        handle.write('{"epoch": 2, "step": 99, "trai')  # a line that the kill cut short
    train(part)
    tensors = [
        read(tmp_path / name / "checkpoints" / "last.safetensors")[0] for name in ("whole", "part")
    ]
    assert tensors[0].keys() == tensors[1].keys()
    assert any(name.startswith("optimizer.") for name in tensors[0])
    for name, value in tensors[0].items():
        assert torch.equal(value, tensors[1][name]), name
    losses = [
        [
            json.loads(line)["valid_loss"]
            for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        ]
        for name in ("whole", "part")
    ]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 5


def test_early_stopping_ends_the_run_and_stays_ended(prepared, tmp_path):
    optimizer = OptimizerSettings(lr=1e-30)  # too small to change a weight
    settings = settings_for(
        prepared, tmp_path / "run", max_num_epochs=50, patience=3, optimizer=optimizer, ema=False
    )
    settings = replace(settings, loss=replace(LOSS, forces_weight=0.0, stress_weight=0.0))
    train(settings)
    path = tmp_path / "run" / "metrics.jsonl"
    n_epochs = len(path.read_text().splitlines())
    assert n_epochs < 50
    train(replace(settings, restart_latest=True))
    assert len(path.read_text().splitlines()) == n_epochs
    train(replace(settings, restart_latest=True, patience=5))
    assert len(path.read_text().splitlines()) == n_epochs + 2


def test_a_non_finite_gradient_stops_and_names_the_structures(prepared, tmp_path):
    run = set_up(settings_for(prepared, tmp_path / "run"), World())
    with torch.no_grad():
        next(iter(run.model.parameters())).fill_(float("nan"))
    result = train_step(run, [graph_of(run, [4, 2])], lr=0.01)
    epoch_plan = EpochPlan.full(run.sampler, 0)
    named = re.escape(run.train.shards.sample(4).structure.source)
    with pytest.raises(InputError, match=rf"step 1 \(epoch 1\).*{named}"):
        handle_failed_step(run, epoch_plan, 0, result)


def test_a_non_finite_validation_loss_stops(prepared, tmp_path):
    optimizer = OptimizerSettings()
    optimizer.lr = 1e200  # the settings allow no such value
    batching = BatchingSettings(batch_size=1000)
    settings = settings_for(prepared, tmp_path / "run", optimizer=optimizer, batching=batching)
    with pytest.raises(InputError, match="validation loss after epoch 1 is nan"):
        train(replace(settings, ema=False))
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


def test_an_output_in_use_is_left_alone(prepared, tmp_path):
    (tmp_path / "run").mkdir()
    with (
        lock_folder("output", tmp_path / "run"),
        pytest.raises(InputError, match=f"in use by process {os.getpid()}"),
    ):
        train(settings_for(prepared, tmp_path / "run"))
    train(settings_for(prepared, tmp_path / "run", max_num_epochs=1))


def test_a_changed_loss_starts_a_new_best(prepared, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("mace_train"), "propagate", True)
    settings = settings_for(prepared, tmp_path / "run", max_num_epochs=2)
    train(settings)
    changed = replace(LOSS, forces_weight=1e6)
    train(replace(settings, loss=changed, max_num_epochs=3, restart_latest=True))
    assert "loss.forces_weight 100.0 -> 1000000.0" in caplog.text
    assert "the best loss so far is forgotten" in caplog.text
    _, header = read(tmp_path / "run" / "checkpoints" / "best.safetensors")
    assert header["progress"]["best_epoch"] == 2


def test_amsgrad_may_be_switched_on_at_a_restart(prepared, tmp_path):
    optimizer = OptimizerSettings(lr=0.005, amsgrad=False)
    settings = settings_for(prepared, tmp_path / "run", max_num_epochs=1, optimizer=optimizer)
    train(settings)
    path = tmp_path / "run" / "checkpoints" / "last.safetensors"
    before = {name: value for name, value in read(path)[0].items() if "exp_avg_sq" in name}
    optimizer = replace(optimizer, amsgrad=True)
    train(replace(settings, optimizer=optimizer, max_num_epochs=2, restart_latest=True))
    after, _ = read(path)
    maxima = {name: value for name, value in after.items() if "max_exp_avg_sq" in name}
    assert len(maxima) == len(before) > 0  # before, there was no maximum
    for name, maximum in maxima.items():
        squares = name.replace("max_exp_avg_sq", "exp_avg_sq")
        assert (maximum >= after[squares]).all(), name  # of the steps since the restart
        assert (maximum > 0).any(), name
    assert any((maximum > after[name.replace("max_", "")]).any()
               for name, maximum in maxima.items())  # fmt: skip


def test_ranks_with_other_data_are_an_error(prepared, xyz, tmp_path):
    other = tmp_path / "other"
    data = DataSettings(train_file=str(xyz), valid_fraction=0.25)
    preprocess(PreprocessSettings(data=data, r_max=4.0, seed=5, output=str(other)))
    settings = settings_for(prepared, tmp_path / "run")
    for message in run_ranks(2, error_of_set_up, tmp_path, settings, str(other)):
        assert "rank" in message
        assert "training data" in message
        assert "file system" in message


def error_of_set_up(world: World, settings: TrainSettings, other: str) -> str:
    """The error when rank 1 has other data."""
    if world.rank == 1:
        settings = replace(settings, data_dir=other)
    with pytest.raises(InputError) as error:
        set_up(settings, world)
    return str(error.value)


def test_without_validation_the_last_epoch_is_best(xyz, tmp_path):
    data = tmp_path / "data"
    source = DataSettings(train_file=str(xyz), valid_fraction=0.0)
    preprocess(PreprocessSettings(data=source, r_max=4.0, output=str(data)))
    train(settings_for(data, tmp_path / "run", max_num_epochs=2))
    _, header = read(tmp_path / "run" / "checkpoints" / "best.safetensors")
    assert header["progress"]["best_epoch"] == 1


def test_the_next_epoch_is_planned_while_this_one_trains(prepared, tmp_path, monkeypatch):
    run = set_up(settings_for(prepared, tmp_path / "run", max_num_epochs=3), World())
    made: dict[int, tuple[str, int]] = {}  # epoch -> thread that planned it, steps done by then

    def noting(*arguments: Any) -> Any:
        made[arguments[-1]] = (threading.current_thread().name, run.progress.step)
        return make_plan(*arguments)

    monkeypatch.setattr(sampler, "make_plan", noting)
    fit(run)
    n_steps = run.sampler.plan(0).n_steps
    assert set(made) <= {0, 1, 2}
    assert all(name.startswith("mace-train-plan") for name, _ in made.values())
    assert made[1][1] < n_steps
    assert made[2][1] < 2 * n_steps
