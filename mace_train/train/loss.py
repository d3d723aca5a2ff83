"""The training loss: weighted squared errors, normalised by counts over all ranks.

With S the structures of one step over all ranks and w the weights of structures and labels,

    L = w_E / N_E   sum_g  w_g wE_g ((E_g - E'_g) / n_g)^2
      + w_F / 3N_F  sum_g  w_g wF_g sum_{i in g} |F_i - F'_i|^2
      + w_S / 9N_S  sum_g  w_g wS_g |sigma_g - sigma'_g|^2
      + w_V / 9N_S  sum_g  w_g wS_g |(W_g - W'_g) / n_g|^2

N_E, N_S count the structures of the step that carry the label, N_F the atoms with forces. The
counts are sums over all ranks, so a gradient does not depend on how structures fall into bins; a
missing label is masked and never trained towards zero. Definitions as in mace-torch 0.3
(``weighted``, ``stress``, ``virials``), which are equal where every structure has every label.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mace_train.data.graph import Graph
from mace_train.model.derivatives import Prediction
from mace_train.settings import LossSettings

TERMS = ("energy", "forces", "stress", "virials")


@dataclass
class LossSums:
    """Numerators and denominators of the four terms; they add over batches and over ranks."""

    numerators: Tensor  # [4] sums of weighted squared errors
    counts: Tensor  # [4] number of terms in each sum

    def __add__(self, other: "LossSums") -> "LossSums":
        """The sums of both parts."""
        return LossSums(self.numerators + other.numerators, self.counts + other.counts)

    def loss(self, settings: LossSettings, counts: Tensor | None = None) -> Tensor:
        """The scalar loss; ``counts`` [4] over all ranks replaces this rank's own."""
        divisors = (self.counts if counts is None else counts).clamp(min=1)
        return (term_weights(settings, self.numerators) * self.numerators / divisors).sum()


def term_weights(settings: LossSettings, like: Tensor) -> Tensor:
    """[4] weights of energy, forces, stress and virials."""
    weights = [getattr(settings, f"{name}_weight") for name in TERMS]
    return torch.tensor(weights, dtype=like.dtype, device=like.device)


def needs_stress(settings: LossSettings) -> bool:
    """True if the loss has a term in stress or virials."""
    return settings.stress_weight > 0 or settings.virials_weight > 0


def label_counts(graph: Graph) -> Tensor:
    """[4] float64 denominators of this rank's part of a step, known before the model runs."""
    n_stress = 9 * graph.has_stress.sum()
    n_forces = 3 * (graph.n_atoms_of_graph * graph.has_forces).sum()
    return torch.stack((graph.has_energy.sum(), n_forces, n_stress, n_stress)).to(torch.float64)


def loss_sums(
    prediction: Prediction,
    graph: Graph,
    *,
    structure_weight: Tensor | None = None,
) -> LossSums:
    """Sums of weighted squared errors of one batch, differentiable.

    ``structure_weight`` [n_graphs] multiplies the weights in the graph (by config_type).
    """
    assert prediction.forces is not None
    dtype = prediction.forces.dtype
    weight = graph.weight if structure_weight is None else graph.weight * structure_weight
    n_atoms = graph.n_atoms_of_graph.to(dtype)

    energy_error = (prediction.energy - graph.energy).to(dtype) / n_atoms
    energy = weight * graph.energy_weight * graph.has_energy * energy_error**2

    weight_of_atom = (weight * graph.forces_weight * graph.has_forces)[graph.graph_of_atom]
    forces = weight_of_atom[:, None] * (prediction.forces - graph.forces) ** 2

    numerators = [energy.sum(), forces.sum()]
    if prediction.stress is None:
        zero = numerators[0].new_zeros(())
        numerators += [zero, zero]
    else:
        error = prediction.stress - graph.stress
        volume = torch.linalg.det(graph.cell).abs()
        per_atom = error * (volume / n_atoms)[:, None, None]  # virials = -volume * stress
        weights = (weight * graph.stress_weight * graph.has_stress)[:, None, None]
        numerators += [(weights * error**2).sum(), (weights * per_atom**2).sum()]
    return LossSums(torch.stack(numerators), label_counts(graph).to(dtype))
