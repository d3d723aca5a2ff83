"""Which components of a stress are defined: those along the periodic directions of a cell.

The stress is the derivative of the energy with respect to strain, divided by the volume of the
cell. A direction that is not periodic can be strained only together with the atoms in it, which
says no more than their forces, so slabs have 4 components (three of them independent) and wires
one. The volume is that of the whole cell, with the vacuum in it, as in codes that know only three
periodic directions: the third lattice vector of a slab must be there.
"""

import numpy as np
from numpy.typing import NDArray

# vectors that differ by less, relative to their lengths, differ by rounding of five digits
ROUNDING = 1e-5
SMALLEST_VOLUME = 1e-6  # of a cell that has one, relative to the product of its lengths


def has_stress(cell: NDArray[np.float64], pbc: NDArray[np.bool_]) -> bool:
    """Whether there is a periodic direction and a volume to divide by; cell [3, 3], pbc [3]."""
    lengths = np.linalg.norm(cell, axis=1)
    return bool(pbc.any()) and abs(np.linalg.det(cell)) > SMALLEST_VOLUME * float(np.prod(lengths))


def stress_mask(cell: NDArray[np.float64], pbc: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which components [3, 3] are defined, as Graph.stress_mask.

    All of them False where there is no stress, or where periodic directions are not x, y or z
    according to their number, so that components mix with those that are not defined.

    >>> stress_mask(np.diag([4.0, 4.0, 20.0]), np.array([True, True, False]))
    array([[ True,  True, False],
           [ True,  True, False],
           [False, False, False]])
    """
    if no_stress_reason(cell, pbc) is not None:
        return np.zeros((3, 3), dtype=bool)
    return np.outer(pbc, pbc)


def no_stress_reason(cell: NDArray[np.float64], pbc: NDArray[np.bool_]) -> str | None:
    """What a structure is or lacks, so that no component of its stress is defined; else None.

    >>> no_stress_reason(np.diag([4.0, 4.0, 0.0]), np.array([True, True, False]))
    'has no cell vector along its direction that is not periodic, so no volume'
    """
    if not pbc.any():
        return "is not periodic"
    if not has_stress(cell, pbc):
        return "has no cell vector along its direction that is not periodic, so no volume"
    across = np.abs(cell[pbc][:, ~pbc]).max(initial=0.0)
    if across > ROUNDING * np.abs(cell[pbc]).max():
        axes = ", ".join(f"{axis}" for axis in np.array(["x", "y", "z"])[pbc])
        return (
            f"is periodic along cell vectors that leave {axes} (by more than a share of "
            f"{ROUNDING:g}), so that components mix with those that are not defined"
        )
    return None


def projected_stress(
    strain_gradient: NDArray[np.float64], cell: NDArray[np.float64], pbc: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """The stress [3, 3] along the periodic directions, whichever these are; zero across them.

    Args:
        strain_gradient: [3, 3] derivative of the energy with respect to symmetric strain, eV.
        cell: [3, 3] Å, of a structure that ``has_stress``.
        pbc: [3].
    """
    periodic = np.linalg.svd(cell[pbc], full_matrices=False)[2]  # orthonormal rows that span it
    projector = periodic.T @ periodic
    stress: NDArray[np.float64] = projector @ strain_gradient @ projector
    return stress / abs(np.linalg.det(cell))
