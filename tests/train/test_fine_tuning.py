"""Fine-tuning: what it starts from, E0s, elements, heads, low-rank changes, resume."""

import json
import logging
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from ase.io import write

from mace_train.data.statistics import Statistics
from mace_train.distributed.world import World
from mace_train.errors import InputError
from mace_train.model.derivatives import predict
from mace_train.settings import FoundationSettings, LossSettings, ModelSettings
from mace_train.train.checkpoint import load_model, read
from mace_train.train.setup import set_up
from mace_train.train.train import train
from tests.conftest import emt_structures, run_command
from tests.train.training import CPU, graph_of, other_theory, settings_for


@pytest.fixture(scope="module")
def foundation(prepared, tmp_path_factory):
    """A trained model (float64) of H, N, O and Al."""
    output = tmp_path_factory.mktemp("foundation") / "run"
    train(replace(settings_for(prepared, output), max_num_epochs=2))
    return output


@pytest.fixture(scope="module")
def new_data(tmp_path_factory):
    """Shards of other labels: molecules with energies of another zero, and a replay of old ones."""
    folder = tmp_path_factory.mktemp("new")
    molecules = [a for a in emt_structures(12, 0, seed=2) if a.numbers[0] != 13]
    old = [a for a in emt_structures(6, 0, seed=3) if a.numbers[0] != 13]
    write(folder / "new.xyz", other_theory(molecules), format="extxyz")
    write(folder / "old.xyz", old, format="extxyz")
    common = ("data.valid_fraction=0.25", "r_max=4.0")
    run_command("preprocess", f"data.train_file={folder}/new.xyz", *common, f"output={folder}/one")
    files = f"{{new: {folder}/new.xyz, replay: {folder}/old.xyz}}"
    run_command("preprocess", f"data.train_file={files}", *common, f"output={folder}/two")
    return folder


def tuned(foundation, data, output, **given):
    """Settings of a fine-tuning."""
    chosen = FoundationSettings(checkpoint=str(foundation), **given)
    return settings_for(data, output, foundation=chosen, loss=LossSettings())


def test_it_starts_as_the_model_it_comes_from(foundation, new_data, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        run = set_up(tuned(foundation, new_data / "one", tmp_path / "run"), World())
    assert "equal to the model it starts from (8 structures" in caplog.text
    assert "elements left out: Al" in caplog.text
    assert run.model.data.atomic_numbers == (1, 7, 8)
    (head,) = run.model.data.heads
    origin, _ = load_model(foundation)
    assert (head.scale, head.shift) == (origin.data.heads[0].scale, origin.data.heads[0].shift)
    statistics = Statistics.read(new_data / "one" / "statistics.json")
    assert dict(zip((1, 7, 8), head.E0s, strict=True)) == statistics.E0s


def test_E0s_of_another_method_are_said(foundation, new_data, tmp_path, caplog):
    model = load_model(foundation)[0].data
    own = dict(zip(model.atomic_numbers, model.heads[0].E0s, strict=True))
    set_up(tuned(foundation, new_data / "two", tmp_path / "run", E0s="estimated"), World())
    (said,) = [r.message for r in caplog.records if "E0s of the data less" in r.message]
    of_data = Statistics.read(new_data / "two" / "statistics.json").heads["new"].E0s
    assert said.startswith("head new: ")  # replay has those of the model
    assert f"H {of_data[1] - own[1]:+.3f}, " in said
    assert "foundation.E0s=estimated takes those of the model, corrected by its errors" in said


def test_E0s_of_the_foundation_keep_its_energies(foundation, new_data, tmp_path):
    settings = tuned(
        foundation, new_data / "one", tmp_path / "run", E0s="foundation", elements="all"
    )
    run = set_up(settings, World())
    origin, _ = load_model(foundation)
    assert run.model.data.heads[0].E0s == origin.data.heads[0].E0s
    graph = graph_of(run, [0, 1, 2])
    expected, found = (
        predict(m, graph, stress=False, create_graph=False) for m in (origin, run.model)
    )
    torch.testing.assert_close(found.energy, expected.energy, rtol=0, atol=1e-10)


def test_estimated_E0s_leave_no_error_that_other_E0s_would_correct(foundation, new_data, tmp_path):
    run = set_up(tuned(foundation, new_data / "two", tmp_path / "run", E0s="estimated"), World())
    assert run.model.data.head_names == ("new", "replay")
    for head in (0, 1):
        ids = np.flatnonzero(run.train.head_of == head)
        graph = graph_of(run, ids.tolist())
        graph = replace(graph, heads=torch.full_like(graph.heads, head))
        error = graph.energy - predict(run.model, graph, stress=False, create_graph=False).energy
        counts = np.array(
            [
                np.bincount(run.train.shards.sample(int(i)).structure.numbers, minlength=9)[
                    [1, 7, 8]
                ]
                for i in ids
            ]
        )
        change, *_ = np.linalg.lstsq(counts.astype(float), error.detach().numpy(), rcond=None)
        assert np.abs(change).max() < 1e-8
    assert abs(run.model.data.heads[0].E0s[1] - run.model.data.heads[1].E0s[1]) > 1.0


def test_estimated_E0s_leave_out_energies_of_weight_0(foundation, tmp_path):
    molecules = other_theory([a for a in emt_structures(12, 0, seed=2) if a.numbers[0] != 13])
    molecules = [atoms for atoms in molecules if len(atoms) > 1]
    unknown = [atoms.copy() for atoms in molecules]
    for atoms in unknown:
        atoms.info |= {"REF_energy": 0.0, "config_energy_weight": 0.0}
    found = []
    for name, structures in (("known", molecules), ("both", molecules + unknown), ("no", unknown)):
        write(tmp_path / f"{name}.xyz", structures, format="extxyz")
        words = (f"data.train_file={tmp_path}/{name}.xyz", "data.valid_fraction=0", "r_max=4.0")
        E0s = "data.E0s={1: 0.0, 7: 0.0, 8: 0.0}"
        run_command("preprocess", *words, E0s, f"output={tmp_path / name}")
        settings = tuned(foundation, tmp_path / name, tmp_path / f"run_{name}", E0s="estimated")
        found.append(set_up(settings, World()).model.data.heads[0].E0s)
    assert found[1] == pytest.approx(found[0], abs=1e-9)
    assert found[2] == load_model(foundation)[0].data.heads[0].E0s[:3]  # Al is the fourth


def test_replay_trains_heads_that_begin_alike(foundation, new_data, tmp_path):
    output = tmp_path / "run"
    words = (f"data_dir={new_data}/two", f"output={output}", "max_num_epochs=2", *CPU)
    start = f"foundation.checkpoint={foundation}"
    run_command("train", *words, start, "checkpoints.head=new", "loss.head_weights={replay: 0.2}")
    model, header = load_model(output)
    assert model.data.head_names == ("new", "replay")
    assert header["settings"]["foundation"]["checkpoint"] == str(foundation)
    assert asdict(ModelSettings()) | header["model_settings"] == header["settings"]["model"]
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["valid_loss"] < rows[0]["valid_loss"] * 1.5
    assert len(rows) == 2


@pytest.mark.parametrize("E0s", ["data", "estimated"])
def test_low_rank_training_resumes_and_ends_as_a_plain_model(E0s, foundation, new_data, tmp_path):
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    given = {"lora_rank": 2, "lora_alpha": 2.0, "E0s": E0s}
    train(replace(tuned(foundation, new_data / "one", whole, **given), max_num_epochs=3))
    for n in (1, 3):
        settings = tuned(foundation, new_data / "one", parted, **given)
        train(replace(settings, max_num_epochs=n, restart_latest=n > 1))
    ends = [read(folder / "checkpoints" / "last.safetensors")[0] for folder in (whole, parted)]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    origin, _ = load_model(foundation)
    model, _ = load_model(whole)
    names = dict(model.named_parameters())
    assert not any("parametrizations" in name for name in names)
    for name, weight in names.items():
        kept = ".symmetric_contractions." in name
        first = dict(origin.named_parameters())[name]
        if kept:
            assert torch.equal(weight, first[[0, 1, 2]]), name
        elif weight.shape == first.shape:
            assert not torch.equal(weight, first), name


def test_bad_input(foundation, new_data, tmp_path):
    with pytest.raises(InputError, match=r"foundation\.E0s: needs foundation\.checkpoint"):
        FoundationSettings(E0s="foundation")
    other = tmp_path / "other"
    run_command("preprocess", f"data.train_file={new_data}/new.xyz", "r_max=3.5", f"output={other}")
    with pytest.raises(
        InputError, match=r"r_max=4\.0.*r_max=3\.5.*preprocess again with r_max=4\.0"
    ):
        set_up(tuned(foundation, other, tmp_path / "run"), World())
    with pytest.raises(InputError, match=r"^foundation\.head: no head 'pbe'"):
        set_up(tuned(foundation, new_data / "one", tmp_path / "run", head="pbe"), World())
    with pytest.raises(InputError, match="no such checkpoint"):
        set_up(tuned(tmp_path / "nowhere", new_data / "one", tmp_path / "run"), World())
