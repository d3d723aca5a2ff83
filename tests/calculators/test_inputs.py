"""Inputs beside the geometry reach models through ``atoms.info`` and ``atoms.arrays``."""

import logging

import numpy as np
import pytest
from ase.calculators.fd import calculate_numerical_forces
from ase.io import write

from mace_train.calculators import MACETrainCalculator, evaluate_structures
from mace_train.calculators.torch_program import export_program
from mace_train.errors import InputError
from mace_train.train.checkpoint import model_header, save, with_prefix
from tests.charged import ELEMENTS, SPECS, charged
from tests.conftest import run_command
from tests.model.systems import model_of


@pytest.fixture(scope="module")
def model():
    return model_of(
        ELEMENTS,
        embedding_specs=SPECS,
        use_embedding_readout=True,
        correlation=2,
        max_ell=1,
        num_interactions=1,
    )


@pytest.fixture
def atoms(model):
    found = charged(7)
    found.calc = MACETrainCalculator(model)
    return found


def test_a_change_of_an_input_is_a_new_calculation(atoms):
    energies = []
    for charge in (0, 1, np.int64(-1), 0):
        atoms.info["charge"] = charge
        energies.append(atoms.get_potential_energy())
    assert len(set(energies)) == 3
    assert energies[0] == energies[3]
    before = atoms.get_forces()
    atoms.arrays["site"][1] = 0
    assert np.abs(atoms.get_forces() - before).max() > 1e-6
    atoms.info["T"] = 5.0
    assert atoms.get_potential_energy() != energies[3]


def test_what_is_no_input_is_no_change(atoms, monkeypatch):
    atoms.get_potential_energy()
    monkeypatch.setattr(atoms.calc, "calculate", None)  # would raise
    atoms.info["note"] = 3
    assert np.isfinite(atoms.get_forces()).all()


def test_forces_are_derivatives(atoms):
    numerical = calculate_numerical_forces(atoms, eps=1e-4)
    np.testing.assert_allclose(atoms.get_forces(), numerical, atol=2e-6)
    assert atoms.calc.get_hessian(atoms).shape == (15, 15)


def test_names_of_inputs(model, atoms):
    """Its own, mace-torch's, or those that are given."""
    expected = atoms.get_potential_energy()
    atoms.info["total_charge"] = atoms.info.pop("charge")
    assert atoms.get_potential_energy() == expected
    atoms.info["q"] = atoms.info.pop("total_charge")
    atoms.calc = MACETrainCalculator(model, info_keys={"total_charge": "q"})
    assert atoms.get_potential_energy() == expected
    with pytest.raises(InputError, match="info_keys names spin, but the inputs of the model per"):
        MACETrainCalculator(model, info_keys={"spin": "s"})


def test_a_value_in_the_other_place_is_said(atoms, caplog):
    atoms.arrays["charge"] = np.ones(len(atoms))
    del atoms.info["charge"]
    with caplog.at_level(logging.WARNING):
        atoms.get_potential_energy()
    words = "taking its default, 0: the input total_charge is read per structure (atoms.info), but"
    assert f"{words} 'charge' is there per atom (atoms.arrays)" in caplog.text


def test_a_default_is_said_once(atoms, caplog):
    del atoms.info["charge"]
    with caplog.at_level(logging.WARNING):
        for i in range(3):
            atoms.positions[0, 0] += 0.01 * i
            atoms.get_potential_energy()
    (line,) = caplog.messages
    assert "no 'total_charge' or 'charge' (info) for the input total_charge; taking its" in line


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ({"charge": 3}, "structure CH4: the input total_charge is 3, but the model takes an int"),
        ({"charge": 0.5}, "structure CH4: the input total_charge is 0.5, but"),
        ({"charge": 1, "total_charge": 0}, "is 0 under 'total_charge' and 1 under 'charge'"),
        ({"T": None}, "no 'T' or 'temperature' .info. for the input tem"),
    ],
)
def test_values_that_the_model_does_not_take(atoms, info, message):
    atoms.info.update(info)
    with pytest.raises(InputError, match=message):
        atoms.get_potential_energy()


def test_a_committee_of_models_with_other_inputs(model, atoms):
    expected = atoms.get_potential_energy()
    plain = model_of(ELEMENTS, correlation=2, max_ell=1, num_interactions=1)
    atoms.calc = MACETrainCalculator([model, plain])
    atoms.get_potential_energy()
    assert atoms.calc.results["energy_comm"][0] == expected
    before = atoms.calc.results["energy_comm"]
    atoms.info["charge"] = 2
    atoms.get_potential_energy()
    assert list(atoms.calc.results["energy_comm"] == before) == [False, True]


def test_many_structures(model, caplog):
    structures = [charged(i) for i in range(8)]
    found = evaluate_structures(structures, model)
    for atoms, evaluated in zip(structures, found, strict=True):
        atoms.calc = MACETrainCalculator(model)
        energy = atoms.get_potential_energy()
        assert evaluated.get_potential_energy() == pytest.approx(energy, abs=1e-10)
    assert "structure 4: no 'total_charge' or 'charge'" in caplog.text


def test_programs_refuse_inputs(model, tmp_path):
    with pytest.raises(InputError, match="format=export: the model has the inputs total_charge"):
        export_program(model, tmp_path / "a.pt2", "export")
    assert not list(tmp_path.iterdir())


def test_torch_sim_refuses_inputs(model):
    pytest.importorskip("torch_sim", reason="needs the extra torchsim")
    from mace_train.calculators.torchsim import MACETrainModel

    with pytest.raises(InputError, match="torch-sim: the model has the inputs"):
        MACETrainModel(model)


def test_dynamics_and_relaxation_of_a_file(model, tmp_path, capsys):
    checkpoint, file = tmp_path / "m.safetensors", tmp_path / "a.extxyz"
    header = {**model_header(model), "default_dtype": "float64"}
    save(checkpoint, with_prefix("model.", model.state_dict()), header)
    atoms = charged(7)
    write(file, atoms)
    common = [f"checkpoint={checkpoint}", f"structure={file}", "device=cpu"]
    run_command("md", *common, "steps=3", f"output={tmp_path / 'md'}")
    run_command("relax", *common, "max_steps=2", f"output={tmp_path / 'relax'}")
    with pytest.raises(SystemExit):
        run_command("md", *common, "info_keys={total_charge: T}", f"output={tmp_path / 'other'}")
    assert "the input total_charge is 0.7, but the model takes" in capsys.readouterr().err
