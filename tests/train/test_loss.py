"""The loss against a loop over structures, and against mace-torch where every label is there."""

import pytest
import torch

from mace_train.data.graph import Graph
from mace_train.model.derivatives import Prediction
from mace_train.settings import LossSettings
from mace_train.train.loss import label_counts, loss_sums

SIZES = (3, 1, 5, 2)


def batch(missing: bool) -> Graph:
    """Random labels for four structures; ``missing`` takes some away and leaves junk behind."""
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    n, n_atoms = len(SIZES), sum(SIZES)
    graph_of_atom = torch.repeat_interleave(torch.arange(n), torch.tensor(SIZES))
    has = torch.tensor([True, not missing, True, not missing])
    other = torch.tensor([not missing, True, True, True])
    none = torch.zeros(0, dtype=torch.int64)
    return Graph(
        positions=random(n_atoms, 3),
        elements=torch.zeros(n_atoms, dtype=torch.int64),
        senders=none,
        receivers=none,
        pairs=none,
        first_of_pair=none,
        shifts=torch.zeros(0, 3, dtype=torch.float64),
        cell=torch.eye(3, dtype=torch.float64) * 4 + 0.1 * random(n, 3, 3),
        pbc=torch.ones(n, 3, dtype=torch.bool),
        graph_of_atom=graph_of_atom,
        graph_of_edge=none,
        n_atoms_of_graph=torch.tensor(SIZES),
        energy=random(n),
        forces=random(n_atoms, 3),
        stress=random(n, 3, 3),
        has_energy=has,
        has_forces=other,
        has_stress=has,
        weight=random(n).abs(),
        energy_weight=random(n).abs(),
        forces_weight=random(n).abs(),
        stress_weight=random(n).abs(),
        ids=torch.arange(n),
    )


def prediction_for(graph: Graph) -> Prediction:
    """Random predictions for a batch."""
    generator = torch.Generator().manual_seed(2)
    like = {"generator": generator, "dtype": torch.float64}
    stress = torch.randn(graph.n_graphs, 3, 3, **like)
    volume = torch.linalg.det(graph.cell).abs()[:, None, None]
    return Prediction(
        energy=torch.randn(graph.n_graphs, **like),
        interaction_energy=torch.zeros(graph.n_graphs, dtype=torch.float64),
        forces=torch.randn(graph.n_atoms, 3, **like),
        stress=stress,
        virials=-volume * stress,
        node_energy=torch.zeros(graph.n_atoms, dtype=torch.float64),
    )


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


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["weighted", "stress", "virials"])
def test_loss_equals_mace_torch(kind):
    losses = pytest.importorskip("mace.modules.loss", reason="needs the extra interop")
    graph = batch(missing=False)
    prediction = prediction_for(graph)
    weights = {"energy_weight": 2.0, "forces_weight": 3.0}
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
    predicted = {
        "energy": prediction.energy,
        "forces": prediction.forces,
        "stress": prediction.stress,
        "virials": prediction.virials,
    }
    if kind == "weighted":
        theirs = losses.WeightedEnergyForcesLoss(**weights)
    elif kind == "stress":
        theirs = losses.WeightedEnergyForcesStressLoss(**weights, stress_weight=5.0)
        weights["stress_weight"] = 5.0
    else:
        theirs = losses.WeightedEnergyForcesVirialsLoss(**weights, virials_weight=5.0)
        weights["virials_weight"] = 5.0
    expected = float(theirs(ref=_Dict(reference), pred=predicted))
    ours = float(loss_sums(prediction, graph).loss(LossSettings(**weights)))
    assert ours == pytest.approx(expected, rel=1e-12)


class _Dict(dict):
    """A batch as mace-torch has it: items that are attributes too."""

    __getattr__ = dict.__getitem__

    @property
    def num_graphs(self) -> int:
        return len(SIZES)
