"""Distance transforms and pair repulsion: finite differences, limits, formulas, compilation."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.data import covalent_radii

from mace_train.model.batch_index import EdgeEnds
from mace_train.model.compiled import CompiledMACE
from mace_train.model.derivatives import predict
from mace_train.model.pair_repulsion import (
    AgnesiTransform,
    PairRepulsion,
    SoftTransform,
)
from mace_train.ops.row_sums import sum_rows
from tests.model.differences import assert_forces_are_derivatives
from tests.model.systems import graph_of, mixed, model_of, salt

NUMBERS = (1, 8)
LENGTHS = torch.tensor([0.4, 0.7, 0.95, 1.3, 2.9], dtype=torch.float64)
SPECIES = torch.tensor([0, 1, 2, 3, 1])  # HH, HO, OH, OO, HO


def edge_ends(n):
    atoms = torch.arange(n)
    return EdgeEnds.of(atoms, atoms)


def test_agnesi_by_hand():
    found = AgnesiTransform(NUMBERS)(LENGTHS, SPECIES)
    r = covalent_radii
    means = np.array([r[1], (r[1] + r[8]) / 2, (r[1] + r[8]) / 2, r[8], (r[1] + r[8]) / 2])
    u = LENGTHS.numpy() / means
    expected = 1 / (1 + 1.0805 * u**0.9183 / (1 + u ** (0.9183 - 4.5791)))
    assert np.allclose(found.numpy(), expected, rtol=1e-14)


def test_soft_keeps_long_distances_and_stops_at_short_ones():
    found = SoftTransform(NUMBERS)(torch.tensor([0.01, 6.0]).double(), torch.tensor([1, 1]))
    radius = covalent_radii[1] + covalent_radii[8]
    assert found[0] == pytest.approx(0.75 * radius, abs=0.02)
    assert found[1] == pytest.approx(6.0, abs=1e-9)


def test_repulsion_by_hand():
    """Half of a pair for each end; nothing beyond the sum of the radii."""
    found = PairRepulsion(NUMBERS, 5)(LENGTHS, SPECIES, edge_ends(5), 5, sum_rows)
    reach = covalent_radii[1] + covalent_radii[8]
    a = 0.4543 * 0.529 / (1 + 8**0.3)
    x = 0.7 / a
    terms = zip((0.1818, 0.5099, 0.2802, 0.02817), (3.2, 0.9423, 0.4028, 0.2016), strict=True)
    u = 0.7 / reach
    envelope = 1 - 21 * u**5 + 35 * u**6 - 15 * u**7
    expected = 0.5 * 14.3996 * 8 / 0.7 * sum(w * np.exp(-d * x) for w, d in terms) * envelope
    assert float(found[1]) == pytest.approx(expected, rel=1e-13)
    assert found[4] == 0.0


@pytest.mark.parametrize("make", [AgnesiTransform, SoftTransform, None])
def test_second_derivatives(make):
    def function(lengths):
        if make is None:
            return PairRepulsion(NUMBERS, 5)(lengths, SPECIES, edge_ends(5), 5, sum_rows)
        return make(NUMBERS)(lengths, SPECIES)

    lengths = LENGTHS.clone().requires_grad_()
    assert torch.autograd.gradcheck(function, lengths)
    assert torch.autograd.gradgradcheck(function, lengths)


MODELS = [
    {"pair_repulsion": True},
    {"distance_transform": "Agnesi"},
    {"distance_transform": "Soft", "pair_repulsion": True},
]


@pytest.mark.parametrize("settings", MODELS)
def test_forces_and_stress_are_derivatives(settings):
    """Central differences of a whole model, with edges in pairs and one by one."""
    numbers = (11, 17)
    model = model_of(numbers, max_ell=1, max_L=0, correlation=2, **settings)
    atoms = salt()
    atoms.set_cell(0.6 * atoms.cell, scale_atoms=True)  # into the reach of the repulsion

    def prediction(positions):
        moved = atoms.copy()
        moved.positions[:] = positions
        graph = graph_of([moved], 4.0, numbers)
        return predict(model, graph, stress=True, create_graph=False)

    found = prediction(atoms.positions)
    assert_forces_are_derivatives(prediction, atoms.positions, 1e-6)
    graph = graph_of([atoms], 4.0, numbers)
    one_by_one = model(graph.vectors(), graph.elements, graph.senders, graph.receivers)
    total = one_by_one.double().sum() + model.E0s[0][graph.elements].sum()
    assert float(total.detach()) == pytest.approx(float(found.energy), abs=1e-10)


@pytest.mark.filterwarnings("ignore")  # torch's own, while it traces
@pytest.mark.parametrize("kernels", ["reference", "auto"])
def test_traced_model_trains_on_the_same_gradients(kernels):
    numbers = (1, 8, 11)
    model = model_of(numbers, max_ell=1, max_L=1, correlation=2, **MODELS[2])
    model.kernels = kernels
    close = Atoms("OH", positions=[[0, 0, 0], [0.7, 0, 0]])
    graph = graph_of([mixed(numbers), close], 4.0, numbers)

    def gradients(prediction):
        loss = prediction.energy.square().sum() + prediction.forces.square().sum()
        return [prediction.energy, *torch.autograd.grad(loss, list(model.parameters()))]

    traced = CompiledMACE(model, backend="eager")(graph, stress=False)
    expected = gradients(predict(model, graph, stress=False, create_graph=True))
    for found, right in zip(gradients(traced), expected, strict=True):
        scale = 1 + float(right.detach().abs().max())
        torch.testing.assert_close(found, right, rtol=0, atol=1e-11 * scale)
