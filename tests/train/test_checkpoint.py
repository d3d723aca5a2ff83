"""Checkpoints: what is written comes back, atomically, and what does not fit is refused."""

import json

import pytest
import torch
from safetensors.torch import save_file

from mace_train.errors import InputError
from mace_train.train import checkpoint
from mace_train.train.optim import load_optimizer_state, optimizer_state


def test_tensors_and_header_come_back(tmp_path):
    path = tmp_path / "a.safetensors"
    tensors = {"x": torch.arange(6.0).reshape(2, 3).T, "n": torch.tensor(3)}
    checkpoint.save(path, tensors, {"progress": {"epoch": 4}})
    read, header = checkpoint.read(path)
    assert header["progress"] == {"epoch": 4}
    assert {name: value.tolist() for name, value in read.items()} == {
        name: value.tolist() for name, value in tensors.items()
    }
    assert json.loads((tmp_path / "a.json").read_text()) == header
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "a.safetensors"]


def test_a_failed_write_leaves_the_one_before(tmp_path):
    path = tmp_path / "a.safetensors"
    checkpoint.save(path, {"x": torch.ones(2)}, {"good": True})
    with pytest.raises(ValueError, match=r"not JSON compliant|Out of range"):
        checkpoint.save(path, {"x": torch.zeros(2)}, {"loss": float("nan")})
    tensors, header = checkpoint.read(path)
    assert header["good"]
    assert tensors["x"].tolist() == [1.0, 1.0]


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.ones(2)}, path)
    with pytest.raises(InputError, match="not a mace-train checkpoint"):
        checkpoint.read(path)
    checkpoint.save(path, {"x": torch.ones(2)}, {"format_version": 99})
    with pytest.raises(InputError, match="format 99"):
        checkpoint.read(path)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(InputError, match="truncated"):
        checkpoint.read(path)
    with pytest.raises(InputError, match="no such checkpoint"):
        checkpoint.read(tmp_path / "b.safetensors")


def test_optimizer_state_comes_back():
    torch.manual_seed(0)
    models = [torch.nn.Linear(3, 2) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    optimizers = [torch.optim.Adam(model.parameters(), amsgrad=True) for model in models]

    def step(model, optimizer, scale):
        optimizer.zero_grad()
        (scale * model(torch.ones(1, 3))).square().sum().backward()
        optimizer.step()

    for scale in (1.0, 2.0, 0.5):
        step(models[0], optimizers[0], scale)
    state, numbers = optimizer_state(optimizers[0], models[0])
    assert {name.rpartition(".")[2] for name in state} == {
        "step",
        "exp_avg",
        "exp_avg_sq",
        "max_exp_avg_sq",
    }
    models[1].load_state_dict(models[0].state_dict())
    copies = {name: value.clone() for name, value in state.items()}
    load_optimizer_state(optimizers[1], models[1], copies, numbers)
    for model, optimizer in zip(models, optimizers, strict=True):
        step(model, optimizer, 3.0)
    assert torch.equal(models[0].weight, models[1].weight)


def test_parameters_that_do_not_fit_are_named(tmp_path):
    model = torch.nn.Linear(3, 2)
    tensors = {"model.weight": torch.zeros(2, 4), "model.extra": torch.zeros(1)}
    with pytest.raises(InputError) as error:
        checkpoint.load_parameters(model, tensors, "model.", tmp_path / "x")
    for words in ("bias is missing", "extra is unknown", "(2, 4)", "(2, 3)", "another model"):
        assert words in str(error.value)
