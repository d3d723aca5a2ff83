"""The ASE calculator against finite differences of its energies, and what users may do wrong."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import fcc111, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.filters import FrechetCellFilter
from ase.optimize import FIRE
from ase.stress import voigt_6_to_full_3x3_stress
from hypothesis import given, settings
from hypothesis import strategies as st

from mace_train.calculators import MACETrainCalculator
from mace_train.errors import InputError
from mace_train.interop.header import header_of
from mace_train.interop.state_dict import from_mace_torch
from mace_train.model.derivatives import predict
from tests.calculators.systems import ELEMENTS, R_MAX, STRUCTURES, calculator
from tests.equivariance import assert_model_equivariant
from tests.model.mace_torch import import_mace, mace_torch_model
from tests.model.systems import graph_of, model_of


@pytest.mark.parametrize("name", STRUCTURES)
def test_forces_and_stress_are_derivatives_of_the_energy(name):
    atoms = STRUCTURES[name]()
    atoms.calc = calculator()
    numerical = calculate_numerical_forces(atoms, eps=1e-4)
    np.testing.assert_allclose(atoms.get_forces(), numerical, atol=2e-6)
    if atoms.pbc.any():
        numerical = calculate_numerical_stress(atoms, eps=1e-5, voigt=False)
        basis = np.linalg.svd(atoms.cell[atoms.pbc], full_matrices=False)[2]  # tilted
        expected = basis.T @ basis @ numerical @ basis.T @ basis
        np.testing.assert_allclose(atoms.get_stress(voigt=False), expected, atol=1e-8)
        assert np.abs(numerical).max() > 1e-5
    else:
        with pytest.raises(PropertyNotImplementedError, match="not periodic in any direction"):
            atoms.get_stress()


@given(
    pbc=st.sampled_from([p for p in product([True, False], repeat=3) if 0 < sum(p) < 3]),
    seed=st.integers(0, 100),
)
@settings(deadline=None, max_examples=12)
def test_stress_of_slabs_and_wires_in_any_direction(pbc, seed):
    """Strain along the periodic directions, whichever they are, by finite differences."""
    rng = np.random.default_rng(seed)
    cell = 5.0 * np.eye(3) + rng.uniform(-1, 1, (3, 3))
    atoms = Atoms("Al3H", rng.uniform(0, 1, (4, 3)) @ (0.8 * cell), cell=cell, pbc=pbc)
    atoms.positions += 1.5 * np.arange(4)[:, None] * cell.sum(0) / 9
    atoms.calc = calculator()
    stress = atoms.get_stress(voigt=False)
    basis = np.linalg.svd(cell[list(pbc)], full_matrices=False)[2]
    across = np.linalg.svd(cell[list(pbc)])[2][sum(pbc) :]
    assert np.abs(stress @ across.T).max() < 1e-15
    for a, b in product(basis, basis):
        energies = []
        for step in (1e-5, -1e-5):
            strain = np.eye(3) + 0.5 * step * (np.outer(a, b) + np.outer(b, a))
            strained = atoms.copy()
            strained.set_cell(cell @ strain, scale_atoms=False)
            strained.positions = atoms.positions @ strain
            energies.append(atoms.calc.get_potential_energy(strained))
        numerical = (energies[0] - energies[1]) / 2e-5 / atoms.get_volume()
        assert a @ stress @ b == pytest.approx(numerical, abs=1e-7)


def test_a_slab_without_a_third_vector_has_no_stress():
    atoms = fcc111("Al", (2, 2, 2))
    assert not atoms.cell[2].any()
    atoms.calc = calculator()
    assert np.isfinite(atoms.get_forces()).all()
    with pytest.raises(PropertyNotImplementedError, match=r"no volume.*atoms\.center"):
        atoms.get_stress()


def test_a_slab_relaxes_in_its_plane_alone():
    atoms = fcc111("Al", (2, 2, 2), vacuum=5.0)
    atoms.rattle(0.1, seed=1)
    atoms.calc = calculator()
    before = atoms.cell[:].copy()
    first = atoms.get_potential_energy()
    FIRE(FrechetCellFilter(atoms), logfile=None).run(fmax=1e-6, steps=20)
    assert atoms.get_potential_energy() < first - 1e-3
    np.testing.assert_allclose(atoms.cell[2], before[2], atol=1e-9)
    np.testing.assert_allclose(atoms.cell[:2, 2], 0.0, atol=1e-9)
    assert np.abs(atoms.cell[:2] - before[:2]).max() > 1e-3


@pytest.mark.parametrize("name", STRUCTURES)
def test_results_move_with_the_structure(name):
    calc = calculator()

    def results(atoms):
        found = {"energy": calc.get_potential_energy(atoms), "forces": calc.get_forces(atoms)}
        if atoms.pbc.any():
            found["stress"] = voigt_6_to_full_3x3_stress(calc.get_stress(atoms))
        return found

    assert_model_equivariant(results, STRUCTURES[name]())


def test_results_are_those_of_the_model():
    atoms = STRUCTURES["molecule"]()
    model = model_of(ELEMENTS)
    atoms.calc = MACETrainCalculator(model, device="cpu")
    expected = predict(model, graph_of([atoms], R_MAX, ELEMENTS), stress=False, create_graph=False)
    assert atoms.get_potential_energy() == pytest.approx(expected.energy.item(), rel=1e-14)
    assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()
    energies = atoms.get_potential_energies()
    np.testing.assert_allclose(energies, expected.node_energy.numpy(), rtol=1e-14)
    E0s = np.array([-10.0 * z for z in atoms.numbers])
    np.testing.assert_allclose(atoms.calc.results["node_energy"], energies - E0s, atol=1e-11)
    assert all(parameter.requires_grad for parameter in model.parameters())  # it has a copy


def test_committee():
    atoms = STRUCTURES["crystal"]()
    alone = []
    for seed in (0, 1, 2):
        atoms.calc = calculator(seed)
        alone.append(
            {
                "energy": atoms.get_potential_energy(),
                "forces": atoms.get_forces(),
                "stress": atoms.get_stress(voigt=False),
                "hessian": atoms.calc.get_hessian(atoms),
            }
        )
        assert "energy_var" not in atoms.calc.results
    atoms.calc = calculator(0, 1, 2)
    assert atoms.get_potential_energy() == pytest.approx(np.mean([one["energy"] for one in alone]))
    np.testing.assert_allclose(
        atoms.get_stress(voigt=False), np.mean([one["stress"] for one in alone], axis=0)
    )
    results = atoms.calc.results
    for name in ("energy", "forces", "stress"):
        values = np.array([one[name] for one in alone])
        np.testing.assert_allclose(results[f"{name}_comm"], values, rtol=1e-12)
        np.testing.assert_allclose(results[f"{name}_var"], values.var(axis=0), rtol=1e-9)
    mean = np.mean([one["hessian"] for one in alone], axis=0)
    np.testing.assert_allclose(atoms.calc.get_hessian(), mean, atol=1e-12)


def test_members_may_differ_in_radius_and_elements():
    atoms = molecule("H2O")
    models = [model_of(ELEMENTS), model_of((1, 6, 8), r_max=1.3)]
    energies = [MACETrainCalculator(model).get_potential_energy(atoms) for model in models]
    both = MACETrainCalculator(models)
    assert both.r_max == 4.0
    assert both.get_potential_energy(atoms) == pytest.approx(np.mean(energies), rel=1e-13)


def test_heads():
    """Each is a model of its own, and one has to be named."""
    atoms, model = molecule("H2O"), model_of(ELEMENTS, heads=("pbe", "scan"))
    graph = graph_of([atoms], R_MAX, ELEMENTS)
    for index, head in enumerate(("pbe", "scan")):
        of_head = replace(graph, heads=torch.full_like(graph.heads, index))
        expected = predict(model, of_head, stress=False, create_graph=False)
        calc = MACETrainCalculator(model, head=head)
        assert calc.get_potential_energy(atoms) == pytest.approx(expected.energy.item(), rel=1e-12)
        np.testing.assert_allclose(calc.get_forces(atoms), expected.forces.numpy(), atol=1e-12)
    with pytest.raises(InputError, match="has the heads pbe, scan; choose one with head=pbe"):
        MACETrainCalculator(model)
    with pytest.raises(InputError, match="no head 'rpa'"):
        MACETrainCalculator(model, head="rpa")


def test_images_outside_of_the_cell_are_the_same_structure():
    atoms = STRUCTURES["crystal"]()
    calc = calculator()
    expected = calc.get_forces(atoms)
    energy = calc.get_potential_energy(atoms)
    atoms.positions[1] += 3 * atoms.cell[0] - atoms.cell[2]
    assert calc.get_potential_energy(atoms) == pytest.approx(energy, abs=1e-10)
    np.testing.assert_allclose(calc.get_forces(atoms), expected, atol=1e-10)


def test_nothing_in_reach():
    atoms = Atoms("O")
    atoms.calc = calculator()
    alone = atoms.get_potential_energy()
    assert alone == pytest.approx(-80.0 + atoms.calc.results["node_energy"][0])
    assert (atoms.get_forces() == 0).all()
    assert (atoms.calc.get_hessian() == 0).all()
    far = Atoms("OO", positions=[[0, 0, 0], [0, 0, 50.0]], calculator=atoms.calc)
    assert far.get_potential_energy() == pytest.approx(2 * alone)


def test_precision_of_the_user():
    atoms = STRUCTURES["molecule"]()
    double, single = (
        calculator(default_dtype=name).get_potential_energy(atoms)
        for name in ("float64", "float32")
    )
    assert single == pytest.approx(double, abs=1e-4)
    assert single != double


def test_moved_atoms_are_calculated_again():
    atoms = STRUCTURES["molecule"]()
    atoms.calc = calculator()
    first = atoms.get_potential_energy()
    atoms.positions[0, 0] += 0.1
    assert atoms.get_potential_energy() != first


def test_a_run_folder_a_file_and_a_pattern(trained):
    atoms = molecule("H2O")
    folder = MACETrainCalculator(trained)
    file = MACETrainCalculator(str(trained / "checkpoints" / "best.safetensors"))
    pattern = MACETrainCalculator(str(trained.parent / "ru*"))
    energies = {calc.get_potential_energy(atoms) for calc in (folder, file, pattern)}
    assert len(energies) == 1


@pytest.mark.parametrize(
    ("checkpoint", "settings", "words"),
    [
        ("nowhere", {}, "nowhere: no such checkpoint file"),
        ("nowhere-*", {}, "no file or folder fits this pattern"),
        ([], {}, "name at least one checkpoint"),
        (None, {"device": "tpu"}, "valid choices are: auto, cpu, cuda"),
        (None, {"default_dtype": "float16"}, "valid choices are: float32, float64"),
        (None, {"kernels": "fast"}, "kernels='fast' is not known"),
    ],
)
def test_wrong_settings(checkpoint, settings, words):
    with pytest.raises(InputError, match=words.replace("[", r"\[")):
        MACETrainCalculator(model_of(ELEMENTS) if checkpoint is None else checkpoint, **settings)


def test_wrong_structures():
    calc = calculator()
    with pytest.raises(InputError, match=r"CH4.*does not know C \(6\), only H, O, Al"):
        calc.get_potential_energy(molecule("CH4"))
    with pytest.raises(InputError, match="atoms 0 and 1 are 0 Å apart"):
        calc.get_potential_energy(Atoms("OO"))
    with pytest.raises(InputError, match="does not span"):
        calc.get_potential_energy(Atoms("O", pbc=True))
    with pytest.raises(InputError, match="no atoms"):
        calculator().get_hessian()


@pytest.mark.filterwarnings("ignore")  # mace-torch and e3nn warn a lot
def test_results_agree_with_mace_torch():
    """The same weights in mace-torch's calculator, results under the same names."""
    try:
        import_mace()
    except ImportError:
        pytest.skip("mace-torch is not installed")
    from mace.calculators import MACECalculator

    theirs = [mace_torch_model(ELEMENTS, seed=seed) for seed in (0, 1)]
    ours = [from_mace_torch(model.state_dict(), header_of(model)) for model in theirs]
    atoms = STRUCTURES["crystal"]()
    atoms.numbers[:2] = 1, 8
    found, expected = atoms.copy(), atoms.copy()
    found.calc = MACETrainCalculator(ours)
    expected.calc = MACECalculator(models=theirs, device="cpu", default_dtype="float64")
    found.get_stress(), expected.get_stress()
    theirs_of = expected.calc.results
    assert set(theirs_of) <= set(found.calc.results)
    for name, value in theirs_of.items():
        np.testing.assert_allclose(found.calc.results[name], value, atol=1e-9, err_msg=name)
    hessians = np.array(expected.calc.get_hessian()).reshape(2, 12, 12)
    np.testing.assert_allclose(found.calc.get_hessian(), hessians.mean(axis=0), atol=1e-9)
