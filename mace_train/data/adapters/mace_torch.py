"""Shards as a data set of mace-torch: its ``AtomicData``, with the edges that are stored.

Replaces ``mace.data.HDF5Dataset`` in its trainer and loaders, without the neighbour
search at every access. Edges have mace-torch's conventions (``edge_index`` sender first, ``shifts``
in Å, ``unit_shifts`` in lattice vectors) and another order: sorted by receiver.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from mace_train.data.shards.arrays import Sample
from mace_train.data.shards.shard_set import ShardSet
from mace_train.errors import InputError


class MaceDataset(Dataset[Any]):
    """Item i is structure i of ``shards`` as ``mace.data.AtomicData``, in torch's default dtype.

    Missing labels are zero with weight 0, as in mace-torch.
    """

    def __init__(self, shards: ShardSet, z_table: Any, heads: list[str] | None = None) -> None:
        """Take ``shards``, the elements of the model and its heads.

        Args:
            shards: Preprocessed with the r_max of the model.
            z_table: ``mace.tools.AtomicNumberTable``.
            heads: Names of the heads of the model; ``["Default"]`` if None.

        Raises:
            InputError: mace-torch is not installed, or the model lacks an element or head.
        """
        try:
            from mace.data import AtomicData, Configuration
        except ImportError:
            raise InputError(
                "mace-torch is not installed; pip install 'mace-train[interop]'"
            ) from None
        self.shards, self.heads = shards, ["Default"] if heads is None else heads
        self._make, self._configuration, self._z_table = AtomicData, Configuration, z_table
        missing = sorted(set(shards.elements) - set(map(int, z_table.zs)))
        if missing:
            raise InputError(f"{shards.folder}: the model lacks the elements {missing}")
        unknown = sorted(set(shards.heads) - set(self.heads))
        if unknown:
            raise InputError(
                f"{shards.folder}: heads {unknown} are not among the model's {self.heads}"
            )
        self._index_of = np.full(256, -1)
        self._index_of[list(map(int, z_table.zs))] = np.arange(len(z_table))

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, index: int) -> Any:
        """``AtomicData`` of one structure."""
        sample = self.shards.sample(index)
        data = self._data_per_structure(sample)
        structure, edges = sample.structure, sample.edges
        dtype, n_atoms = torch.get_default_dtype(), structure.n_atoms
        one_hot = np.zeros((n_atoms, len(self._z_table)))
        one_hot[np.arange(n_atoms), self._index_of[structure.numbers]] = 1
        forces = np.zeros((n_atoms, 3)) if structure.forces is None else structure.forces
        data.edge_index = torch.from_numpy(np.stack([edges.senders, edges.receivers]))
        data.unit_shifts = torch.from_numpy(edges.shifts).to(dtype)
        data.shifts = torch.from_numpy(edges.shifts @ structure.cell).to(dtype)
        data.positions = torch.from_numpy(structure.positions).to(dtype)
        data.node_attrs = torch.from_numpy(one_hot).to(dtype)
        data.forces = torch.from_numpy(forces).to(dtype)
        for name, value in structure.inputs.graph.items():
            data[name] = torch.tensor(value, dtype=dtype)
        for name, values in structure.inputs.atom.items():
            data[name] = torch.from_numpy(values).to(dtype)
        data.num_nodes = n_atoms
        data.charges = torch.zeros(n_atoms, dtype=dtype)
        data.density_coefficients = torch.zeros(n_atoms, 1, dtype=dtype)
        return data

    def _data_per_structure(self, sample: Sample) -> Any:
        """``AtomicData`` of the first atom only, for everything that is not per atom or edge."""
        structure = sample.structure
        if not structure.pbc.all():  # mace-torch would train the components that are not defined
            structure = replace(structure, stress=None)
        labels = {"energy": structure.energy, "stress": structure.stress}
        weights = {
            name: float(getattr(structure, f"{name}_weight"))
            * (getattr(structure, name) is not None)
            for name in ("energy", "forces", "stress")
        }
        configuration = self._configuration(
            atomic_numbers=structure.numbers[:1],
            # mace-torch gives molecules a box by their largest coordinate
            positions=np.full((1, 3), np.abs(structure.positions).max()),
            properties={name: label for name, label in labels.items() if label is not None},
            property_weights=weights | {"virials": 0.0},
            cell=structure.cell,
            pbc=tuple(structure.pbc.tolist()),
            weight=structure.weight,
            config_type=structure.config_type,
            head=structure.head,
        )
        return self._make.from_config(
            configuration, z_table=self._z_table, cutoff=self.shards.r_max, heads=self.heads
        )
