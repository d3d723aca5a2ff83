"""Graph: one batch of structures as tensors, concatenated without padding.

Structure g of a batch owns the atoms with ``graph_of_atom == g``, and every edge lies inside one
structure. Edges point from sender to receiver, are sorted by receiver, and

    vectors = positions[receivers] - positions[senders] + shifts @ cell        (Å)

A pair is an edge and its reverse, which has the opposite vector: every edge has one. What depends
on the distance alone is computed once for a pair.
Missing labels are zero and masked by ``has_energy``, ``has_forces`` and ``has_stress``. A batch of
no structures is legal: a rank whose bin is empty in the last step of an epoch needs one.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass
class Graph:
    """A batch of n_graphs structures with n_atoms atoms and n_edges directed edges."""

    positions: Tensor  # [n_atoms, 3] Å
    elements: Tensor  # [n_atoms] int64, index into the model's atomic_numbers
    senders: Tensor  # [n_edges] int64
    receivers: Tensor  # [n_edges] int64, ascending
    pairs: Tensor  # [n_edges] int64, the pair that an edge forms with its reverse
    first_of_pair: Tensor  # [n_pairs] int64, the first edge of every pair, ascending
    shifts: Tensor  # [n_edges, 3] multiples of the lattice vectors
    cell: Tensor  # [n_graphs, 3, 3] rows are lattice vectors, Å
    pbc: Tensor  # [n_graphs, 3] bool
    graph_of_atom: Tensor  # [n_atoms] int64
    graph_of_edge: Tensor  # [n_edges] int64
    n_atoms_of_graph: Tensor  # [n_graphs] int64
    energy: Tensor  # [n_graphs] float64, total, eV
    forces: Tensor  # [n_atoms, 3] eV/Å
    stress: Tensor  # [n_graphs, 3, 3] eV/Å^3
    has_energy: Tensor  # [n_graphs] bool
    has_forces: Tensor  # [n_graphs] bool
    has_stress: Tensor  # [n_graphs] bool
    heads: Tensor  # [n_graphs] int64, index into the model's heads
    weight: Tensor  # [n_graphs]
    energy_weight: Tensor  # [n_graphs]
    forces_weight: Tensor  # [n_graphs]
    stress_weight: Tensor  # [n_graphs]
    ids: Tensor  # [n_graphs] int64, index of the structure in its split
    inputs: Tensor  # [n_atoms, n_inputs] of the model beside the geometry, see input_values.py

    @property
    def n_graphs(self) -> int:
        """Number of structures."""
        return self.cell.shape[0]

    @property
    def n_atoms(self) -> int:
        """Number of atoms."""
        return self.positions.shape[0]

    @property
    def n_edges(self) -> int:
        """Number of directed edges."""
        return self.senders.shape[0]

    @property
    def volume(self) -> Tensor:
        """Volumes [n_graphs] of the cells, Å^3."""
        a, b, c = self.cell.unbind(1)
        return (a * torch.linalg.cross(b, c)).sum(1).abs()

    @property
    def stress_mask(self) -> Tensor:
        """Components [n_graphs, 3, 3] of a stress along periodic axes; see stress_components.py."""
        return self.pbc.unsqueeze(2) & self.pbc.unsqueeze(1)

    def heads_of_atoms(self) -> Tensor:
        """Heads [n_atoms] int64."""
        return self.heads.index_select(0, self.graph_of_atom)

    def vectors(self) -> Tensor:
        """Edge vectors [n_edges, 3] in Å, differentiable in positions and cell."""
        shifts = torch.einsum("es,esc->ec", self.shifts, self.cell[self.graph_of_edge])
        return self.positions[self.receivers] - self.positions[self.senders] + shifts

    def to(self, device: torch.device) -> "Graph":
        """The same batch on another device; copies overlap with computation where possible."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Graph":
        """The same batch in page-locked memory (called by torch's DataLoader)."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Graph":
        return Graph(**{item.name: function(getattr(self, item.name)) for item in fields(self)})
