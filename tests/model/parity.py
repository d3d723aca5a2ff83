"""How far predictions of one of our models are from those of mace-torch's."""

import torch
from torch import nn

from mace_train.data.graph import Graph
from mace_train.interop.mace_torch import double_precision
from mace_train.model.derivatives import predict
from mace_train.model.mace import MACE
from tests.model.mace_torch import mace_torch_batch

LARGEST_DIFFERENCE = 1e-10
"""That is allowed in float64, relative to the largest value."""
SMALLEST_SCALE = 1e-3  # below, differences are divided by this


def differences(ours: MACE, theirs: nn.Module, graph: Graph) -> dict[str, float]:
    """The largest of energy, node_energy (eV), forces (eV/Å) and stress (eV/Å^3, of crystals).

    In float64, relative to the largest value that mace-torch has.
    """
    batch = mace_torch_batch(graph, len(theirs.get_buffer("atomic_numbers")), ours.inputs)
    with double_precision():  # the repulsion is computed in torch's default dtype
        expected = theirs(batch, compute_stress=True)
    found = predict(ours, graph, stress=True, create_graph=False)
    assert found.forces is not None
    assert found.stress is not None
    periodic = graph.pbc.all(1)
    pairs = {
        "energy": (found.energy, expected["energy"]),
        "node_energy": (found.node_energy, expected["node_energy"]),
        "forces": (found.forces, expected["forces"]),
        "stress": (found.stress[periodic], expected["stress"][periodic]),
    }
    return {name: _largest(*pair) for name, pair in pairs.items()}


def _largest(found: torch.Tensor, expected: torch.Tensor) -> float:
    scale = max(SMALLEST_SCALE, float(expected.detach().abs().max()))
    return float((found.detach() - expected.detach()).abs().max()) / scale
