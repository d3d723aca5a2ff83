"""From files with charges to a trained model: inputs are read, checked, learned and kept."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase.io import read, write

from mace_train.calculators import MACETrainCalculator
from mace_train.data.shards.shard_set import ShardSet
from mace_train.distributed.world import World
from mace_train.errors import InputError
from mace_train.model.mace import MACE
from mace_train.ops.cpp.compiler import find_compiler
from mace_train.settings import FoundationSettings, LossSettings, ModelSettings, OptimizerSettings
from mace_train.train.checkpoint import load_model
from mace_train.train.optim import parameter_groups
from mace_train.train.setup import set_up
from mace_train.train.train import fit
from tests.charged import READ, SPECS, charged
from tests.conftest import TINY_MODEL, run_command
from tests.train.training import (
    assert_same_end,
    records,
    settings_for,
    train_until_killed,
    with_graphs,
)

MODEL = ModelSettings(
    num_channels=4,
    max_ell=2,
    correlation=2,
    radial_MLP=[8],
    embedding_specs=SPECS,
    use_embedding_readout=True,
)
LOSS = LossSettings()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("charged") / "charged.xyz"
    write(path, [charged(i) for i in range(36)])
    return path


@pytest.fixture(scope="module")
def charges(file, tmp_path_factory):
    """The structures, preprocessed with their inputs."""
    output = tmp_path_factory.mktemp("charges") / "data"
    preprocess(file, output, *READ)
    return output


def preprocess(file, output, *settings):
    fixed = ["data.E0s=average", "r_max=4.0", "structures_per_shard=9", "data.valid_fraction=0.2"]
    run_command("preprocess", f"data.train_file={file}", f"output={output}", *fixed, *settings)


def settings(prepared, output, **changes):
    return settings_for(prepared, output, **{"model": MODEL, "loss": LOSS, **changes})


def trained(prepared, output, **changes):
    run = set_up(settings(prepared, output, **changes), World())
    fit(run)
    return run


def test_preprocess_stores_inputs_and_says_defaults(file, charges, tmp_path, capsys):
    shards = ShardSet(charges / "train")
    for i in range(len(shards)):
        structure = shards.sample(i).structure
        atoms = charged(int(structure.source.split()[-1]))
        assert structure.inputs.graph["total_charge"] == atoms.info.get("charge", 0)
        assert structure.inputs.graph["temperature"] == pytest.approx(atoms.info["T"])
        expected = atoms.arrays.get("shielding", np.full(len(atoms), 0.5))
        np.testing.assert_allclose(structure.inputs.atom["shielding"], expected, atol=1e-7)
    preprocess(file, tmp_path / "again", *READ, "workers=2", "compression=gzip")
    run_command("inspect", f"data_dir={tmp_path / 'again'}")
    said = capsys.readouterr()
    default = "no 'charge' (info) for the input total_charge; taking its default, 0"
    assert f"structure 4: {default} (first of 6 structures)" in said.err
    assert "input total_charge" in said.out
    again = ShardSet(tmp_path / "again" / "train")
    assert again.sample(3).structure.inputs.graph == shards.sample(3).structure.inputs.graph


def test_a_key_that_no_structure_has(file, tmp_path, capsys):
    for command in ([], ["--dry-run"]):
        with pytest.raises(SystemExit):
            preprocess(file, tmp_path / "data", "data.info_keys={total_charge: chrage}", *command)
        assert (
            "none of the 36 structures has 'chrage' for the input total_charge; found REF_energy"
            in capsys.readouterr().err
        )
    assert not (tmp_path / "data").exists()


def test_ions_are_no_isolated_atoms(tmp_path):
    """Which give E0s; charged ones are structures to train on."""
    structures = [charged(i) for i in range(12)]
    for symbol, charge, energy in (("H", 0, -13.0), ("H", 1, 0.0), ("C", 0, -60), ("O", 0, -80)):
        atoms = charged(0)[:1]
        atoms.symbols = symbol
        atoms.info = {"REF_energy": energy, "charge": charge, "T": 1.0}
        structures.append(atoms)
    write(tmp_path / "a.xyz", structures)
    preprocess(tmp_path / "a.xyz", tmp_path / "data", *READ, "data.E0s=null")
    shards = [ShardSet(tmp_path / "data" / name) for name in ("train", "valid")]
    assert sum(int((of.n_atoms == 1).sum()) for of in shards) == 1


@pytest.mark.filterwarnings("ignore")
def test_energies_follow_the_charge(charges, tmp_path):
    """Geometries say nothing of it, so a model without inputs cannot learn it."""
    plain = replace(MODEL, embedding_specs=None, use_embedding_readout=False)
    rmse = []
    for name, model in (("with", MODEL), ("without", plain)):
        trained(
            charges,
            tmp_path / name,
            model=model,
            max_num_epochs=15,
            optimizer=OptimizerSettings(lr=0.05),
            loss=LossSettings(energy_weight=100.0, forces_weight=1.0),
        )
        last = records(tmp_path / name)[-1]
        rmse.append(last["valid_energy_rmse_eV_per_atom"])
    assert rmse[0] < 0.3 * rmse[1]


def test_evaluate_report_and_load_again(file, charges, tmp_path):
    run = tmp_path / "run"
    specs = "model.embedding_specs={total_charge: {type: categorical, per: graph, num_classes: 5, "
    specs += "offset: 2, emb_dim: 4}}"
    options = ["cluster=cpu", "max_num_epochs=2", "cluster.num_workers=2"]
    run_command("train", f"data_dir={charges}", f"output={run}", *TINY_MODEL, specs, *options)
    keys = "info_keys={total_charge: charge}"
    predicted = []
    for place in (
        [f"data_dir={charges}", "split=train"],
        [f"test_file={file}", keys],
        [f"test_file={file}"],  # the model knows under which name the charge stands
    ):
        output = tmp_path / f"evaluation{len(predicted)}"
        run_command("evaluate", f"checkpoint={run}", f"output={output}", "cluster=cpu", *place)
        written = read(output / "predictions.extxyz", ":")
        assert {atoms.info["total_charge"] for atoms in written} == {-1, 0, 1}
        predicted.append([atoms.info["MACE_energy"] for atoms in written])
    assert predicted[1] == predicted[2]
    run_command("report", run, "cluster=cpu")
    model, header = load_model(run)
    assert [spec.name for spec in model.inputs] == ["total_charge"]
    assert header["settings"]["model"]["embedding_specs"]["total_charge"]["offset"] == 2
    atoms = charged(6)
    atoms.calc = MACETrainCalculator(run)
    energy = atoms.get_potential_energy()
    assert energy == pytest.approx(predicted[1][6], rel=1e-5)
    atoms.info["charge"] = 0
    assert abs(atoms.get_potential_energy() - energy) > 1e-6
    elsewhere = "info_keys={total_charge: T}"
    with pytest.raises(SystemExit):
        run_command("evaluate", f"checkpoint={run}", f"test_file={file}", elsewhere, "cluster=cpu")


def test_fine_tuning_reads_inputs_as_its_data_have_them(file, charges, tmp_path):
    """Also where a folder was written before names were kept in statistics.json."""
    trained(charges, tmp_path / "first", max_num_epochs=1)
    first = load_model(tmp_path / "first")[0]
    assert [spec.key for spec in first.inputs] == ["charge", "T", None, None]
    structures = read(file, ":")
    for atoms in structures:
        atoms.info["q"] = atoms.info.pop("charge", 0)
    write(tmp_path / "q.xyz", structures)
    words = [READ[0].replace("total_charge: charge", "total_charge: q"), *READ[1:]]
    preprocess(tmp_path / "q.xyz", tmp_path / "q", *words)
    content = json.loads((tmp_path / "q" / "statistics.json").read_text())
    assert content["inputs"]["total_charge"] == {"key": "q", "default": 0.0}
    assert content["inputs"]["shielding"] == {"key": "shielding", "default": 0.5}
    start = FoundationSettings(checkpoint=str(tmp_path / "first"))
    for name, key in (("new", "q"), ("old", "charge")):
        run = trained(
            tmp_path / "q", tmp_path / name, max_num_epochs=1, foundation=start,
            model=ModelSettings(),
        )  # fmt: skip
        found = load_model(tmp_path / name)[0]
        assert found.inputs[0].key == run.model.inputs[0].key == key
        del content["inputs"]
        (tmp_path / "q" / "statistics.json").write_text(json.dumps(content))
        content["inputs"] = {}


def test_data_without_inputs_have_the_statistics_of_before(prepared):
    assert "inputs" not in json.loads((prepared / "statistics.json").read_text())


def test_a_value_in_the_other_place_ends_preprocess(file, tmp_path, capsys):
    with pytest.raises(SystemExit):
        preprocess(file, tmp_path / "data", "data.arrays_keys={total_charge: charge}")
    said = capsys.readouterr().err
    assert "charged.xyz, structure 0: the input total_charge is read per atom" in said
    assert "'charge' is there per structure (atoms.info); name it in info_keys" in said


def test_resumed_training_is_the_uninterrupted_one(charges, tmp_path):
    trained(charges, tmp_path / "whole")
    changed = settings(charges, tmp_path / "killed", restart_latest=True)
    train_until_killed(World(), changed, 9)
    fit(set_up(changed, World()))
    assert_same_end(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler")
def test_captured_steps_take_inputs(charges, tmp_path, stand_in):
    """A graph captured with one bin gives the losses of eager steps on all others."""
    found = []
    for captured in (False, True):
        changes = {"model": MODEL, "loss": LOSS, "max_num_epochs": 2}
        run = set_up(
            with_graphs(charges, tmp_path / str(captured), captured=captured, **changes), World()
        )
        fit(run)
        found.append([row["train_loss"] for row in records(run.output)])
    assert found[1] == pytest.approx(found[0], rel=1e-7)


def test_fine_tuning_starts_from_the_same_model(charges, tmp_path, caplog):
    trained(charges, tmp_path / "first", max_num_epochs=1)
    for name, foundation in (
        ("all", FoundationSettings(checkpoint=str(tmp_path / "first"), E0s="estimated")),
        ("lora", FoundationSettings(checkpoint=str(tmp_path / "first"), lora_rank=2)),
    ):
        with caplog.at_level(logging.INFO):
            run = trained(
                charges, tmp_path / name, max_num_epochs=1, foundation=foundation,
                model=ModelSettings(),
            )  # fmt: skip
        assert [spec.name for spec in run.model.inputs] == [*SPECS]
        assert "before the first step: equal to the model it starts from" in caplog.text
        assert load_model(tmp_path / name)[0].inputs == run.model.inputs


def test_weights_of_inputs_do_not_decay_and_have_the_rate_of_the_run(charges, tmp_path):
    run = set_up(settings(charges, tmp_path / "run"), World())
    groups = {
        group["name"]: group
        for group in parameter_groups(
            run.model, OptimizerSettings(lr_params_factors={"embedding": 0.1})
        )
    }
    names = {id(p): name for name, p in run.model.named_parameters()}
    assert {names[id(p)].split(".")[0] for p in groups["inputs"]["params"]} == {
        "joint_embedding",
        "embedding_readout",
    }
    assert (groups["inputs"]["weight_decay"], groups["inputs"]["lr_factor"]) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"total_charge": {"num_classes": 2, "offset": 1}}, "total_charge is 1, but the model"),
        ({"site": {"num_classes": 2}}, "the input site is 2, but the model takes an integer, at"),
        ({"total_spin": SPECS["site"] | {"per": "graph"}}, "no total_spin, which the model takes"),
        ({"site": {"per": "graph"}}, "no site, which the model takes per structure"),
    ],
)
def test_inputs_are_checked_before_the_training(change, message, charges, tmp_path, monkeypatch):
    monkeypatch.setattr(MACE, "__init__", None)  # nothing is built
    specs = {**SPECS, **{name: SPECS.get(name, {}) | spec for name, spec in change.items()}}
    model = replace(MODEL, embedding_specs=specs)
    with pytest.raises(InputError, match=message):
        set_up(settings(charges, tmp_path / "run", model=model), World())


def test_inputs_of_validation_structures_are_checked_too(file, tmp_path):
    other = charged(3)
    other.info["charge"] = 9
    write(tmp_path / "valid.xyz", other)
    preprocess(file, tmp_path / "data", *READ, f"data.valid_file={tmp_path / 'valid.xyz'}")
    with pytest.raises(InputError, match=r"valid.xyz, structure 0: the input total_charge is 9"):
        set_up(settings(tmp_path / "data", tmp_path / "run"), World())


def test_inputs_that_the_model_does_not_take(charges, tmp_path, caplog):
    plain = replace(MODEL, embedding_specs=None, use_embedding_readout=False)
    run = set_up(settings(charges, tmp_path / "run", model=plain), World())
    assert "the training structures have shielding, site, temperature, total_charge" in caplog.text
    assert torch.is_tensor(run.model.E0s)


def test_data_without_inputs(prepared, tmp_path):
    with pytest.raises(InputError, match=r"no total_charge, .*preprocess again with data\.info_ke"):
        set_up(settings(prepared, tmp_path / "run"), World())
