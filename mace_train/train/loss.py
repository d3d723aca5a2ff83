"""The training loss: errors of energy, forces, stress and virials, normalised over all ranks.

With S the structures of one step over all ranks, n_g their atoms, w the weights of structures and
labels, and e the error of one component, every loss is

    L = w_E / N_E  sum_g w_g wE_g f(e_E,g)  +  w_F / N_F  sum_i w_g wF_g f_F(e_F,i)
      + w_S / N_S  sum_g w_g wS_g f(e_S,g)  +  w_V / N_S  sum_g w_g wS_g f(e_V,g)

with e_E = (E - E') / n_g, e_V = (W - W') / n_g and, as in mace-torch 0.3,

    weighted   f(e) = e^2; N_F counts force components           (forces only: w_E = 0)
    huber      f(e) = huber(e, delta)
    universal  huber(w e, delta) with the label's weight w inside, and for forces delta times 1,
               0.7, 0.4, 0.1 where w |F'| is below 100, 200, 300 eV/Å or above
    l1l2       f_E(e) = |e|, f_F(e) = |e| of the vector; N_F counts atoms

N_E counts the structures of the step that carry the label, N_F components or atoms with forces, N_S
components of stress: 9 of a structure, 4 of a slab and 1 of a wire, whose other components are not
in the loss. The counts are sums over all ranks, so a gradient does not depend on how structures
fall into bins; a missing label is masked and never trained towards zero. Weights of structures
count in every loss (mace-torch's huber ignores all weights, its universal and l1l2 those of
structures).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mace_train.data.graph import Graph
from mace_train.model.derivatives import Prediction
from mace_train.settings import LossSettings

TERMS = ("energy", "forces", "stress", "virials")
UNIVERSAL_LIMITS = (100.0, 200.0, 300.0)  # eV/Å
UNIVERSAL_FACTORS = (1.0, 0.7, 0.4, 0.1)


@dataclass
class LossSums:
    """Numerators and denominators of the four terms; they add over batches and over ranks."""

    numerators: Tensor  # [4] sums of weighted errors
    counts: Tensor  # [4] number of terms in each sum

    def __add__(self, other: "LossSums") -> "LossSums":
        """The sums over both."""
        return LossSums(self.numerators + other.numerators, self.counts + other.counts)

    @staticmethod
    def zero(device: torch.device) -> "LossSums":
        """Sums over nothing, in float64."""
        return LossSums(*torch.zeros(2, len(TERMS), dtype=torch.float64, device=device))

    def detached(self) -> "LossSums":
        """The same numbers in float64, without their gradients."""
        return LossSums(self.numerators.detach().double(), self.counts.detach().double())

    def loss(self, settings: LossSettings, counts: Tensor | None = None) -> Tensor:
        """The scalar loss; ``counts`` [4] over all ranks replaces this rank's own."""
        divisors = (self.counts if counts is None else counts).clamp(min=1)
        weights = (getattr(settings, f"{name}_weight") for name in TERMS)
        terms = zip(weights, self.numerators.unbind(), strict=True)
        return (torch.stack([weight * term for weight, term in terms]) / divisors).sum()


def needs_stress(settings: LossSettings) -> bool:
    """True if the loss has a term in stress or virials."""
    return settings.stress_weight > 0 or settings.virials_weight > 0


def label_counts(graph: Graph, loss_name: str = "weighted") -> Tensor:
    """[4] float64 denominators of the graphs of a batch, known before the model runs."""
    n_stress = (graph.pbc.sum(1) ** 2 * graph.has_stress).sum()  # components, see stress_mask
    n_forces = (graph.n_atoms_of_graph * graph.has_forces).sum()
    if loss_name != "l1l2":
        n_forces = 3 * n_forces
    return torch.stack((graph.has_energy.sum(), n_forces, n_stress, n_stress)).to(torch.float64)


@dataclass
class _Labelled:
    """Prediction, label and weights of one term, component by component."""

    predicted: Tensor  # [n, k]
    label: Tensor  # [n, k]
    weight: Tensor  # [n, 1] of the structure, 0 where the label is missing
    label_weight: Tensor  # [n, 1]

    @property
    def error(self) -> Tensor:
        return self.predicted - self.label


def loss_sums(
    prediction: Prediction,
    graph: Graph,
    settings: LossSettings | None = None,
    *,
    structure_weight: Tensor | None = None,
) -> LossSums:
    """Sums of weighted errors of one batch, differentiable; ``settings`` name the loss.

    ``structure_weight`` [n_graphs] multiplies the weights in the graph (by config_type).
    """
    settings = settings or LossSettings()
    terms = _terms(prediction, graph, structure_weight)
    of_energy, of_forces, of_stress = _FUNCTIONS[settings.loss]
    functions = dict(zip(TERMS, (of_energy, of_forces, of_stress, of_stress), strict=True))
    zero = terms["energy"].error.sum() * 0.0
    numerators = [
        functions[name](terms[name], settings) if name in terms else zero for name in TERMS
    ]
    counts = label_counts(graph, settings.loss).to(zero.dtype)
    return LossSums(torch.stack(numerators), counts)


def _terms(
    prediction: Prediction, graph: Graph, structure_weight: Tensor | None
) -> dict[str, _Labelled]:
    assert prediction.forces is not None
    dtype = prediction.forces.dtype
    weight = graph.weight if structure_weight is None else graph.weight * structure_weight
    n_atoms = graph.n_atoms_of_graph.to(dtype)
    # the difference first: total energies are large, their float32 rounding is not small
    energy_error = (prediction.energy - graph.energy).to(dtype) / n_atoms
    of_atom = graph.graph_of_atom
    terms = {
        "energy": _Labelled(
            energy_error[:, None],
            torch.zeros_like(energy_error)[:, None],
            (weight * graph.has_energy)[:, None],
            graph.energy_weight[:, None],
        ),
        "forces": _Labelled(
            prediction.forces,
            graph.forces,
            (weight * graph.has_forces)[of_atom, None],
            graph.forces_weight[of_atom, None],
        ),
    }
    if prediction.stress is not None:
        per_atom = -(graph.volume / n_atoms)[:, None]  # virials = -volume * stress
        of_stress = (weight * graph.has_stress)[:, None], graph.stress_weight[:, None]
        predicted, label = prediction.stress.flatten(1), graph.stress.flatten(1)
        terms["stress"] = _Labelled(predicted, label, *of_stress)
        terms["virials"] = _Labelled(per_atom * predicted, per_atom * label, *of_stress)
    return terms


def _square(term: _Labelled, settings: LossSettings) -> Tensor:
    return (term.weight * term.label_weight * term.error**2).sum()


def _absolute(term: _Labelled, settings: LossSettings) -> Tensor:
    return (term.weight * term.label_weight * term.error.abs()).sum()


def _length(term: _Labelled, settings: LossSettings) -> Tensor:
    length = torch.linalg.vector_norm(term.error, dim=1, keepdim=True)
    return (term.weight * term.label_weight * length).sum()


def _huber(term: _Labelled, settings: LossSettings) -> Tensor:
    delta = torch.full_like(term.weight, settings.huber_delta)
    return (term.weight * term.label_weight * huber(term.error, delta)).sum()


def _huber_of_weighted(term: _Labelled, settings: LossSettings) -> Tensor:
    delta = torch.full_like(term.weight, settings.huber_delta)
    return (term.weight * huber(term.label_weight * term.error, delta)).sum()


def _universal_forces(term: _Labelled, settings: LossSettings) -> Tensor:
    size = torch.linalg.vector_norm(term.label_weight * term.label, dim=1, keepdim=True)
    factors = torch.full_like(size, UNIVERSAL_FACTORS[-1])
    for limit, factor in reversed(list(zip(UNIVERSAL_LIMITS, UNIVERSAL_FACTORS, strict=False))):
        factors = torch.where(size < limit, factor, factors)
    delta = settings.huber_delta * factors
    return (term.weight * huber(term.label_weight * term.error, delta)).sum()


def huber(error: Tensor, delta: Tensor) -> Tensor:
    """error^2 / 2 below ``delta``, delta (|error| - delta / 2) above."""
    size = error.abs()
    return torch.where(size < delta, 0.5 * error**2, delta * (size - 0.5 * delta))


_Function = Callable[[_Labelled, LossSettings], Tensor]
_FUNCTIONS: dict[str, tuple[_Function, _Function, _Function]] = {  # of energy, forces, the rest
    "weighted": (_square, _square, _square),
    "huber": (_huber, _huber, _huber),
    "universal": (_huber_of_weighted, _universal_forces, _huber_of_weighted),
    "l1l2": (_absolute, _length, _square),
}
