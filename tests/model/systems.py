"""Small structures, graphs of them, and models with random weights."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, molecule

from mace_train.data.graph import Graph
from mace_train.data.input_values import input_values
from mace_train.data.loading.loader import collate
from mace_train.data.notes import Notes
from mace_train.data.shards.arrays import Sample
from mace_train.data.shards.hdf5 import sample_of
from mace_train.data.structure import Structure
from mace_train.model.derivatives import predict
from mace_train.model.mace import MACE, Head, ModelData
from mace_train.settings import ModelSettings
from mace_train.settings.inputs import InputSpec, model_input_keys
from mace_train.settings.model import NONLINEAR


def rattled(atoms: Atoms, seed: int, strain: float = 0.03) -> Atoms:
    """Displaced atoms in a sheared cell: no symmetry left to hide an error."""
    random = np.random.RandomState(seed)
    atoms = atoms.copy()
    if atoms.pbc.any():
        shear = np.eye(3) + strain * random.standard_normal((3, 3))
        atoms.set_cell(atoms.cell @ shear, scale_atoms=True)
    atoms.positions += 0.05 * random.standard_normal(atoms.positions.shape)
    return atoms


def water() -> Atoms:
    return rattled(molecule("H2O"), 1)


def single_atom() -> Atoms:
    """Water and one oxygen far from everything."""
    atoms = water()
    return atoms + Atoms("O", positions=[[40.0, 1.0, 2.0]])


def salt() -> Atoms:
    return rattled(bulk("NaCl", "rocksalt", a=5.6, cubic=True), 2)


def tiny_cell() -> Atoms:
    """One atom in a cell shorter than any cutoff in these tests: its images are its neighbours."""
    return rattled(bulk("Al"), 3)


def mixed(numbers: Sequence[int], n_atoms: int = 9, seed: int = 4) -> Atoms:
    """Atoms of random elements on a distorted grid."""
    random = np.random.RandomState(seed)
    grid = np.stack(np.meshgrid(*[np.arange(3)] * 3), axis=-1).reshape(-1, 3)[:n_atoms]
    positions = 1.8 * grid + 0.2 * random.standard_normal((n_atoms, 3))
    return Atoms(random.choice(numbers, n_atoms), positions=positions)


def unlabelled(atoms: Atoms, r_max: float, inputs: Sequence[InputSpec] = ()) -> Sample:
    """An ASE structure with its neighbours, and inputs of a model."""
    values = input_values(atoms, model_input_keys(inputs), "structure", Notes())
    return sample_of(replace(Structure.unlabelled(atoms), inputs=values), r_max)


def graph_of(
    structures: Sequence[Atoms],
    r_max: float,
    atomic_numbers: tuple[int, ...],
    dtype: torch.dtype = torch.float64,
    inputs: Sequence[InputSpec] = (),
) -> Graph:
    """Unlabelled graph of ASE structures, with inputs of a model."""
    samples = [unlabelled(atoms, r_max, inputs) for atoms in structures]
    ids = np.arange(len(samples))
    return collate(samples, ids, atomic_numbers=atomic_numbers, dtype=dtype, inputs=inputs)


def model_of(
    atomic_numbers: tuple[int, ...],
    r_max: float = 4.0,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    heads: Sequence[str] = ("Default",),
    **settings: object,
) -> MACE:
    """A small model with random weights; settings override few channels and narrow networks."""
    small = {"num_channels": 4, "radial_MLP": [8, 8], "MLP_irreps": "5x0e"}
    E0s = tuple(-10.0 * z for z in atomic_numbers)
    heads = [
        Head(tuple(E0 - i for E0 in E0s), 0.8 + i, 0.1 - i, name) for i, name in enumerate(heads)
    ]
    data = ModelData(r_max, atomic_numbers, 7.3, tuple(heads))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return MACE(ModelSettings(**{**small, **settings}), data).to(dtype)


NONLINEAR_SETTINGS = {  # as MACE-MH-1
    "interaction": NONLINEAR,
    "interaction_first": NONLINEAR,
    "use_agnostic_product": True,
    "apply_cutoff": False,
    "edge_irreps": "3x0e+3x1o",
    "max_ell": 2,
}


def nonlinear_model_of(atomic_numbers: tuple[int, ...], **settings: object) -> MACE:
    """A small model of nonlinear interactions with random weights, all of which count."""
    model = model_of(atomic_numbers, **{**NONLINEAR_SETTINGS, **settings})
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for block in model.interactions:
            draw_nonlinear_weights(block)
    return model


def draw_nonlinear_weights(block: torch.nn.Module) -> None:
    """Weights as after a training: at first they hide elements and density. mace-torch's too."""
    with torch.no_grad():
        for embedding in (block.source_embedding, block.target_embedding):
            embedding.weight.normal_()
        block.alpha.fill_(3.1)
        block.beta.fill_(0.7)


def results_of(model: MACE, graph: Graph) -> dict[str, np.ndarray]:
    """Energy, node energies, forces and stress of the one structure of ``graph``."""
    found = predict(model, graph, stress=True, create_graph=False)
    return {
        "energy": found.energy[0].numpy(),
        "node_energy": found.node_energy.numpy(),
        "forces": found.forces.numpy(),
        "stress": found.stress[0].numpy(),
    }
