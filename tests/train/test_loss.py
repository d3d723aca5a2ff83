"""The loss against a loop over structures, and against mace-torch where every label is there."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from mace_train.data.graph import Graph
from mace_train.errors import InputError
from mace_train.model.derivatives import Prediction
from mace_train.settings import LossSettings
from mace_train.train.loss import huber, label_counts, loss_sums
from tests.train.labelled_batch import SIZES, batch, prediction_for


@pytest.mark.parametrize("missing", [False, True])
def test_loss_equals_a_loop_over_structures(missing):
    graph = batch(missing)
    prediction = prediction_for(graph)
    settings = LossSettings(
        energy_weight=2.0, forces_weight=3.0, stress_weight=5.0, virials_weight=7.0
    )
    structure_weight = torch.tensor([1.0, 2.0, 0.5, 0.0], dtype=torch.float64)
    terms, counts = [0.0] * 4, [0] * 4
    for g in range(graph.n_graphs):
        atoms = graph.graph_of_atom == g
        n, weight = SIZES[g], float(graph.weight[g] * structure_weight[g])
        if graph.has_energy[g]:
            error = float(prediction.energy[g] - graph.energy[g]) / n
            terms[0] += weight * float(graph.energy_weight[g]) * error**2
            counts[0] += 1
        if graph.has_forces[g]:
            error = prediction.forces[atoms] - graph.forces[atoms]
            terms[1] += weight * float(graph.forces_weight[g] * (error**2).sum())
            counts[1] += 3 * n
        if graph.has_stress[g]:
            error = prediction.stress[g] - graph.stress[g]
            volume = float(torch.linalg.det(graph.cell[g]).abs())
            terms[2] += weight * float(graph.stress_weight[g] * (error**2).sum())
            terms[3] += weight * float(graph.stress_weight[g] * ((volume / n * error) ** 2).sum())
            counts[2] += 9
            counts[3] += 9
    expected = sum(w * t / c for w, t, c in zip((2, 3, 5, 7), terms, counts, strict=True))
    sums = loss_sums(prediction, graph, structure_weight=structure_weight)
    assert label_counts(graph).tolist() == counts
    assert float(sums.loss(settings)) == pytest.approx(expected, rel=1e-12)


def test_a_missing_label_has_no_gradient():
    graph = batch(missing=True)
    prediction = prediction_for(graph)
    for tensor in (prediction.energy, prediction.forces, prediction.stress):
        tensor.requires_grad_()
    settings = LossSettings(stress_weight=1.0)
    loss_sums(prediction, graph).loss(settings).backward()
    assert (prediction.energy.grad[~graph.has_energy] == 0).all()
    assert (prediction.forces.grad[~graph.has_forces[graph.graph_of_atom]] == 0).all()
    assert (prediction.stress.grad[~graph.has_stress] == 0).all()
    assert (prediction.energy.grad[graph.has_energy] != 0).all()


@pytest.mark.parametrize("loss", ["weighted", "huber", "universal"])
def test_slabs_and_wires_count_components_along_periodic_directions(loss):
    """As if the others did not exist: the loss of their mean over 9, 4, 1 and 0 components."""
    graph = batch(missing=False)
    graph.pbc = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 0, 1], [0, 0, 0]], dtype=torch.bool)
    mask = graph.pbc[:, :, None] * graph.pbc[:, None, :]
    graph.has_stress = torch.tensor([True, True, True, False])
    graph.stress = graph.stress * mask
    prediction = prediction_for(graph)
    prediction = replace(prediction, stress=prediction.stress * mask)
    counts = label_counts(graph, loss)
    assert counts[2:].tolist() == [14, 14]
    settings = LossSettings(loss=loss, energy_weight=0, forces_weight=0, stress_weight=3.0)
    delta, expected = torch.tensor(settings.huber_delta, dtype=torch.float64), 0.0
    for g in range(3):
        axes = graph.pbc[g].nonzero().flatten()
        error = (prediction.stress - graph.stress)[g][axes][:, axes]
        weight, label_weight = graph.weight[g], graph.stress_weight[g]
        if loss == "universal":
            terms = weight * huber(label_weight * error, delta)
        elif loss == "huber":
            terms = weight * label_weight * huber(error, delta)
        else:
            terms = weight * label_weight * error**2
        expected += float(terms.sum()) / 14
    found = loss_sums(prediction, graph, settings).loss(settings)
    assert float(found) == pytest.approx(3.0 * expected, rel=1e-12)


def dictionaries(graph: Graph, prediction: Prediction) -> tuple["_Dict", dict[str, torch.Tensor]]:
    """The same batch and prediction as mace-torch has them."""
    volume = torch.linalg.det(graph.cell).abs()[:, None, None]
    reference = {
        "weight": graph.weight,
        "energy_weight": graph.energy_weight,
        "forces_weight": graph.forces_weight,
        "stress_weight": graph.stress_weight,
        "virials_weight": graph.stress_weight,
        "energy": graph.energy,
        "forces": graph.forces,
        "stress": graph.stress,
        "virials": -volume * graph.stress,
        "ptr": torch.cumsum(torch.tensor([0, *SIZES]), 0),
        "batch": graph.graph_of_atom,
    }
    names = ("energy", "forces", "stress", "virials")
    return _Dict(reference), {name: getattr(prediction, name) for name in names}


ENERGY_FORCES = {"energy_weight": 2.0, "forces_weight": 3.0}
OF_MACE_TORCH = {
    # name: (class, its arguments, our settings, weights that it ignores)
    "weighted": ("WeightedEnergyForcesLoss", ENERGY_FORCES, {}, ()),
    "forces_only": ("WeightedForcesLoss", {"forces_weight": 3.0}, {"energy_weight": 0.0}, ()),
    "stress": ("WeightedEnergyForcesStressLoss", ENERGY_FORCES | {"stress_weight": 5.0}, {}, ()),
    "virials": ("WeightedEnergyForcesVirialsLoss", ENERGY_FORCES | {"virials_weight": 5.0}, {}, ()),
    "huber": (
        "WeightedHuberEnergyForcesStressLoss",
        ENERGY_FORCES | {"stress_weight": 5.0, "huber_delta": 0.7},
        {},
        ("weight", "energy_weight", "forces_weight", "stress_weight"),
    ),
    "universal": (
        "UniversalLoss",
        ENERGY_FORCES | {"stress_weight": 5.0, "huber_delta": 0.7},
        {},
        ("weight",),
    ),
    "l1l2": ("WeightedEnergyForcesL1L2Loss", ENERGY_FORCES, {}, ("forces_weight", "weight")),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", OF_MACE_TORCH)
def test_loss_and_gradient_equal_mace_torch(name):
    losses = pytest.importorskip("mace.modules.loss", reason="needs the extra interop")
    kind, arguments, more, ignored = OF_MACE_TORCH[name]
    graph = batch(missing=False)
    for weight in ignored:  # which we honour, so the comparison is without them
        setattr(graph, weight, torch.ones_like(graph.weight))
    if name == "universal":  # forces of every regime: below 100, 200, 300 eV/Å, and above
        sizes = 20.0 + 80.0 * (torch.arange(graph.n_atoms, dtype=torch.float64) % 5)
        weights = graph.forces_weight[graph.graph_of_atom]
        graph.forces = torch.nn.functional.normalize(graph.forces) * (sizes / weights)[:, None]
    prediction = prediction_for(graph)
    for tensor in (prediction.energy, prediction.forces):
        tensor.requires_grad_()
    reference, predicted = dictionaries(graph, prediction)
    kind_of_ours = name if name in ("huber", "universal", "l1l2") else "weighted"
    settings = LossSettings(**{"loss": kind_of_ours, **arguments, **more})
    with default_dtype(torch.float64):
        expected = getattr(losses, kind)(**arguments)(ref=reference, pred=predicted)
    ours = loss_sums(prediction, graph, settings).loss(settings)
    assert float(ours) == pytest.approx(float(expected), rel=1e-12)
    inputs = (
        [prediction.forces] if name == "forces_only" else [prediction.energy, prediction.forces]
    )
    gradients = [torch.autograd.grad(loss, inputs) for loss in (ours, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["dipole", "energy_forces_dipole"])
def test_training_on_dipoles_is_refused(name):
    with pytest.raises(InputError, match="no model here predicts dipoles"):
        LossSettings(loss=name)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """mace-torch makes its constants in the default type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("kind", ["weighted", "huber", "universal", "l1l2"])
@pytest.mark.parametrize("label", ["energy", "forces", "stress"])
def test_no_loss_trains_a_missing_label(kind, label):
    graph = batch(missing=False)
    has = torch.tensor([True, False, True, False])
    setattr(graph, f"has_{label}", has)
    prediction = prediction_for(graph)
    value = getattr(prediction, label)
    value.requires_grad_()
    stress = 0.0 if kind == "l1l2" else 1.0
    settings = LossSettings(loss=kind, stress_weight=stress)
    loss = loss_sums(prediction, graph, settings).loss(settings)
    (gradient,) = torch.autograd.grad(loss, value)
    present = has[graph.graph_of_atom] if label == "forces" else has
    assert (gradient[~present] == 0).all()
    if stress or label != "stress":
        assert (gradient[present] != 0).any()
    half = has.nonzero().flatten()  # the same as if the others were not there, for this term
    assert (
        float(label_counts(graph, kind)[("energy", "forces", "stress").index(label)])
        == {
            "energy": len(half),
            "forces": sum(SIZES[i] for i in half) * (1 if kind == "l1l2" else 3),
            "stress": 9 * len(half),
        }[label]
    )


@pytest.mark.parametrize("kind", ["weighted", "huber", "universal", "l1l2"])
def test_every_loss_honours_the_weights_of_structures(kind):
    """A structure with weight 2 counts as two of weight 1 in every numerator."""
    graph, settings = batch(missing=False), LossSettings(loss=kind)
    prediction = prediction_for(graph)
    ones = torch.ones(len(SIZES), dtype=torch.float64)
    alone = [
        loss_sums(prediction, graph, settings, structure_weight=torch.eye(len(SIZES))[g].double())
        for g in range(len(SIZES))
    ]
    doubled = ones.clone()
    doubled[2] = 2.0
    total = loss_sums(prediction, graph, settings, structure_weight=doubled).numerators
    expected = sum(part.numerators for part in alone) + alone[2].numerators
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=0.0)
    assert (alone[2].numerators[:2] > 0).all()


@pytest.mark.parametrize("kind", ["weighted", "huber", "universal", "l1l2"])
def test_errors_of_zero_have_finite_gradients(kind):
    graph, settings = batch(missing=False), LossSettings(loss=kind)
    prediction = replace(prediction_for(graph), forces=graph.forces.clone().requires_grad_())
    loss = loss_sums(prediction, graph, settings).loss(settings)
    (gradient,) = torch.autograd.grad(loss, prediction.forces)
    assert torch.isfinite(gradient).all()


class _Dict(dict):
    """A batch as mace-torch has it: items that are attributes too."""

    __getattr__ = dict.__getitem__

    @property
    def num_graphs(self) -> int:
        return len(SIZES)
