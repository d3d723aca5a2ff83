"""Structures and calculators with random weights."""

from ase import Atoms
from ase.build import bulk, fcc111

from mace_train.calculators import MACETrainCalculator
from tests.model.systems import mixed, model_of, rattled

ELEMENTS = (1, 8, 13)
R_MAX = 4.0


def calculator(*seeds, **settings):
    return MACETrainCalculator(
        [model_of(ELEMENTS, seed=seed) for seed in seeds or (0,)], **settings
    )


def slab():
    """Periodic in two directions, with a molecule on top."""
    atoms = fcc111("Al", (2, 2, 2), vacuum=5.0)
    atoms += Atoms("OH", positions=[[0.5, 0.4, 9.2], [0.9, 1.1, 9.6]])
    return rattled(atoms, 5)


def wire():
    """Periodic in one direction, along x."""
    return rattled(Atoms("Al3H", [[0, 0, 0], [2, 1, 0], [1, 2, 1], [3, 0, 2]], cell=[4.3, 9, 11],
                         pbc=[True, False, False]), 6)  # fmt: skip


STRUCTURES = {
    "molecule": lambda: mixed(ELEMENTS),
    "crystal": lambda: rattled(bulk("Al", cubic=True), 1),
    "one atom in a cell": lambda: rattled(bulk("Al"), 2),
    "slab": slab,
    "wire": wire,
}
