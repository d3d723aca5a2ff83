"""Killed at any step and resumed: bit for bit at the same size, each sample once at another."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mace_train.distributed.world import World
from mace_train.settings import (
    BatchingSettings,
    CheckpointSettings,
    FinishSettings,
    ModelSettings,
    OptimizerSettings,
    StageTwoSettings,
    TrainSettings,
)
from mace_train.train.checkpoint import read, save
from mace_train.train.setup import set_up
from mace_train.train.train import train
from tests.model.systems import NONLINEAR_SETTINGS
from tests.train.ranks import run_ranks
from tests.train.training import assert_same_end, records, settings_for, train_until_killed


def small(prepared: Path, output: Path, **changes: Any) -> TrainSettings:
    return settings_for(
        prepared,
        output,
        **{
            "max_num_epochs": 3,
            "restart_latest": True,
            "checkpoints": CheckpointSettings(every_steps=1),
            **changes,
        },
    )


RECIPES: dict[str, dict[str, Any]] = {
    "adam": {},
    "accumulation": {
        "batching": BatchingSettings(batch_size=2, accumulate=3),
        "ema": False,
    },
    "stage two": {"stage_two": StageTwoSettings(enabled=True, start=1)},
    "schedule-free": {"optimizer": OptimizerSettings(optimizer="schedulefree", lr=0.005)},
    "nonlinear interactions": {
        "model": ModelSettings(**NONLINEAR_SETTINGS, num_channels=4, correlation=2, radial_MLP=[8])
    },
    "finish with L-BFGS": {"finish": FinishSettings(optimizer="lbfgs", epochs=1, lr=1.0)},
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_resume_within_an_epoch_is_bit_for_bit(recipe, prepared, tmp_path):
    changes = RECIPES[recipe]
    train(small(prepared, tmp_path / "whole", **changes))
    n_steps = records(tmp_path / "whole")[-1]["step"]
    settings = small(prepared, tmp_path / "killed", **changes)
    starts = 0
    while (
        starts == 0
        or not (tmp_path / "killed" / "metrics.jsonl").exists()
        or (
            records(tmp_path / "killed")[-1:] == [] or records(tmp_path / "killed")[-1]["epoch"] < 2
        )
    ):
        train_until_killed(World(), settings, 4)  # the last of the four steps is lost
        starts += 1
        assert starts < n_steps
    assert starts > 3
    assert_same_end(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize(
    "sessions",
    [
        ((2, 3), (1, 1000)),
        pytest.param(((4, 2), (2, 2), (8, 2), (3, 1000)), marks=pytest.mark.slow),
    ],
)
def test_another_number_of_ranks_trains_the_rest_of_the_epoch_once(sessions, prepared, tmp_path):
    batching = BatchingSettings(batch_size=1 if len(sessions) > 2 else 3)
    settings = small(prepared, tmp_path / "run", max_num_epochs=2, batching=batching)
    n = len(set_up(settings, World()).train.shards)
    trained: list[int] = []
    for n_ranks, n_steps in sessions:
        if n_ranks == 1:
            results = [train_until_killed(World(), settings, n_steps)]
        else:
            results = run_ranks(n_ranks, train_until_killed, tmp_path, settings, n_steps)
        # the step that was not followed by a checkpoint is lost, and trained again
        kept = [steps[: n_steps - 1] if n_steps < 1000 else steps for steps in results]
        trained += [i for steps in kept for ids in steps for i in ids]
    assert sorted(trained) == sorted(2 * list(range(n)))
    losses = [record["train_loss"] for record in records(tmp_path / "run")]
    assert len(losses) == 2
    assert losses[1] < losses[0]


@pytest.mark.parametrize("irreps_first", [False, True])
def test_a_model_is_the_same_in_either_notation(
    irreps_first, prepared, tmp_path, caplog, monkeypatch
):
    """num_channels and max_L, or hidden_irreps; a run may be restarted with the other."""
    others: dict[str, Any] = {"max_ell": 2, "correlation": 2, "radial_MLP": [8]}
    models = [
        ModelSettings(num_channels=4, max_L=1, **others),
        ModelSettings(hidden_irreps="4x0e+4x1o", **others),
    ]
    first, second = (
        small(prepared, tmp_path / "run", max_num_epochs=1, model=model)
        for model in (models[::-1] if irreps_first else models)
    )
    train_until_killed(World(), first, 3)
    monkeypatch.setattr(logging.getLogger("mace_train"), "propagate", True)
    caplog.set_level(logging.INFO, "mace_train")
    train(second)
    assert "resumed from" in caplog.text
    assert "settings changed" not in caplog.text
    assert records(tmp_path / "run")[-1]["epoch"] == 0


def test_a_damaged_checkpoint_falls_back_to_the_one_before(prepared, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("mace_train"), "propagate", True)
    train(small(prepared, tmp_path / "whole"))
    settings = small(prepared, tmp_path / "run")
    train_until_killed(World(), settings, 5)
    newest, before = sorted((tmp_path / "run" / "checkpoints").glob("step-*.safetensors"))[::-1]
    content = bytearray(newest.read_bytes())
    content[-20] ^= 1  # one bit of a weight
    newest.write_bytes(content)
    train(settings)
    assert "the checksum does not fit" in caplog.text
    assert f"resuming from the previous checkpoint {before}" in caplog.text
    assert_same_end(tmp_path / "whole", tmp_path / "run")
    assert newest.with_suffix(".damaged").exists()


def test_batches_may_change_within_an_epoch(prepared, tmp_path):
    settings = small(prepared, tmp_path / "run", max_num_epochs=1)
    first = train_until_killed(World(), settings, 3)[:2]
    changed = replace(settings, batching=BatchingSettings(batch_size=5))
    second = train_until_killed(World(), changed, 1000)
    n = len(set_up(settings, World()).train.shards)
    assert sorted(i for ids in first + second for i in ids) == list(range(n))


def test_a_checkpoint_of_an_earlier_version_goes_on(prepared, tmp_path, caplog):
    """Files that lack what came later: heads, repulsion, transforms, weights of heads."""
    whole, old = tmp_path / "whole", tmp_path / "old"
    train(small(prepared, whole))
    train(small(prepared, old, max_num_epochs=2))
    path = max((old / "checkpoints").glob("step-*.safetensors"))
    tensors, header = read(path)
    (head,) = header["model_data"].pop("heads")
    header["model_data"] |= {name: head[name] for name in ("E0s", "scale", "shift")}
    for name in ("pair_repulsion", "distance_transform"):
        del header["model_settings"][name]
    del header["settings"]["loss"]["head_weights"]
    save(path, tensors, header)
    caplog.clear()
    train(small(prepared, old))
    assert "the best loss so far is forgotten" not in caplog.text
    assert_same_end(whole, old)
