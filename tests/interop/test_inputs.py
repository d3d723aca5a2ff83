"""Models of mace-torch with inputs beside the geometry: import, export, calculators, settings."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mace_train.calculators import MACETrainCalculator
from mace_train.errors import InputError
from mace_train.interop.export_model import export_model
from mace_train.interop.from_mace_config import translate
from mace_train.interop.header import header_of
from mace_train.interop.import_model import import_model
from mace_train.interop.mace_torch import double_precision, predictions_of
from mace_train.interop.probe_structures import probes
from mace_train.interop.state_dict import (
    from_mace_torch,
    header_for,
    to_mace_torch_state_dict,
)
from mace_train.interop.state_files import write_state
from mace_train.model.derivatives import predict
from mace_train.settings import ExportSettings, ImportSettings
from tests.charged import INPUTS, SPECS, charged
from tests.conftest import run_command
from tests.interop.variants import HEADS, NUMBERS, SMALL
from tests.model.mace_torch import mace_torch_model
from tests.model.systems import model_of

KINDS = {
    "readout": {"use_embedding_readout": True},
    "without readout": {},
    "heads": {**HEADS, "use_embedding_readout": True},
    "nonlinear": {
        "first": "RealAgnosticResidualNonLinear",
        "interaction": "RealAgnosticResidualNonLinear",
        "apply_cutoff": False,
    },
    "density": {"first": "RealAgnosticDensity", "interaction": "RealAgnosticDensityResidual"},
    "charge and spin": {
        "embedding_specs": {
            name: {"type": "categorical", "per": "graph", "num_classes": n, "emb_dim": 64}
            for name, n in (("total_spin", 101), ("total_charge", 201))
        }
    },
}


def theirs(**changes):
    return mace_torch_model(NUMBERS, **{**SMALL, "embedding_specs": SPECS, **changes})


@pytest.mark.usefixtures("mace_here")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_parity(kind):
    """Of energies, forces and stress, of every head."""
    original = theirs(**KINDS[kind])
    ours = from_mace_torch(original.state_dict(), header_of(original))
    graph = probes([*NUMBERS], 4.0, ours.inputs)
    for head in range(len(ours.data.heads)):
        expected = predictions_of(original, graph, head)
        of_head = replace(graph, heads=torch.full_like(graph.heads, head))
        found = predict(ours, of_head, stress=True, create_graph=False)
        for name, values in expected.items():
            scale = max(1.0, float(values.abs().max()))
            rows = graph.pbc.all(1) if name == "stress" else slice(None)
            torch.testing.assert_close(
                getattr(found, name)[rows], values[rows], rtol=0, atol=1e-10 * scale
            )


@pytest.mark.usefixtures("mace_here")
@pytest.mark.filterwarnings("ignore")
def test_calculators_agree_after_import_and_export(tmp_path):
    from mace.calculators import MACECalculator

    torch.save(theirs(**KINDS["readout"]), tmp_path / "original.model")
    run, exported = tmp_path / "run", tmp_path / "exported.model"
    import_model(ImportSettings(model_file=str(tmp_path / "original.model"), output=str(run)))
    export_model(ExportSettings(checkpoint=str(run), output=str(exported), default_dtype="float64"))
    ours = MACETrainCalculator(run, arrays_keys={"shielding": "shielding"})
    keys = {
        "info_keys": {"total_charge": "charge", "temperature": "T"},
        "arrays_keys": {"site": "site", "shielding": "shielding"},
    }
    with double_precision():
        calculators = [
            MACECalculator(model_paths=str(path), device="cpu", default_dtype="float64", **keys)
            for path in (tmp_path / "original.model", exported)
        ]
    for i in (1, 6, 9):
        atoms = charged(i)
        atoms.calc = ours
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        for calculator in calculators:
            atoms.calc = calculator
            assert atoms.get_potential_energy() == pytest.approx(energy, abs=1e-10)
            np.testing.assert_allclose(atoms.get_forces(), forces, atol=1e-10)


def test_headers_of_models_without_inputs_do_not_speak_of_them(tmp_path):
    model = model_of(NUMBERS)
    assert not {"embedding_specs", "use_embedding_readout"} & header_for(model).keys()
    specs = header_for(model_of(NUMBERS, embedding_specs=SPECS))["embedding_specs"]
    assert [*specs] == [spec.name for spec in INPUTS]


def test_state_dict_with_its_header_is_read_again(tmp_path):
    """By commands, without mace-torch's objects; a header that lacks the inputs is refused."""
    model = model_of(NUMBERS, embedding_specs=SPECS, use_embedding_readout=True)
    path = tmp_path / "model.safetensors"
    write_state(path, header_for(model), to_mace_torch_state_dict(model))
    run_command("import", path, f"output={tmp_path / 'run'}")
    assert MACETrainCalculator(tmp_path / "run").models[0].inputs == INPUTS
    header = header_for(model) | {"joint_embedding": True, "embedding_specs": None}
    with pytest.raises(InputError, match="header lacks embedding_specs"):
        from_mace_torch(to_mace_torch_state_dict(model), header)
    with pytest.raises(InputError, match=r"features that are not supported: .*embedding"):
        from_mace_torch(to_mace_torch_state_dict(model), header_for(model_of(NUMBERS)))


def test_settings_of_mace_run_train(tmp_path):
    file = tmp_path / "run.yaml"
    specs = {**SPECS, "total_spin": {**SPECS["site"], "per": "graph", "more": 1}}
    file.write_text(
        f"train_file: a.xyz\nembedding_specs: {specs!r}\nuse_embedding_readout: True\n"
        "total_charge_key: charge\ntotal_spin_key: spin\n".replace("False", "false")
    )
    equal, without = translate(str(file), [])
    as_text, _ = translate(None, [f"--embedding_specs={specs!r}", "--use_embedding_readout=True",
                                  "--total_charge_key=charge", "--total_spin_key=spin",
                                  "--train_file=a.xyz"])  # fmt: skip
    assert equal["train"]["model.embedding_specs"] == as_text["train"]["model.embedding_specs"]
    assert not [line for line in without if "embedding" in line or "_key" in line]
    assert equal["train"]["model.use_embedding_readout"] is True
    assert equal["preprocess"]["data.info_keys"] == {
        "total_charge": "charge",
        "temperature": "T",
        "total_spin": "spin",
    }
    assert equal["preprocess"]["data.arrays_keys"] == {"site": "site", "shielding": "shielding"}
    assert equal["preprocess"]["data.input_defaults"] == {"shielding": 0.5}


def test_without_inputs_the_readout_of_mace_run_train_has_no_effect():
    equal, _ = translate(None, ["--use_embedding_readout=True", "--train_file=a.xyz"])
    assert "model.use_embedding_readout" not in equal["train"]
    assert "data.info_keys" not in equal["preprocess"]
