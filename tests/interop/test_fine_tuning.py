"""Fine-tuning a model of MACE-MH-1's kind: heads chosen, added and kept, with inputs.

The foundation model is one of mace-torch with random weights: nonlinear interactions, narrow edges,
an agnostic product, readouts with biases, three heads, and embeddings of charges and more.
"""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase.io import write

from mace_train.calculators import MACETrainCalculator
from mace_train.distributed.world import World
from mace_train.errors import InputError
from mace_train.interop.export_model import export_model
from mace_train.interop.import_model import import_model
from mace_train.interop.mace_torch import double_precision, predictions_of
from mace_train.model.derivatives import predict
from mace_train.settings import (
    BatchingSettings,
    CheckpointSettings,
    ExportSettings,
    FoundationSettings,
    ImportSettings,
    LossSettings,
    OptimizerSettings,
)
from mace_train.train.checkpoint import load_model
from mace_train.train.setup import set_up
from mace_train.train.train import train
from tests.charged import READ, SPECS, charged
from tests.conftest import run_command
from tests.interop.variants import NONLINEAR, NUMBERS, SMALL
from tests.model.mace_torch import import_mace, mace_torch_model
from tests.train.training import (
    assert_same_end,
    graph_of,
    records,
    settings_for,
    train_until_killed,
)

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("mace_here")]
HEADS = ("omol", "pbe", "scan")
CHOSEN = {"new": "scan", "pbe": "pbe"}


@pytest.fixture(scope="module")
def original():
    """The model of mace-torch."""
    try:
        import_mace()
    except ImportError:
        pytest.skip("mace-torch is not installed")
    return mace_torch_model(
        NUMBERS,
        **SMALL,
        **NONLINEAR,
        edge_irreps="4x0e+4x1o",
        use_agnostic_product=True,
        readout_cls="NonLinearBiasReadoutBlock",
        use_last_readout_only=True,
        embedding_specs=SPECS,
        use_embedding_readout=True,
        heads=list(HEADS),
        atomic_energies=np.array([[-10.0 * z - i for z in NUMBERS] for i in range(3)]),
        atomic_inter_scale=[0.8, 1.3, 1.1],
        atomic_inter_shift=[0.1, -0.2, 0.3],
    )


@pytest.fixture(scope="module")
def folder(original, tmp_path_factory):
    """The imported model in foundation/, and data of the heads new and pbe in two/, one in one/."""
    folder = tmp_path_factory.mktemp("mh")
    torch.save(original, folder / "a.model")
    import_model(
        ImportSettings(model_file=str(folder / "a.model"), output=str(folder / "foundation"))
    )
    write(folder / "new.xyz", [charged(i) for i in range(20)])
    write(folder / "old.xyz", [charged(i) for i in range(40, 52)])
    common = (*READ, "data.E0s=average", "r_max=4.0", "data.valid_fraction=0.2")
    files = f"{{new: {folder}/new.xyz, pbe: {folder}/old.xyz}}"
    run_command("preprocess", f"data.train_file={files}", f"output={folder}/two", *common)
    run_command("preprocess", f"data.train_file={folder}/new.xyz", f"output={folder}/one", *common)
    return folder


def tuned(folder, output, data="two", **changes):
    given = {"head": CHOSEN, "E0s": "foundation", **changes.pop("foundation", {})}
    foundation = FoundationSettings(checkpoint=str(folder / "foundation"), **given)
    changes = {"loss": LossSettings(), "batching": BatchingSettings(batch_size=5), **changes}
    return settings_for(folder / data, output, foundation=foundation, max_num_epochs=2, **changes)


def of_head(run, head):
    """Prediction of one head for some structures, and the graph."""
    graph = graph_of(run, [0, 1, 2, 3, 4])
    graph = replace(
        graph, heads=torch.full_like(graph.heads, run.model.data.head_names.index(head))
    )
    return predict(run.model, graph, stress=False, create_graph=False), graph


def test_heads_begin_as_those_of_mace_torch(original, folder, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        run = set_up(tuned(folder, tmp_path / "run", foundation={"heads": "all"}), World())
    assert run.model.data.head_names == ("new", "pbe", "omol", "scan")
    assert "heads: new begins as scan, pbe begins as pbe" in caplog.text
    assert "heads kept, without data: omol, scan" in caplog.text
    assert "before the first step: equal to the model it starts from" in caplog.text
    for head, source in {**CHOSEN, "omol": "omol", "scan": "scan"}.items():
        found, graph = of_head(run, head)
        expected = predictions_of(original, graph, HEADS.index(source))
        for name in ("energy", "forces"):
            torch.testing.assert_close(getattr(found, name), expected[name], rtol=0, atol=1e-10)
    small = set_up(tuned(folder, tmp_path / "other"), World())
    assert small.model.data.head_names == ("new", "pbe")
    assert "heads left out: omol" in caplog.text


def test_one_head_for_all_and_none_where_names_are_the_same(folder, tmp_path):
    run = set_up(tuned(folder, tmp_path / "run", foundation={"head": "omol"}), World())
    energies = [of_head(run, head)[0].energy for head in ("new", "pbe")]
    torch.testing.assert_close(*energies, rtol=0, atol=1e-10)
    run = set_up(tuned(folder, tmp_path / "run", foundation={"head": {"new": "omol"}}), World())
    energies = [of_head(run, head)[0].energy for head in ("new", "pbe")]
    assert float((energies[0] - energies[1]).abs().max()) > 0.1  # pbe began as pbe
    one = {"head": "scan", "heads": "all"}
    run = set_up(tuned(folder, tmp_path / "run", "one", foundation=one), World())
    assert run.model.data.head_names == ("Default", *HEADS)
    energies = [of_head(run, head)[0].energy for head in ("Default", "scan")]
    torch.testing.assert_close(*energies, rtol=0, atol=1e-10)


def test_estimated_energies_are_of_the_head_that_it_begins_as(folder, tmp_path):
    run = set_up(tuned(folder, tmp_path / "run", foundation={"E0s": "estimated"}), World())
    for index, head in enumerate(("new", "pbe")):
        ids = np.flatnonzero(run.train.head_of == index).tolist()
        graph = graph_of(run, ids)
        graph = replace(graph, heads=torch.full_like(graph.heads, index))
        error = graph.energy - predict(run.model, graph, stress=False, create_graph=False).energy
        assert abs(float(error.detach().mean())) < 1e-8, head


def test_training_leaves_kept_heads_alone_and_goes_back_to_mace_torch(folder, tmp_path):
    """The readouts of heads without data do not change; with frozen layers their energies stay."""
    from mace.calculators import MACECalculator

    output = tmp_path / "run"
    parts = ["embedding", "interactions", "products", "joint_embedding"]
    settings = tuned(
        folder,
        output,
        foundation={"heads": "all"},
        optimizer=OptimizerSettings(lr=0.01, freeze=parts, weight_decay=0.1),
    )
    first = set_up(settings, World())
    before = {head: of_head(first, head)[0] for head in first.model.data.head_names}
    train(settings)
    rows = records(output)
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    model, _ = load_model(output)
    graph = graph_of(first, [0, 1, 2, 3, 4])
    for index, head in enumerate(model.data.head_names):
        of_one = replace(graph, heads=torch.full_like(graph.heads, index))
        after = predict(model, of_one, stress=False, create_graph=False)
        change = float((after.forces - before[head].forces).abs().max())
        assert change < 1e-12 if head in ("omol", "scan") else change > 1e-4, head
    exported = tmp_path / "exported.model"
    export_model(
        ExportSettings(checkpoint=str(output), output=str(exported), default_dtype="float64")
    )
    keys = {
        "info_keys": {"total_charge": "charge", "temperature": "T"},
        "arrays_keys": {"site": "site", "shielding": "shielding"},
    }
    for head in ("new", "omol"):
        ours = MACETrainCalculator(output, head=head, arrays_keys={"shielding": "shielding"})
        with double_precision():
            theirs = MACECalculator(
                model_paths=str(exported), device="cpu", default_dtype="float64", head=head, **keys
            )
        atoms = charged(1)
        atoms.calc = ours
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        atoms.calc = theirs
        assert atoms.get_potential_energy() == pytest.approx(energy, abs=1e-10)
        np.testing.assert_allclose(atoms.get_forces(), forces, atol=1e-10)


def test_with_sampling_ratios_it_is_killed_and_resumed(folder, tmp_path):
    batching = BatchingSettings(batch_size=4, head_sampling_ratios={"new": 1.5, "pbe": "1/2"})
    common = {
        "batching": batching,
        "foundation": {"heads": "all", "lora_rank": 2},
        "checkpoints": CheckpointSettings(every_steps=1),
        "restart_latest": True,
    }
    train(tuned(folder, tmp_path / "whole", **common))
    settings = tuned(folder, tmp_path / "run", **common)
    train_until_killed(World(), settings, 3)
    changed = tuned(folder, tmp_path / "run", **{**common, "foundation": {"lora_rank": 2}})
    with pytest.raises(InputError, match=r"checkpoint of another model .heads: "):
        set_up(changed, World())
    train(settings)
    assert_same_end(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize(
    ("foundation", "message"),
    [
        ({"head": None}, "has the heads omol, pbe, scan; name one of them, foundation.head=NAME"),
        ({"head": {"pbe": "pbe"}}, r"foundation.head='\{new: NAME\}'"),
        ({"head": {"new": "hf"}}, "no head 'hf'; the heads of .* are: omol, pbe, scan"),
        (
            {"head": {"nev": "pbe"}},
            r"foundation\.head\.nev: no head 'nev' \(did you mean new\?\); .* data are: new, pbe",
        ),
        ({"head": ["pbe"]}, r"foundation\.head=\['pbe'\] must be a head of the model, or map"),
        ({"head": {"new": 3}}, "must be a head of the model, or map heads of the data"),
        ({"heads": "some"}, r"foundation\.heads='some' is not known; valid choices are: data, all"),
    ],
)
def test_heads_that_cannot_be(foundation, message, folder, tmp_path):
    with pytest.raises(InputError, match=message):
        set_up(tuned(folder, tmp_path / "run", foundation=foundation), World())


def test_settings_of_heads_are_for_heads_of_the_data(folder, tmp_path):
    loss = LossSettings(head_weights={"omol": 2.0})
    settings = tuned(folder, tmp_path / "run", foundation={"heads": "all"}, loss=loss)
    with pytest.raises(InputError, match="no head 'omol'; the heads of the data are: new, pbe"):
        set_up(settings, World())
