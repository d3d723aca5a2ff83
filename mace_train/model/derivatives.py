"""Energies, forces, stress and virials of a graph.

Positions and cells enter the energy through edge vectors v_e alone, so one gradient g_e = dE/dv_e
gives everything, exactly and for the price of the forces:

    F_n    = sum_{e: sender n} g_e - sum_{e: receiver n} g_e
    dE/deps = sum_e sym(v_e (x) g_e)        for a strain eps:  v -> v (1 + eps)
    virials = -dE/deps,   stress = dE/deps / volume

Energies are summed in float64 and include those of isolated atoms.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mace_train.data.graph import Graph
from mace_train.model.mace import MACE
from mace_train.ops.row_sums import Sums, add_rows


@dataclass(frozen=True)
class Prediction:
    """Predictions for a batch; all of them differentiable in the weights."""

    energy: Tensor  # [n_graphs] float64, total, eV
    interaction_energy: Tensor  # [n_graphs] eV, without isolated atoms
    node_energy: Tensor  # [n_atoms] float64, eV, with the isolated atom's
    forces: Tensor | None  # [n_atoms, 3] eV/Å
    stress: Tensor | None  # [n_graphs, 3, 3] eV/Å^3; zero where graph.stress_mask is not
    virials: Tensor | None  # [n_graphs, 3, 3] eV


# DDP with a static graph must find the tensors in what it returns
torch.export.register_dataclass(Prediction)


def predict(
    model: MACE, graph: Graph, *, stress: bool, create_graph: bool, forces: bool = True
) -> Prediction:
    """Energies and, as asked, forces, stress and virials.

    With ``create_graph`` forces and stress can be differentiated again (training on them).
    Without it the result is detached, unless energies alone are asked for.
    """
    need_gradient = forces or stress
    with torch.set_grad_enabled(need_gradient or torch.is_grad_enabled()):
        vectors = graph.vectors()
        if need_gradient and not vectors.requires_grad:
            vectors.requires_grad_()
        index = model.batch_index(
            graph.elements,
            graph.senders,
            graph.receivers,
            graph.pairs,
            graph.first_of_pair,
            graph.heads_of_atoms() if len(model.data.heads) > 1 else None,
        )
        # a call of the module, so that its hooks run
        interaction: Tensor = model(vectors, graph.elements, index=index, inputs=graph.inputs)
        gradient = None
        if need_gradient:
            (gradient,) = torch.autograd.grad(interaction.sum(), vectors, create_graph=create_graph)
            if not create_graph:
                vectors, interaction = vectors.detach(), interaction.detach()
    return prediction_from(
        model.E0s,
        graph,
        vectors,
        interaction,
        gradient,
        stress=stress,
        forces=forces,
        sums=index.backend.sum_rows,
    )


def prediction_from(
    E0s: Tensor,
    graph: Graph,
    vectors: Tensor,
    interaction: Tensor,
    gradient: Tensor | None,
    *,
    stress: bool,
    forces: bool = True,
    sums: Sums = add_rows,
) -> Prediction:
    """The prediction from interaction energies [n_atoms] and their gradient [n_edges, 3].

    ``E0s`` are [n_heads, n_elements]; ``sums`` add over edges and atoms.
    """
    of_atom, n_graphs = graph.graph_of_atom, graph.n_graphs
    in_float64 = interaction.double()
    interaction_energy = sums(in_float64, of_atom, n_graphs, ascending=True)
    row = graph.elements
    if len(E0s) > 1:
        row = row + E0s.shape[1] * graph.heads_of_atoms()
    node_energy = in_float64 + E0s.flatten().index_select(0, row)
    strain_gradient = _strain_gradient(vectors, gradient, graph, sums) if stress else None
    return Prediction(
        energy=sums(node_energy, of_atom, n_graphs, ascending=True),
        interaction_energy=interaction_energy.to(vectors.dtype),
        node_energy=node_energy,
        forces=_forces(gradient, graph, sums) if forces else None,
        stress=None if strain_gradient is None else _stress(strain_gradient, graph),
        virials=None if strain_gradient is None else -strain_gradient,
    )


def _forces(gradient: Tensor | None, graph: Graph, sums: Sums) -> Tensor:
    assert gradient is not None
    of_senders = sums(gradient, graph.senders, graph.n_atoms)
    return of_senders - sums(gradient, graph.receivers, graph.n_atoms, ascending=True)


def _strain_gradient(vectors: Tensor, gradient: Tensor | None, graph: Graph, sums: Sums) -> Tensor:
    """Derivative [n_graphs, 3, 3] of the energies with respect to symmetric strain."""
    assert gradient is not None
    products = vectors.unsqueeze(2) * gradient.unsqueeze(1)
    symmetric = 0.5 * (products + products.transpose(1, 2))
    return sums(symmetric, graph.graph_of_edge, graph.n_graphs, ascending=True)


def _stress(strain_gradient: Tensor, graph: Graph) -> Tensor:
    volume = graph.volume[:, None, None]
    has_volume = volume > 0
    inverse = 1.0 / torch.where(has_volume, volume, 1.0)
    return strain_gradient * torch.where(graph.stress_mask & has_volume, inverse, 0.0)
