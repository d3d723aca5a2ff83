"""The whole model: symmetries, derivatives against finite differences, and odd batches."""

import copy
import itertools
import pickle

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import make_supercell
from hypothesis import given, settings
from hypothesis import strategies as st

from mace_train.errors import InputError
from mace_train.model import readouts
from mace_train.model.derivatives import predict
from mace_train.model.interactions import INTERACTIONS
from mace_train.model.mace import MACE, Head, ModelData
from mace_train.model.pair_repulsion import TRANSFORMS
from mace_train.model.radial import RADIAL_FUNCTIONS
from mace_train.settings import ModelSettings
from mace_train.settings.model import (
    DISTANCE_TRANSFORMS,
    GATES,
    INTERACTION_BLOCKS,
    RADIAL_TYPES,
    READOUTS,
)
from tests.equivariance import assert_model_equivariant
from tests.model.systems import (
    NONLINEAR_SETTINGS,
    graph_of,
    mixed,
    model_of,
    nonlinear_model_of,
    rattled,
    results_of,
    salt,
    single_atom,
    tiny_cell,
    water,
)

ELEMENTS = (1, 8, 11, 13, 17)
R_MAX = 4.0
SEEDS = st.integers(0, 10_000)
MAKE = {"plain": model_of, "nonlinear": nonlinear_model_of}
FEW = settings(max_examples=6, deadline=None)


@pytest.fixture(scope="module", params=itertools.product(MAKE, ["auto", "reference"]), ids="-".join)
def model(request):
    make, kernels = request.param
    model = MAKE[make](ELEMENTS, max_ell=2, max_L=1)
    model.kernels = kernels
    return model


def outputs(model, structures, **options):
    graph = graph_of(structures, R_MAX, ELEMENTS, model.dtype)
    return predict(model, graph, stress=True, create_graph=False, **options)


def changed(atoms: Atoms, positions, cell=None) -> Atoms:
    atoms = atoms.copy()
    atoms.positions = positions
    if cell is not None:
        atoms.cell[:] = cell
    return atoms


def close(found, expected, tolerance=1e-9):
    torch.testing.assert_close(
        torch.as_tensor(found), torch.as_tensor(expected), rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("make", [water, salt, tiny_cell])
@given(seed=SEEDS)
@FEW
def test_rotation_reflection_permutation_and_translation(model, make, seed):
    assert_model_equivariant(
        lambda atoms: results_of(model, graph_of([atoms], R_MAX, ELEMENTS)), make(), seed=seed
    )


@given(seed=SEEDS)
@FEW
def test_choice_of_cell(model, seed):
    """Another basis of the same lattice, and images of atoms outside of the cell."""
    random = np.random.RandomState(seed)
    atoms = salt()
    basis = np.eye(3, dtype=int) + np.triu(random.randint(-1, 2, (3, 3)), 1)
    images = random.randint(-2, 3, (len(atoms), 3)) @ atoms.cell[:]
    other = changed(atoms, atoms.positions + images, basis @ atoms.cell[:])
    before, after = outputs(model, [atoms]), outputs(model, [other])
    close(after.energy, before.energy)
    close(after.forces, before.forces)
    close(after.stress, before.stress)


@given(
    factors=st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(1, 2)),
    skew=st.integers(-1, 1),
)
@FEW
def test_supercell(model, factors, skew):
    atoms = tiny_cell()
    matrix = np.diag(factors)
    matrix[0, 1] = skew
    large = make_supercell(atoms, matrix)
    before, after = outputs(model, [atoms]), outputs(model, [large])
    close(after.energy, len(large) * before.energy)
    close(after.stress, before.stress)


def test_batch_equals_single_structures(model):
    structures = [salt(), water(), tiny_cell(), single_atom()]
    together = outputs(model, structures)
    alone = [outputs(model, [atoms]) for atoms in structures]
    close(together.energy, torch.cat([single.energy for single in alone]))
    close(together.interaction_energy, torch.cat([s.interaction_energy for s in alone]))
    close(together.forces, torch.cat([single.forces for single in alone]))
    close(together.stress, torch.cat([single.stress for single in alone]))
    close(together.virials, torch.cat([single.virials for single in alone]))


@pytest.mark.parametrize("make", [water, salt, tiny_cell])
def test_forces_by_finite_differences(model, make):
    atoms = make()
    forces = outputs(model, [atoms]).forces
    step = 1e-4
    moved = []
    for i in range(min(len(atoms), 3)):
        for axis in range(3):
            for sign in (1, -1):
                positions = atoms.positions.copy()
                positions[i, axis] += sign * step
                moved.append(changed(atoms, positions))
    energies = outputs(model, moved).energy.view(-1, 3, 2)
    close(forces[:3], (energies[..., 1] - energies[..., 0]) / (2 * step), 1e-6)


@pytest.mark.parametrize("make", [salt, tiny_cell])
def test_stress_by_finite_differences(model, make):
    atoms = make()
    found = outputs(model, [atoms])
    step = 1e-5
    strained = []
    for i in range(3):
        for j in range(3):
            for sign in (1, -1):
                strain = np.zeros((3, 3))
                strain[i, j] += 0.5 * sign * step
                strain[j, i] += 0.5 * sign * step
                deform = np.eye(3) + strain
                strained.append(changed(atoms, atoms.positions @ deform, atoms.cell[:] @ deform))
    energies = outputs(model, strained).energy.view(3, 3, 2)
    derivative = (energies[..., 0] - energies[..., 1]) / (2 * step)
    close(found.virials[0], -derivative, 1e-5)
    close(found.stress[0], derivative / atoms.get_volume(), 1e-6)


def test_gradient_of_force_loss_by_finite_differences(model):
    graph = graph_of([water(), tiny_cell()], R_MAX, ELEMENTS)

    def loss():
        result = predict(model, graph, stress=True, create_graph=True)
        return result.forces.square().sum() + 100 * result.stress.square().sum()

    parameters = dict(model.named_parameters())
    gradients = dict(
        zip(parameters, torch.autograd.grad(loss(), list(parameters.values())), strict=True)
    )
    random = torch.Generator().manual_seed(0)
    for name, parameter in parameters.items():
        direction = torch.randn(parameter.shape, dtype=torch.float64, generator=random)
        step = 1e-4
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter += sign * step * direction
            values.append(float(loss().detach()))
            with torch.no_grad():
                parameter -= sign * step * direction
        expected = (values[0] - values[1]) / (2 * step)
        found = float((gradients[name] * direction).sum())
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6), name


def test_hessian_through_positions(model):
    graph = graph_of([water()], R_MAX, ELEMENTS)
    graph.positions.requires_grad_()
    result = predict(model, graph, stress=False, create_graph=True)
    rows = [
        torch.autograd.grad(-component, graph.positions, retain_graph=True)[0].flatten()
        for component in result.forces.flatten()
    ]
    hessian = torch.stack(rows)
    close(hessian, hessian.T)
    assert float(hessian.abs().max()) > 1e-3


ODD = {
    "nothing": [],
    "one_atom": [Atoms("O")],
    "atoms_apart": [Atoms("OHO", positions=[[0, 0, 0], [30, 0, 0], [0, 30, 0]])],
    "no_neighbours": [single_atom()],
    "crystal_without_edges": [Atoms("H", cell=[9, 9, 9], pbc=True)],
    "mixture": [Atoms("O"), water(), Atoms("H", cell=[9, 9, 9], pbc=True), tiny_cell()],
}


@pytest.mark.parametrize("settings", [{}, {"model": "MACE"}, NONLINEAR_SETTINGS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ODD)
def test_odd_batches(name, dtype, settings):
    model = model_of(ELEMENTS, dtype=dtype, **{"max_ell": 2, **settings})
    graph = graph_of(ODD[name], R_MAX, ELEMENTS, dtype)
    result = predict(model, graph, stress=True, create_graph=True)
    assert result.energy.dtype == torch.float64
    assert result.energy.shape == (graph.n_graphs,)
    assert result.forces.shape == (graph.n_atoms, 3)
    assert result.stress.shape == result.virials.shape == (graph.n_graphs, 3, 3)
    loss = result.energy.sum() + result.forces.square().sum() + result.stress.square().sum()
    loss.backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert torch.isfinite(parameter.grad).all(), parameter_name
    if graph.n_edges == 0:
        assert torch.equal(result.forces, torch.zeros_like(result.forces))
        assert torch.equal(result.stress, torch.zeros_like(result.stress))


def test_energy_without_forces_can_be_differentiated(model):
    graph = graph_of([water()], R_MAX, ELEMENTS)
    result = predict(model, graph, stress=False, create_graph=False, forces=False)
    assert result.forces is None
    assert result.stress is None
    assert result.virials is None
    result.energy.sum().backward()
    with torch.no_grad():
        again = predict(model, graph, stress=False, create_graph=False, forces=False)
        with_forces = predict(model, graph, stress=False, create_graph=False)
    assert not again.energy.requires_grad
    assert not with_forces.energy.requires_grad
    assert not with_forces.forces.requires_grad
    close(again.energy, with_forces.energy)


def test_isolated_atom_energy_is_exact_in_float32():
    E0s = (-13.587222780835477, -2041.8396277138414)
    data = ModelData(R_MAX, (1, 8), 5.0, (Head(E0s, 1.0, 0.0),))
    model = MACE(ModelSettings(num_channels=2, max_ell=1, radial_MLP=[4]), data).float()
    assert model.E0s.tolist() == [list(E0s)]
    assert copy.deepcopy(model).double().E0s.tolist() == [list(E0s)]
    graph = graph_of([Atoms("O"), Atoms("H")], R_MAX, (1, 8), torch.float32)
    result = predict(model, graph, stress=False, create_graph=False)
    total = result.node_energy - result.energy
    assert torch.equal(total, torch.zeros(2, dtype=torch.float64))
    alone = result.energy - result.interaction_energy.double()
    assert alone.tolist() == pytest.approx(list(E0s[::-1]), abs=1e-12)


def test_float32_is_close(model):
    low = copy.deepcopy(model).float()
    for make in (water, salt):
        exact, rounded = outputs(model, [make()]), outputs(low, [make()])
        close(rounded.energy, exact.energy, 1e-4)
        close(rounded.forces.double(), exact.forces, 1e-3)
    # tables are not rounded by a cast: the same weights in float64 give the same numbers again
    weights = {name: tensor.float().double() for name, tensor in model.state_dict().items()}
    direct = copy.deepcopy(model)
    direct.load_state_dict(weights)
    assert torch.equal(outputs(low.double(), [salt()]).energy, outputs(direct, [salt()]).energy)


def test_energy_is_smooth_at_the_cutoff(model):
    def pair(distance):
        return Atoms("OH", positions=[[0, 0, 0], [distance, 0, 0]])

    apart, near = outputs(model, [pair(R_MAX + 1e-6)]), outputs(model, [pair(R_MAX - 1e-6)])
    close(near.energy, apart.energy, 1e-12)
    close(near.forces, apart.forces, 1e-8)


def test_state_dict_holds_parameters_alone(model):
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}
    again = pickle.loads(pickle.dumps(model))
    close(outputs(again, [salt()]).energy, outputs(model, [salt()]).energy, 0.0)


@pytest.mark.parametrize(
    "options",
    [
        {"max_L": 3, "max_ell": 3, "correlation": 2, "num_channels": 2},
        {"max_L": 0, "max_ell": 4, "correlation": 2, "num_channels": 3},
        {"max_L": 1, "max_ell": 1, "correlation": 4, "num_interactions": 4, "num_channels": 1},
        {"model": "MACE", "max_L": 2, "max_ell": 2, "num_interactions": 3},
        {**NONLINEAR_SETTINGS, "max_L": 2, "num_interactions": 3, "edge_irreps": "5x0e+5x1o+5x2e"},
        {"edge_irreps": "2x0e", "correlation": [1, 3], "radial_type": "gaussian"},
    ],
)
def test_other_architectures_are_equivariant(options):
    model = model_of(ELEMENTS, **options)
    assert_model_equivariant(
        lambda atoms: results_of(model, graph_of([atoms], R_MAX, ELEMENTS)), mixed(ELEMENTS)
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"atomic_numbers": (8, 1)}, "ascending"),
        ({"heads": (Head((1.0,), 1.0, 0.0),)}, "1 E0s for 2 elements"),
        ({"heads": (Head((0.0, 0.0), 1.0, 0.0),) * 2}, "each with a name of its own"),
        ({"heads": (Head(([None], 0.0), 1.0, 0.0),)}, "has .None.; they must be finite numbers"),
        ({"heads": (Head((0.0, 0.0), float("nan"), 0.0),)}, "shift has nan"),
        ({"heads": ()}, "at least one"),
        ({"avg_num_neighbors": 0.0}, "must be positive"),
    ],
)
def test_bad_model_data(changes, words):
    good = {"r_max": 4.0, "atomic_numbers": (1, 8), "avg_num_neighbors": 5.0}
    good["heads"] = (Head((0.0, 0.0), 1.0, 0.0),)
    with pytest.raises(InputError, match=words):
        ModelData(**{**good, **changes})


def test_r_max_of_settings_and_data_must_agree():
    data = ModelData(4.0, (1,), 5.0, (Head((0.0,), 1.0, 0.0),))
    with pytest.raises(InputError, match=r"r_max=5\.0.*4\.0"):
        MACE(ModelSettings(r_max=5.0), data)


def test_every_choice_of_the_settings_has_code():
    assert set(INTERACTION_BLOCKS) == set(INTERACTIONS)
    assert set(RADIAL_TYPES) == set(RADIAL_FUNCTIONS)
    assert set(GATES) == set(readouts.GATES)
    assert set(READOUTS) == set(readouts.NONLINEAR_READOUTS)
    assert set(DISTANCE_TRANSFORMS) == set(TRANSFORMS)


def test_rattled_structures_have_no_symmetry():
    """The checks above mean little if forces or stress vanish by symmetry."""
    assert rattled(salt(), 0).get_volume() > 0
    model = model_of(ELEMENTS)
    result = outputs(model, [salt(), tiny_cell()])
    assert float(result.forces[: len(salt())].abs().max()) > 1e-3
    assert float(result.stress[1].abs().min()) > 1e-6


def test_unsorted_edges_are_refused(model):
    graph = graph_of([water()], R_MAX, ELEMENTS)
    with pytest.raises(AssertionError, match="sorted by receiver"):
        model(-graph.vectors(), graph.elements, graph.receivers, graph.senders)


def test_static_shapes_change_nothing_but_rounding(model):
    """With the reference the edges need not be sorted then, as in exported programs."""
    graph = graph_of([salt(), single_atom(), Atoms("O")], R_MAX, ELEMENTS)
    expected = predict(model, graph, stress=True, create_graph=False)
    static = copy.deepcopy(model)
    static.static_shapes = True
    found = predict(static, graph, stress=True, create_graph=False)
    for name in ("energy", "forces", "stress"):
        close(getattr(found, name), getattr(expected, name))
    if model.kernels == "reference":
        order = torch.randperm(graph.n_edges, generator=torch.Generator().manual_seed(0))
        edges = (graph.senders[order], graph.receivers[order])
        energies = static(graph.vectors()[order], graph.elements, *edges)
        close(energies, model(graph.vectors(), graph.elements, graph.senders, graph.receivers))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_equals_cpu(model):
    graph = graph_of([salt(), single_atom(), tiny_cell()], R_MAX, ELEMENTS)
    cuda = torch.device("cuda")
    on_cpu = predict(model, graph, stress=True, create_graph=True)
    moved = copy.deepcopy(model).to(cuda)
    on_gpu = predict(moved, graph.to(cuda), stress=True, create_graph=True)
    for name in ("energy", "forces", "stress", "virials", "node_energy"):
        close(getattr(on_gpu, name).cpu(), getattr(on_cpu, name))
