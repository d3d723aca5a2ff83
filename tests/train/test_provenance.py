"""The record of a run's folder: provenance, a command that repeats it, comparison, timer."""

import json
import os
import shutil
import subprocess
import time
from typing import Any

import pytest
import torch

from mace_train.distributed.world import World
from mace_train.errors import InputError
from mace_train.evaluate.compare import compare
from mace_train.settings import CompareSettings
from mace_train.train import provenance
from mace_train.train.checkpoint import read
from mace_train.train.provenance import git_commit
from mace_train.train.timing import PHASES, StepTimer, peak_memory_mb
from tests.conftest import run_command
from tests.train.ranks import run_ranks
from tests.train.training import records


def test_a_checkpoint_says_how_it_was_made(trained):
    _, header = read(trained / "checkpoints" / "best.safetensors")
    facts = header["provenance"]
    assert facts["libraries"]["torch"] == torch.__version__
    assert facts["git"] == git_commit()
    assert header["settings"]["loss"]["stress_weight"] == 1.0
    assert len(header["dataset_hash"]) > 8
    (session,) = json.loads((trained / "provenance.json").read_text())
    assert session["dataset_hash"] == header["dataset_hash"]
    assert session["ranks"] == 1


def test_a_run_is_repeated_from_its_folder_by_one_command(trained, tmp_path):
    copy = tmp_path / "first"
    shutil.copytree(trained, copy)
    again = tmp_path / "again"
    run_command("train", "--config-dir", copy, "--config-name", "repeat", f"output={again}")
    weights = [read(path / "checkpoints" / "last.safetensors")[0] for path in (trained, again)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_records_hold_the_phases_and_rates(trained):
    for record in records(trained):
        parts = sum(record[f"{name}_s"] for name in PHASES)
        assert 0.2 * record["epoch_s"] < parts <= record["epoch_s"] * 1.001
        assert record["memory_MB"] > 50
        assert record["straggler"] == 1.0  # one rank
        assert record["edges_per_s"] > record["atoms_per_s"] > record["structures_per_s"] > 0
    assert (trained / "learning.png").stat().st_size > 5000


def phases_of(world: World) -> tuple[dict[str, Any], float]:
    """(summary of two steps in which rank 1 computes three times as long, peak memory in MB)."""
    timer = StepTimer()
    for _ in range(2):
        with timer("compute"):
            time.sleep(0.3 if world.rank else 0.1)
        timer.step_done()
    return timer.summary(world), peak_memory_mb(world)


def test_the_measured_straggler_ratio_is_the_slowest_over_the_mean(tmp_path):
    (summary, peak), (of_other, other_peak) = run_ranks(2, phases_of, tmp_path)
    assert of_other == {}
    assert summary["straggler"] == pytest.approx(1.5, rel=0.1)  # 0.3 / 0.2
    assert summary["compute_s"] == pytest.approx(0.4, rel=0.1)
    most = max(peak, other_peak)
    assert 0.5 * most <= summary["memory_MB"] <= most


def test_compare_tabulates_and_plots(trained, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(trained, other)
    settings = json.loads((other / "settings.json").read_text())
    settings["optimizer"]["lr"] = 0.123
    (other / "settings.json").write_text(json.dumps(settings))
    run_command("compare", trained, other, f"output={tmp_path / 'out'}")
    printed = capsys.readouterr().out
    assert "optimizer.lr" in printed
    assert "0.123" in printed
    content = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert list(content["different_settings"]) == ["optimizer.lr"]
    best = min(records(trained), key=lambda record: record["valid_loss"])
    for row in content["runs"]:
        assert row["best_epoch"] == best["epoch"] + 1
        assert row["valid_loss"] == best["valid_loss"]
    assert (tmp_path / "out" / "compare.png").stat().st_size > 5000


def test_compare_needs_runs(tmp_path):
    with pytest.raises(InputError, match=r"no metrics\.jsonl"):
        compare(CompareSettings(runs=[str(tmp_path)]))
    with pytest.raises(InputError, match="at least one run"):
        CompareSettings(runs=[])


def test_the_checkout_is_not_changed(tmp_path, monkeypatch):
    source = tmp_path / "provenance.py"
    source.write_text("1\n")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@y"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *words], check=True)
    monkeypatch.setattr(provenance, "__file__", str(source))
    os.utime(source, (1, 1))  # for which git would write its index again
    before = (tmp_path / ".git" / "index").read_bytes()
    commit = git_commit()
    assert commit is not None
    assert len(commit) == 40
    source.write_text("2\n")
    assert git_commit() == f"{commit}-dirty"
    assert (tmp_path / ".git" / "index").read_bytes() == before
