"""Checkpoints of a training: what is kept, under which names, and what a full disk says."""

import json

import pytest
import torch

from mace_train.errors import InputError
from mace_train.train import checkpoint
from mace_train.train.checkpoint_manager import CheckpointManager, also_called
from tests.train.headers import header


def names(manager: CheckpointManager) -> list[str]:
    return sorted(path.stem for path in manager.folder.glob("*.safetensors"))


def test_pruning_keeps_the_newest_and_the_best_they_refer_to(tmp_path):
    manager = CheckpointManager(tmp_path, keep=2, keep_every=3)
    weight = torch.zeros(3)
    best = 0
    for epoch in range(7):
        step = 10 * (epoch + 1)
        weight += 1.0
        if epoch in (0, 2, 3):
            best = step
            manager.save_best({"w": weight}, header(step, epoch, best), ["best"])
        manager.save({"w": weight}, header(step, epoch, best))
        weight -= 0.5  # the next step must not change what is being written
        weight += 0.5
    manager.close()
    assert names(manager) == [
        "best",
        "best-0000000040",
        "epoch-00003",
        "epoch-00006",
        "last",
        "step-0000000060",
        "step-0000000070",
    ]
    assert checkpoint.read(manager.path("last"))[0]["w"].tolist() == [7.0] * 3
    assert checkpoint.read(manager.path("best"))[0]["w"].tolist() == [4.0] * 3
    assert json.loads((tmp_path / "last.json").read_text())["progress"]["step"] == 70
    assert not list(tmp_path.glob(".*"))


def test_best_weights_of_a_lost_future_are_forgotten(tmp_path):
    manager = CheckpointManager(tmp_path)
    manager.save_best({"w": torch.ones(1)}, header(10, best_step=10), ["best"])
    manager.save({"w": torch.ones(1)}, header(10, best_step=10))
    manager.save_best({"w": torch.zeros(1)}, header(20, best_step=20), ["best"])  # then it died
    manager.close()
    manager = CheckpointManager(tmp_path)
    _, resumed, _ = manager.newest()
    manager.tidy(resumed["progress"])
    assert resumed["progress"]["best_step"] == 10
    assert checkpoint.read(manager.path("best"))[0]["w"].tolist() == [1.0]
    assert not manager.path("best-0000000020").exists()


def test_an_error_of_the_disk_is_raised_by_the_next_call(tmp_path):
    manager = CheckpointManager(tmp_path / "gone")
    manager.save({"w": torch.ones(1)}, header(1))
    with pytest.raises(InputError, match=r"output: cannot write a checkpoint.*restart_latest"):
        manager.close()


def test_names_are_copies_where_links_are_not_possible(tmp_path, monkeypatch):
    checkpoint.save(tmp_path / "a.safetensors", {"w": torch.ones(1)}, {})
    also_called(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    assert (tmp_path / "b.safetensors").samefile(tmp_path / "a.safetensors")

    def refuse(*arguments: object) -> None:
        raise OSError("links are not supported")

    monkeypatch.setattr("os.link", refuse)
    also_called(tmp_path / "a.safetensors", tmp_path / "c.safetensors")
    assert not (tmp_path / "c.safetensors").samefile(tmp_path / "a.safetensors")
    assert checkpoint.read(tmp_path / "c.safetensors")[0]["w"].tolist() == [1.0]
    assert sorted(path.suffix for path in tmp_path.glob("c.*")) == [".json", ".safetensors"]


@pytest.mark.parametrize("place", [0.3, 0.9])
def test_any_changed_byte_is_noticed(place, tmp_path):
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, {"w": torch.arange(100.0)}, {"progress": {"step": 3}})
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 4
    path.write_bytes(content)
    with pytest.raises(InputError):
        checkpoint.read(path)
