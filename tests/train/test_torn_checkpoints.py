"""Checkpoints of a run that was killed at any place, or whose disk lost or changed files."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from mace_train import checkpoint_files
from mace_train.atomic_files import remove_leftovers
from mace_train.errors import InputError
from mace_train.train import checkpoint
from mace_train.train.checkpoint_manager import CheckpointManager
from tests.killed import events, killed_at
from tests.train.headers import header

BEFORE, AFTER = 20, 30  # steps


def save(manager: CheckpointManager, step: int, best_step: int) -> None:
    """A checkpoint whose weights are its step; its best weights are new if they are of its step."""
    weight = {"model.w": torch.full((3,), float(step))}
    of_step = header(step, step // 10 - 1, best_step)
    if step == best_step:
        manager.save_best(weight, of_step, ["best"])
    manager.save(weight, of_step)


def begun(folder: Path) -> None:
    """Two checkpoints of a run, whose best weights are those of the first."""
    folder.mkdir(exist_ok=True)
    manager = CheckpointManager(folder)
    save(manager, 10, 10)
    save(manager, BEFORE, 10)
    manager.close()


def go_on(folder: Path, *, tidy: bool = False) -> None:
    """The next checkpoint, which is also the best one, so that an old one is removed."""
    manager = CheckpointManager(folder)
    if tidy:
        manager.tidy(manager.newest()[1]["progress"])
    save(manager, AFTER, AFTER)
    manager.close()


def weight_of(path: Path) -> float:
    """The weights in a file, which are the step they are of; the file is whole."""
    return float(checkpoint.read(path)[0]["model.w"][0])


def assert_in_order(folder: Path, step: int, best_step: int) -> None:
    """Names, JSON files and nothing else are those of a run at ``step``."""
    assert weight_of(folder / "last.safetensors") == step
    assert weight_of(folder / "best.safetensors") == best_step
    for path in folder.glob("*.safetensors"):
        assert json.loads(path.with_suffix(".json").read_text()) == checkpoint.read_header(path)
    for path in folder.glob("*.json"):
        assert path.with_suffix(".safetensors").exists()
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("tidy", [False, True], ids=["running", "resumed"])
def test_a_kill_at_any_place_loses_nothing(tidy, tmp_path):
    begun(tmp_path / "begun")
    folder = tmp_path / "run"
    shutil.copytree(tmp_path / "begun", folder)
    if tidy:  # the kill may hit the session that repairs what an earlier kill has left
        (folder / "last.json").unlink()
        (folder / f".step.{1}.tmp").mkdir()
    n_events = events(folder, lambda: go_on(folder, tidy=tidy))
    assert n_events > 20
    resumed_at = set()
    for number in range(n_events):
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / "begun", folder)
        killed_at(number, folder, lambda: go_on(folder, tidy=tidy))
        manager = CheckpointManager(folder)
        tensors, found, _ = manager.newest()
        progress = found["progress"]
        assert tensors["model.w"][0] == progress["step"]
        manager.tidy(progress)
        assert_in_order(folder, progress["step"], progress["best_step"])
        assert (progress["step"], progress["best_step"]) in {(BEFORE, 10), (AFTER, AFTER)}
        resumed_at.add(progress["step"])
    assert resumed_at == {BEFORE, AFTER}
    go_on(folder)
    assert_in_order(folder, AFTER, AFTER)
    assert {path.stem for path in folder.glob("*.safetensors")} == {
        *("last", "best", "step-0000000020", "step-0000000030"),
        *("best-0000000010", "best-0000000030"),
    }


def empty(path: Path) -> None:
    path.write_bytes(b"")


def zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def gone(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [empty, zeros, cut])
def test_a_loss_of_power_falls_back_to_the_one_before(damage, tmp_path, caplog):
    begun(tmp_path)
    damage(tmp_path / "step-0000000020.safetensors")
    (tmp_path / "last.json").write_bytes(b"\0" * 100)
    manager = CheckpointManager(tmp_path)
    _, found, path = manager.newest()
    assert found["progress"]["step"] == 10
    assert "resuming from the previous checkpoint" in caplog.text
    assert "step-0000000020.safetensors: not a readable" in caplog.text
    before = sorted(tmp_path.iterdir())
    manager.newest()
    assert sorted(tmp_path.iterdir()) == before  # only tidy changes files
    manager.tidy(found["progress"])
    assert path == tmp_path / "step-0000000010.safetensors"
    assert (tmp_path / "step-0000000020.damaged").exists()
    assert_in_order(tmp_path, 10, 10)


@pytest.mark.parametrize("damage", [empty, gone])
def test_lost_best_weights_are_replaced_until_the_next_validation(damage, tmp_path, caplog):
    begun(tmp_path)
    for name in ("best", "best-0000000010"):
        damage(tmp_path / f"{name}.safetensors")
    manager = CheckpointManager(tmp_path)
    _, found, _ = manager.newest()
    assert found["progress"] == {
        **header(20, 1, 20)["progress"],  # type: ignore[dict-item]
        **{"best_epoch": 1, "best_loss": None, "bad_validations": 0},
    }
    manager.tidy(found["progress"])
    assert "best ones until the next validation" in caplog.text
    assert_in_order(tmp_path, 20, 20)


def test_when_all_are_damaged_the_message_names_them(tmp_path):
    begun(tmp_path)
    for path in tmp_path.glob("step-*.safetensors"):
        cut(path)
    with pytest.raises(InputError, match=r"no checkpoint in .* is whole .*20.*10.*train again"):
        CheckpointManager(tmp_path).newest()


def test_a_missing_json_is_written_again_from_the_header(tmp_path):
    begun(tmp_path)
    for path in tmp_path.glob("*.json"):
        path.unlink()
    go_on(tmp_path)  # a running training does not need them
    assert weight_of(tmp_path / "best.safetensors") == AFTER
    for path in tmp_path.glob("*.json"):
        path.write_text("{}" if "3" in path.stem else "{")
    manager = CheckpointManager(tmp_path)
    manager.tidy(manager.newest()[1]["progress"])
    assert_in_order(tmp_path, AFTER, AFTER)


def test_foreign_files_are_left_alone(tmp_path):
    begun(tmp_path)
    names = ("step-x.safetensors", "best-old.safetensors", "best-new.json", "notes.txt", ".keep")
    for name in names:
        (tmp_path / name).write_text("mine")
    (tmp_path / "step-0000000099.safetensors").mkdir()
    manager = CheckpointManager(tmp_path)
    manager.tidy(manager.newest()[1]["progress"])
    go_on(tmp_path)
    for name in names:
        assert (tmp_path / name).read_text() == "mine"
    assert weight_of(tmp_path / "last.safetensors") == AFTER


def test_a_checkpoint_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    begun(tmp_path)

    def refuse(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(checkpoint_files, "safe_open", refuse)
    with pytest.raises(InputError, match="permission denied; change its permissions"):
        CheckpointManager(tmp_path).newest()
    remove_leftovers(tmp_path, locked=True)
    assert len(list(tmp_path.glob("step-*.safetensors"))) == 2
