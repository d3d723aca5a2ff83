"""The torch-sim model against the calculator, and in a run of torch-sim."""

import numpy as np
import pytest
import torch
from ase.build import bulk, fcc111, molecule

from mace_train.calculators import MACETrainCalculator
from mace_train.errors import InputError
from tests.calculators.systems import slab, wire
from tests.model.systems import mixed, model_of, rattled

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch-sim and what it imports
ts = pytest.importorskip("torch_sim", reason="needs the extra torchsim")
ELEMENTS = (1, 8, 13, 14, 26)
CPU = torch.device("cpu")


def torch_sim_model(model, **settings):
    from mace_train.calculators.torchsim import MACETrainModel

    return MACETrainModel(model, device="cpu", **settings)


def crystals():
    crystals = [bulk("Al", cubic=True), bulk("Al"), bulk("Si"), bulk("Fe")]
    return [rattled(atoms, seed) for seed, atoms in enumerate(crystals)]


def molecules():
    return [mixed((1, 8)), rattled(molecule("H2O"), 3), molecule("O")]


def slabs():
    return [slab(), rattled(fcc111("Al", (1, 2, 2), vacuum=4.0), 7)]


def wires():
    return [wire()]


@pytest.mark.parametrize("make", [crystals, molecules, slabs, wires])
def test_a_batch_of_systems(make):
    model, systems = model_of(ELEMENTS), make()
    state = ts.io.atoms_to_state(systems, CPU, torch.float64)
    state.pbc = torch.tensor(systems[0].pbc)  # of which torch-sim's own function keeps one
    found = torch_sim_model(model)(state)
    calc = MACETrainCalculator(model)
    forces = np.split(found["forces"].numpy(), np.cumsum([len(atoms) for atoms in systems])[:-1])
    for i, atoms in enumerate(systems):
        assert found["energy"][i].item() == pytest.approx(calc.get_potential_energy(atoms))
        np.testing.assert_allclose(forces[i], calc.get_forces(atoms), atol=1e-12)
        if atoms.pbc.any():
            atoms.calc = calc
            expected = atoms.get_stress(voigt=False)
            np.testing.assert_allclose(found["stress"][i].numpy(), expected, atol=1e-13)
        else:
            assert not found["stress"][i].any()


def test_it_is_what_torch_sim_asks_for():
    from torch_sim.models.interface import validate_model_outputs

    validate_model_outputs(torch_sim_model(model_of(ELEMENTS)), CPU, torch.float64)


def test_fields_and_what_is_not_asked_for():
    state = ts.io.atoms_to_state(crystals(), CPU, torch.float64)
    model = torch_sim_model(model_of(ELEMENTS), compute_stress=False)
    assert set(model(state)) == {"energy", "forces"}
    names = ("positions", "cell", "pbc", "atomic_numbers", "system_idx", "masses")
    as_fields = {name: getattr(state, name) for name in names}
    torch.testing.assert_close(model(as_fields), model(state))
    single = torch_sim_model(model_of(ELEMENTS), dtype=torch.float32)
    assert (single.dtype, single(state)["forces"].dtype) == (torch.float32, torch.float32)


def test_relaxation_lowers_energies():
    systems = molecules()[:2]
    model = torch_sim_model(model_of(ELEMENTS))
    start = model(ts.io.atoms_to_state(systems, CPU, torch.float64))["energy"]
    end = ts.optimize(systems, model, optimizer=ts.gradient_descent, max_steps=5)
    assert (end.energy < start).all()


def test_messages_name_the_system():
    state = ts.io.atoms_to_state([molecule("H2O"), molecule("CH4")], CPU, torch.float64)
    with pytest.raises(InputError, match=r"system 1: the model does not know C"):
        torch_sim_model(model_of(ELEMENTS))(state)
