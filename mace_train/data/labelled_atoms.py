"""A structure as ``ase.Atoms`` with its labels under the names that preprocess reads by default."""

from ase import Atoms

from mace_train.data.structure import Structure

_WEIGHTS = {
    "config_weight": "weight",
    "config_energy_weight": "energy_weight",
    "config_forces_weight": "forces_weight",
    "config_stress_weight": "stress_weight",
}


def labelled_atoms(structure: Structure) -> Atoms:
    """The geometry, config_type, head, source, labels (REF_*), inputs, weights that are not 1."""
    atoms = Atoms(
        structure.numbers, positions=structure.positions, cell=structure.cell, pbc=structure.pbc
    )
    atoms.info["config_type"] = structure.config_type
    atoms.info["head"] = structure.head
    atoms.info["source"] = structure.source
    atoms.info.update(structure.inputs.graph)
    atoms.arrays.update(structure.inputs.atom)
    if structure.energy is not None:
        atoms.info["REF_energy"] = structure.energy
    if structure.forces is not None:
        atoms.arrays["REF_forces"] = structure.forces
    if structure.stress is not None:
        atoms.info["REF_stress"] = structure.stress
    for name, field in _WEIGHTS.items():
        weight = getattr(structure, field)
        if weight != 1.0:
            atoms.info[name] = weight
    return atoms
