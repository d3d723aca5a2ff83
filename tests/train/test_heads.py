"""Several levels of theory in one training: E0s, loss, errors and best checkpoint by head."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from mace_train.data.statistics import Statistics
from mace_train.distributed.world import World
from mace_train.errors import InputError
from mace_train.model.derivatives import predict
from mace_train.model.surgery import one_head
from mace_train.settings import CheckpointSettings, LossSettings
from mace_train.train.checkpoint import load_model
from mace_train.train.loss import LossSums, loss_sums
from mace_train.train.setup import set_up
from mace_train.train.step import train_step
from mace_train.train.validation import validate
from tests.conftest import run_command
from tests.train.training import CPU, settings_for, with_two_heads


@pytest.fixture(scope="module")
def two_heads(tmp_path_factory):
    """Folder of shards with the heads emt and other, and the files that they come from."""
    return with_two_heads(tmp_path_factory.mktemp("heads"))


def test_every_head_has_its_own_zero_and_scale(two_heads, tmp_path):
    run = set_up(settings_for(two_heads / "data", tmp_path / "run"), World())
    statistics = Statistics.read(two_heads / "data" / "statistics.json").heads
    assert run.model.data.head_names == ("emt", "other")
    for head in run.model.data.heads:
        of_head = statistics[head.name]
        assert head.scale == of_head.rms_forces
        assert head.shift == of_head.mean_energy_per_atom
    E0s = {
        head.name: dict(zip((1, 7, 8, 13), head.E0s, strict=True)) for head in run.model.data.heads
    }
    assert E0s["other"][7] == pytest.approx(1.5 * E0s["emt"][7] - 40.0)
    assert E0s["other"][13] == 0.0  # it has no aluminium
    assert E0s["emt"][13] != 0.0


def test_training_evaluation_and_the_way_to_one_head(two_heads, tmp_path, capsys):
    output = tmp_path / "run"
    words = (f"data_dir={two_heads}/data", f"output={output}", "max_num_epochs=3", *CPU)
    run_command("train", *words, "checkpoints.head=other", "loss.head_weights={emt: 0.5}")
    model, _ = load_model(output)
    out = tmp_path / "errors"
    files = f"data_dir={two_heads}/data"
    run_command("evaluate", f"checkpoint={output}", files, f"output={out}", "cluster=cpu")
    rows = {row["name"]: row for row in json.loads((out / "errors.json").read_text())["errors"]}
    counts = [rows[name]["energy_count"] for name in ("head emt", "head other")]
    assert min(counts) > 0
    assert sum(counts) == rows["all"]["energy_count"]
    capsys.readouterr()
    # one head for structures that name none
    single = tmp_path / "single"
    given = f"test_file={two_heads}/other.xyz"
    run_command(
        "evaluate", f"checkpoint={output}", given, f"output={single}", "head=other", "cluster=cpu"
    )
    with pytest.raises(SystemExit):
        run_command("evaluate", f"checkpoint={output}", given, f"output={out}", "cluster=cpu")
    assert "heads are emt, other" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run_command("evaluate", f"checkpoint={output}", given, "head=scan", "cluster=cpu")
    assert "head: no head 'scan'; the heads of the model are: emt, other" in capsys.readouterr().err
    assert one_head(model, "other").data.head_names == ("other",)


def test_a_head_of_weight_zero_does_not_train(two_heads, tmp_path):
    loss = LossSettings(head_weights={"emt": 0.0})
    run = set_up(settings_for(two_heads / "data", tmp_path / "run", loss=loss), World())
    (graph,) = run.graphs(run.train, [np.arange(len(run.train.shards))], ahead=False)
    assert set(graph.heads.tolist()) == {0, 1}
    train_step(run, [graph], lr=0.0)
    gradient = run.model.readouts[0].linear.weight.grad.view(-1, 2)
    assert float(gradient[:, 0].abs().max()) == 0.0
    assert float(gradient[:, 1].abs().max()) > 0.0


def test_one_head_judges_the_checkpoints(two_heads, tmp_path):
    settings = settings_for(two_heads / "data", tmp_path / "run")
    run = set_up(replace(settings, checkpoints=CheckpointSettings(head="other")), World())
    mine = np.flatnonzero(run.valid.head_of == 1)
    assert 0 < len(mine) < len(run.valid.shards)
    total = LossSums.zero(torch.device("cpu"))
    for graph in run.graphs(run.valid, [mine[:1], mine[1:]], ahead=False):
        prediction = predict(run.model, graph, stress=True, create_graph=False)
        weight = run.valid.weight_of[graph.ids]
        sums = loss_sums(prediction, graph, settings.loss, structure_weight=weight)
        total = total + sums.detached()
    found, table = validate(run)
    assert found == pytest.approx(float(total.loss(settings.loss)), rel=1e-12)
    assert table[0]["energy_count"] == len(run.valid.shards)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"checkpoints": CheckpointSettings(head="scan")}, r"checkpoints\.head: no head 'scan'"),
        ({"loss": LossSettings(head_weights={"hf": 1})}, r"loss\.head_weights\.hf: no head 'hf'"),
    ],
)
def test_unknown_heads(changes, words, two_heads, tmp_path):
    with pytest.raises(InputError, match=words + ".*emt, other"):
        set_up(settings_for(two_heads / "data", tmp_path / "run", **changes), World())
