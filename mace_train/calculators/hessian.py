"""Hessians: second derivatives of the energy with respect to positions.

    H[3 i + a, 3 j + b] = d^2 E / dr_ia dr_jb = -dF_ia / dr_jb,    eV/Å^2

Row by row: the derivative of one force component is one backward pass. A batch holds the structure
several times and every copy gives one row, so a pass over many small structures replaces many
passes over one. Compiled kernels have the second derivatives that this needs.
"""

import torch
from torch import Tensor

from mace_train.calculators.models import graph_from
from mace_train.data.shards.arrays import Sample
from mace_train.model.derivatives import predict
from mace_train.model.mace import MACE

EDGES_AT_A_TIME = 20_000


def hessian(model: MACE, sample: Sample) -> Tensor:
    """The Hessian [3 n_atoms, 3 n_atoms], float64, eV/Å^2; in periodic cells of wave vector 0."""
    n_rows = 3 * sample.structure.n_atoms
    at_a_time = max(1, min(n_rows, EDGES_AT_A_TIME // max(1, sample.edges.n_edges)))
    rows = [
        _rows(model, sample, range(first, min(first + at_a_time, n_rows)))
        for first in range(0, n_rows, at_a_time)
    ]
    found = torch.cat(rows)
    return 0.5 * (found + found.T)  # it is symmetric but for rounding


def _rows(model: MACE, sample: Sample, rows: range) -> Tensor:
    """The rows [n, 3 n_atoms] with these numbers, each from a copy of the structure."""
    graph = graph_from([sample] * len(rows), model)
    graph.positions.requires_grad_()
    prediction = predict(model, graph, stress=False, create_graph=True)
    assert prediction.forces is not None
    components = prediction.forces.view(len(rows), -1)
    number = torch.tensor(list(rows), device=components.device).unsqueeze(1)
    if not components.requires_grad:  # no edges, so no forces
        return torch.zeros(components.shape, dtype=torch.float64, device=components.device)
    chosen = components.gather(1, number).sum()
    (gradient,) = torch.autograd.grad(chosen, graph.positions)
    return -gradient.view(len(rows), -1).double()
