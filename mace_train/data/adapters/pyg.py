"""Shards as a data set of PyTorch Geometric: one ``Data`` per structure, with stored edges.

``edge_index`` is [2, n_edges], sender first; ``shifts`` count lattice vectors, so that vectors are
``pos[edge_index[1]] - pos[edge_index[0]] + shifts @ cell``. Works with PyG's ``DataLoader``.
"""

from typing import Any

import torch
from torch.utils.data import Dataset

from mace_train.data.shards.shard_set import ShardSet
from mace_train.errors import InputError


class PyGDataset(Dataset[Any]):
    """Item i is structure i of ``shards`` as ``torch_geometric.data.Data``."""

    def __init__(self, shards: ShardSet, *, dtype: torch.dtype = torch.float32) -> None:
        """Take ``shards``; InputError if PyTorch Geometric is not installed."""
        try:
            from torch_geometric.data import Data
        except ImportError:
            raise InputError(
                "PyTorch Geometric is not installed; pip install torch-geometric"
            ) from None
        self.shards, self.dtype, self._data = shards, dtype, Data

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, index: int) -> Any:
        """``Data`` with geometry, edges, labels and the masks of labels."""
        sample = self.shards.sample(index)
        structure, edges, dtype = sample.structure, sample.edges, self.dtype
        n_atoms = structure.n_atoms
        zero = torch.zeros
        return self._data(
            z=torch.from_numpy(structure.numbers),
            pos=torch.from_numpy(structure.positions).to(dtype),
            edge_index=torch.stack(
                [torch.from_numpy(edges.senders), torch.from_numpy(edges.receivers)]
            ),
            shifts=torch.from_numpy(edges.shifts).to(dtype),
            cell=torch.from_numpy(structure.cell).to(dtype)[None],
            energy=torch.tensor([structure.energy or 0.0], dtype=torch.float64),
            forces=(
                zero(n_atoms, 3, dtype=dtype)
                if structure.forces is None
                else torch.from_numpy(structure.forces).to(dtype)
            ),
            stress=(
                zero(1, 3, 3, dtype=dtype)
                if structure.stress is None
                else torch.from_numpy(structure.stress).to(dtype)[None]
            ),
            has_energy=torch.tensor([structure.energy is not None]),
            has_forces=torch.tensor([structure.forces is not None]),
            has_stress=torch.tensor([structure.stress is not None]),
            num_nodes=n_atoms,
            **{
                name: torch.tensor([value], dtype=dtype)
                for name, value in structure.inputs.graph.items()
            },
            **{
                name: torch.from_numpy(values).to(dtype)
                for name, values in structure.inputs.atom.items()
            },
        )
