"""Sampling ratios of heads in trainings: counts over epochs, kills, other ranks and ratios."""

import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mace_train.balance.head_sampling import HeadSampling
from mace_train.distributed.world import World
from mace_train.errors import InputError
from mace_train.report.run_folder import fill_of_bins, read_run
from mace_train.settings import (
    BatchingSettings,
    CheckpointSettings,
    LossSettings,
    OptimizerSettings,
    TrainSettings,
)
from mace_train.train import step as step_module
from mace_train.train.checkpoint import read
from mace_train.train.setup import set_up
from mace_train.train.step import train_step
from mace_train.train.train import train
from mace_train.train.validation import validate
from tests.conftest import run_command
from tests.train.processes import LINUX, wait_for, words
from tests.train.ranks import run_ranks
from tests.train.training import (
    assert_same_end,
    records,
    settings_for,
    train_until_killed,
    with_two_heads,
)

RATIOS = {"emt": "1/2", "other": 1.5}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Shards of the heads emt and other."""
    return with_two_heads(tmp_path_factory.mktemp("sampled")) / "data"


def sampled(data: Path, output: Path, **changes: Any) -> TrainSettings:
    batching = BatchingSettings(**{"batch_size": 2, "head_sampling_ratios": RATIOS})
    return settings_for(
        data,
        output,
        **{
            "max_num_epochs": 2,
            "batching": batching,
            "loss": LossSettings(),
            "restart_latest": True,
            "checkpoints": CheckpointSettings(every_steps=1),
            **changes,
        },
    )


def names_of(data: Path, output: Path) -> np.ndarray:
    """The head of every training structure."""
    return np.array(set_up(sampled(data, output), World()).train.shards.head_of)


def counts_by_head(names: np.ndarray, steps: list[list[int]]) -> set[tuple[str, int]]:
    """(head, how often one of its structures was trained on), all that occur."""
    counts = Counter(i for ids in steps for i in ids)
    return {(str(name), counts[i]) for i, name in enumerate(names)}


@pytest.mark.parametrize(
    "batching",
    [
        {"batch_size": 2},
        {"packer": "fixed_count", "batch_size": 3},
        {"max_atoms": 30, "max_edges": 5000, "accumulate": 2},
        {"batch_size": 4, "static_shapes": True},
    ],
)
def test_two_epochs_hold_what_the_ratios_say(batching, data, tmp_path):
    names = names_of(data, tmp_path / "other")
    given = BatchingSettings(head_sampling_ratios=RATIOS, **batching)
    settings = sampled(data, tmp_path / "run", batching=given, max_num_epochs=1)
    first = train_until_killed(World(), settings, 10**6)
    second = train_until_killed(World(), replace(settings, max_num_epochs=2), 10**6)
    for steps in (first, second):
        assert counts_by_head(names, steps) == {("emt", 0), ("emt", 1), ("other", 1), ("other", 2)}
    assert counts_by_head(names, first + second) == {("emt", 1), ("other", 3)}
    n_emt, n_other = int((names == "emt").sum()), int((names == "other").sum())
    rows = records(tmp_path / "run")
    for row, steps in zip(rows, (first, second), strict=True):
        assert row["structures"] == sum(map(len, steps))
        assert row["structures_per_s"] * row["epoch_s"] == pytest.approx(row["structures"])
        atoms = set_up(settings, World()).train.costs.n_atoms
        n_atoms = int(atoms[[i for ids in steps for i in ids]].sum())
        assert row["atoms_per_s"] * row["epoch_s"] == pytest.approx(n_atoms)
    text = (tmp_path / "run" / "train.log").read_text()
    assert f"of head emt ({n_emt} structures, ratio 1/2)" in text
    assert f"of head other ({n_other} structures, ratio 3/2)" in text
    assert f"an epoch holds {sum(map(len, first))} samples: " in text


@pytest.mark.parametrize("kind", ["compressed", "without edges"])
def test_repeats_in_one_bin_are_read_from_any_shards(kind, data, tmp_path):
    option = "compression=gzip" if kind == "compressed" else "store_edges=false"
    other = with_two_heads(tmp_path, option) / "data"
    batching = BatchingSettings(batch_size=1000, head_sampling_ratios={"emt": 3})
    losses = []
    for source in (data, other):
        settings = sampled(source, tmp_path / f"run-{len(losses)}", batching=batching)
        train(replace(settings, max_num_epochs=1))
        losses += [row["train_loss"] for row in records(Path(settings.output))]
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


def test_killed_at_every_step_and_resumed_it_is_the_same_training(data, tmp_path):
    train(sampled(data, tmp_path / "whole"))
    settings = sampled(data, tmp_path / "killed")
    for _ in range(100):
        if len(train_until_killed(World(), settings, 4)) < 4:  # the last of four steps is lost
            break
    assert_same_end(tmp_path / "whole", tmp_path / "killed")


@LINUX
def test_a_killed_process_continues_in_the_middle_of_an_epoch(data, tmp_path):
    given = ("batching.head_sampling_ratios={emt: 1/2, other: 1.5}", "max_num_epochs=3")

    def command(output: Path, *more: str) -> list[str]:
        every = "checkpoints.every_steps=2"
        return [sys.executable, "-m", "mace_train", *words(data, output, *given, every, *more)]

    subprocess.run(command(tmp_path / "whole"), check=True, capture_output=True)
    folder = tmp_path / "killed" / "checkpoints"
    process = subprocess.Popen(
        command(tmp_path / "killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for(lambda: len(list(folder.glob("step-*.safetensors"))) >= 2, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    newest = max(folder.glob("step-*.safetensors"))
    tensors, header = read(newest)
    assert header["samples"]["head_sampling_ratios"] == {"emt": "1/2", "other": "3/2"}
    assert "part.remaining" in tensors  # it is in the middle of an epoch
    done = subprocess.run(
        command(tmp_path / "killed", "restart_latest=true"), check=True, capture_output=True
    )
    assert "resumed from" in done.stderr.decode()
    assert "planned again" not in done.stderr.decode()
    assert_same_end(tmp_path / "whole", tmp_path / "killed")


def test_another_number_of_ranks_trains_the_rest_as_often(data, tmp_path):
    names = names_of(data, tmp_path / "other")
    settings = sampled(data, tmp_path / "run")
    results = run_ranks(2, train_until_killed, tmp_path, settings, 3)
    steps = [ids for of_rank in results for ids in of_rank[:2]]  # the third step is lost
    steps += train_until_killed(World(), settings, 10**6)
    assert counts_by_head(names, steps) == {("emt", 1), ("other", 3)}


def test_new_ratios_begin_with_the_next_epoch(data, tmp_path, caplog):
    names = names_of(data, tmp_path / "other")
    settings = sampled(data, tmp_path / "run")
    first = train_until_killed(World(), settings, 3)[:2]
    changed = replace(
        settings, batching=BatchingSettings(batch_size=2, head_sampling_ratios={"other": 2})
    )
    first += train_until_killed(World(), replace(changed, max_num_epochs=1), 3)[:2]
    removed = replace(settings, batching=BatchingSettings(batch_size=2))
    first += train_until_killed(World(), replace(removed, max_num_epochs=1), 10**6)
    run = set_up(sampled(data, tmp_path / "other"), World())
    expected = run.sampler.sampling.samples(0).structure_of.tolist()
    assert sorted(i for ids in first for i in ids) == expected
    for change in (
        "planned again (head_sampling_ratios {'emt': '1/2', 'other': '3/2'} -> {'emt': '1', 'oth",
        "planned again (head_sampling_ratios {'emt': '1', 'other': '2'} -> None",
        "batching.head_sampling_ratios.emt 1/2 -> None",
        "batching.head_sampling_ratios.other 2 -> None",
    ):
        assert change in caplog.text
    second = train_until_killed(World(), changed, 10**6)
    assert counts_by_head(names, second) == {("emt", 1), ("other", 2)}


def test_no_memory_replans_what_the_epoch_has_left(data, tmp_path, monkeypatch):
    names = names_of(data, tmp_path / "other")
    predict, calls = step_module.predict, []

    def limited(model: Any, graph: Any, **options: Any) -> Any:
        calls.append(graph.n_graphs)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return predict(model, graph, **options)

    monkeypatch.setattr(step_module, "predict", limited)
    batching = BatchingSettings(batch_size=4, head_sampling_ratios=RATIOS)
    steps = train_until_killed(World(), sampled(data, tmp_path / "run", batching=batching), 10**6)
    assert counts_by_head(names, steps) == {("emt", 1), ("other", 3)}


def test_a_lost_sample_ends_the_training(data, tmp_path, monkeypatch):
    counts = HeadSampling.counts

    def one_less(self: HeadSampling, epoch: int) -> Any:
        found = counts(self, epoch)
        found[np.flatnonzero(found)[0]] -= 1
        return found

    monkeypatch.setattr(HeadSampling, "counts", one_less)
    with pytest.raises(AssertionError, match=r"another number of samples|too rarely"):
        train(sampled(data, tmp_path / "run"))


def test_a_ratio_counts_as_a_weight_does(data, tmp_path):
    """In a loss of energies: the mean is over more structures, and that is all."""
    gradients = {}
    for name, ratios, weights in (("ratio", {"other": 3}, None), ("weight", None, {"other": 3})):
        loss = LossSettings(forces_weight=0.0, head_weights=weights)
        settings = sampled(data, tmp_path / name, loss=loss)
        run = set_up(replace(settings, batching=BatchingSettings(
            batch_size=1000, head_sampling_ratios=ratios)), World())  # fmt: skip
        (ids,) = run.sampler.bins(0)
        train_step(run, list(run.graphs(run.train, [ids], ahead=False)), lr=0.0)
        gradients[name] = len(ids) * run.updater.gradients.flat.clone()
        assert run.train.weight_of.unique().tolist() == ([1.0] if ratios else [1.0, 3.0])
    torch.testing.assert_close(gradients["ratio"], gradients["weight"], rtol=1e-9, atol=1e-12)


def test_validation_does_not_change(data, tmp_path):
    runs = [
        set_up(sampled(data, tmp_path / "run", batching=batching), World())
        for batching in (
            BatchingSettings(batch_size=2),
            BatchingSettings(batch_size=2, head_sampling_ratios={"other": 7}),
        )
    ]
    assert validate(runs[0])[0] == validate(runs[1])[0]


def test_a_step_of_lbfgs_is_over_all_samples(data, tmp_path):
    optimizer = OptimizerSettings(optimizer="lbfgs", lr=1.0)
    batching = BatchingSettings(batch_size=4, head_sampling_ratios=RATIOS)
    settings = sampled(data, tmp_path / "run", optimizer=optimizer, batching=batching)
    train(settings)
    n_samples = [sum(set_up(settings, World()).sampler.sampling.n_samples(e)) for e in range(2)]
    assert [row["structures"] for row in records(tmp_path / "run")] == n_samples


def test_the_report_plans_the_bins_of_samples(data, tmp_path):
    settings = sampled(data, tmp_path / "run")
    train(settings)
    fill = fill_of_bins(read_run(tmp_path / "run"))
    assert fill.plan.fingerprint == set_up(settings, World()).sampler.plan(1).fingerprint
    assert fill.plan.n_structures.sum() == records(tmp_path / "run")[-1]["structures"]


def test_the_balance_of_samples_is_reported(data, tmp_path, capsys):
    common = (f"data_dir={data}", "gpus=2", "scaling=false", "gap_instances=0")
    run_command("balance", *common, "batching.head_sampling_ratios={other: 5}")
    said = capsys.readouterr().out
    run_command("balance", *common)
    assert said != capsys.readouterr().out


def test_a_head_that_is_not_there(data, tmp_path):
    batching = BatchingSettings(head_sampling_ratios={"scan": 2})
    with pytest.raises(InputError, match=r"ratios\.scan: no head 'scan'; .* emt, other"):
        set_up(sampled(data, tmp_path / "run", batching=batching), World())


def test_words_of_the_command_line(data, tmp_path, capsys):
    fixed = words(data, tmp_path / "run", "max_num_epochs=1")
    for given, message in (
        ("{emt: 1/0}", "batching.head_sampling_ratios.emt='1/0' must be a number, or a fraction"),
        ("{emt: 0}", "must be at least 1e-06 and at most 10000 (to leave a head out, leave it"),
        ("{hf: 2}", "batching.head_sampling_ratios.hf: no head 'hf'; the heads of the data are:"),
        ("3", "must map heads to numbers"),
    ):
        with pytest.raises(SystemExit) as ended:
            run_command(*fixed, f"batching.head_sampling_ratios={given}")
        assert ended.value.code == 2
        assert message in capsys.readouterr().err
