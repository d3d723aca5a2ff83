"""Files that version 0.1.0 wrote: its shards are read, its run goes on in the middle of an epoch.

reference/run_of_0.1.0 holds shards of 12 dimers, the checkpoint after step 10 of 12 of a run of
three epochs (with the average, the optimizer and the sums of the running epoch), and
the metrics that version 0.1.0 itself wrote to the end. To make it again, with that version:

    mace-train preprocess data.train_file=small.extxyz r_max=3.5 data.valid_fraction=0.2 \\
      output=data
    mace-train train data_dir=data output=run model=tiny model.num_channels=4 model.max_L=1 \\
      model.max_ell=1 model.correlation=2 'model.radial_MLP=[4]' default_dtype=float64 \\
      loss=stress batching=fixed_count batching.batch_size=3 max_num_epochs=3 \\
      checkpoints.every_steps=2 cluster=cpu cluster.kernels=reference ema=true
"""

import json
import shutil
from pathlib import Path

import pytest
import torch

from mace_train.data.shards import ShardSet
from mace_train.model.mace import MACE
from mace_train.settings import ModelSettings
from mace_train.train.checkpoint import load_model, model_header
from tests.conftest import run_command

REFERENCE = Path(__file__).parent / "reference" / "run_of_0.1.0"
WORDS = [
    "model=tiny",
    "model.num_channels=4",
    "model.max_L=1",
    "model.max_ell=1",
    "model.correlation=2",
    "model.radial_MLP=[4]",
    "default_dtype=float64",
    "loss=stress",
    "batching=fixed_count",
    "batching.batch_size=3",
    "max_num_epochs=3",
    "checkpoints.every_steps=2",
    "cluster=cpu",
    "cluster.kernels=reference",
    "ema=true",
]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_its_shards_are_read():
    shards = ShardSet(REFERENCE / "data" / "train")
    shards.verify()
    assert len(shards) == 10
    assert int(shards.n_edges.sum()) == 20


def test_its_weights_are_read():
    model, _ = load_model(REFERENCE / "run" / "checkpoints" / "best-0000000008.safetensors")
    assert sum(weight.numel() for weight in model.parameters()) == 580
    assert model.dtype == torch.float64


def test_it_could_read_the_architecture_that_is_written_now():
    """It refuses headers with a setting that it does not know."""
    path = REFERENCE / "run" / "checkpoints" / "best-0000000008.safetensors"
    model, header = load_model(path)
    now = model_header(model)
    assert now["model_settings"] == header["model_settings"]
    assert now["model_data"].keys() == header["model_data"].keys()
    typed = ModelSettings(**header["model_settings"], hidden_irreps="4x0e+4x1o")
    assert model_header(MACE(typed, model.data)) == now


def test_its_run_goes_on_as_it_would_have(tmp_path, capsys):
    shutil.copytree(REFERENCE / "run", tmp_path / "run")
    run_command(
        "train",
        f"data_dir={REFERENCE / 'data'}",
        f"output={tmp_path / 'run'}",
        "restart_latest=true",
        *WORDS,
    )
    shown = capsys.readouterr().err
    assert "after step 10, 2.50 epochs" in shown
    assert "settings changed" not in shown
    (found,) = lines(tmp_path / "run" / "metrics.jsonl")
    expected = lines(REFERENCE / "expected.jsonl")[-1]
    assert found["epoch"] == expected["epoch"] == 2
    assert found["step"] == expected["step"] == 12
    before, after = (
        json.loads((folder / "run" / "checkpoints" / f"{name}.json").read_text())
        for folder, name in ((REFERENCE, "step-0000000010"), (tmp_path, "step-0000000012"))
    )
    for part in ("model_settings", "model_data", "progress"):  # which it reads as a whole
        assert after[part].keys() == before[part].keys()
    for name in ("train_loss", "valid_loss", "valid_forces_rmse_eV_per_A", "grad_norm"):
        assert found[name] == pytest.approx(expected[name], rel=1e-9)
    assert found["train_loss"] != pytest.approx(
        lines(REFERENCE / "expected.jsonl")[-2]["train_loss"]
    )
