"""Neighbour lists: all directed edges shorter than r_max, over periodic images.

    vectors = positions[receivers] - positions[senders] + shifts @ cell,   |vectors| < r_max

Both directions are stored. An atom neighbours its own periodic images, never itself. Edges are
sorted by receiver, then sender, then shift, so the list is a function of the structure alone.
vesin's cell lists do the search in O(n_atoms), small molecules take all distances; the distance
that decides is computed here, so an edge and its reverse are always kept or dropped together.
"""

import sys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mace_train.errors import InvalidStructureError

if "torch" in sys.modules:
    from vesin import NeighborList
else:  # vesin imports PyTorch if it can: seconds and 150 MB for every worker that only needs numpy
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        from vesin import NeighborList
    finally:
        del sys.modules["torch"]

COINCIDENT = 1e-6  # Å, atoms that are closer have no defined direction between them
DENSE = 100  # atoms; for molecules up to this size all distances are faster than a search
MAX_NEIGHBORS = 1e5  # of one atom on average; more means a cell or r_max in wrong units
# vesin 0.6 divides space into at most 1e5 boxes and dies (SIGFPE) when that limit leaves none
# along a short direction, so long thin cells are searched with a larger radius
MAX_BOXES = 5e4
MAX_SEARCH_RADIUS = 50.0  # in r_max
SEARCH_MARGIN = 1e-9  # relative, more than the rounding of a distance


@dataclass(frozen=True, eq=False)
class EdgeList:
    """The neighbour list of one structure."""

    senders: NDArray[np.int64]  # [n_edges]
    receivers: NDArray[np.int64]  # [n_edges], ascending
    shifts: NDArray[np.int64]  # [n_edges, 3] multiples of the lattice vectors

    @property
    def n_edges(self) -> int:
        """Number of directed edges."""
        return len(self.senders)


def neighbor_list(
    positions: NDArray[np.float64],
    cell: NDArray[np.float64],
    pbc: NDArray[np.bool_],
    r_max: float,
    source: str = "structure",
) -> EdgeList:
    """All edges shorter than ``r_max``.

    Args:
        positions: [n_atoms, 3] Å, inside or outside of the cell.
        cell: [3, 3] Å, rows are lattice vectors; rows along directions without periodicity are
            not used.
        pbc: [3] bool, each direction on its own.
        r_max: Cutoff radius, Å; the end of the interval is not included.
        source: Name of the structure, to begin messages with.

    Raises:
        InvalidStructureError: two atoms at the same place, or a cell so small or so long that no
            potential is meant.
    """
    if not pbc.any() and len(positions) <= DENSE:
        return _dense(positions, r_max, source)
    box, periodic, heights = _box(positions, cell, pbc, r_max)
    _check_density(len(positions), box, periodic, r_max, source)
    radius = _search_radius(heights, r_max, source)
    if pbc.any() and not pbc.all():
        box, _, _ = _box(positions, cell, pbc, radius)
    search = NeighborList(cutoff=radius * (1 + SEARCH_MARGIN), full_list=True, n_threads=1)
    pairs, shifts32 = search.compute(positions, box, periodic, quantities="PS")
    senders, receivers = pairs.astype(np.int64).T
    shifts = shifts32.astype(np.int64)
    # not shifts @ cell: BLAS may round the rows of an edge and of its reverse differently
    images = shifts[:, :1] * cell[0] + shifts[:, 1:2] * cell[1] + shifts[:, 2:] * cell[2]
    vectors = positions[receivers] - positions[senders] + images
    distances = np.sqrt(np.einsum("ec,ec->e", vectors, vectors))
    keep = np.flatnonzero(distances < r_max)
    if len(keep) == 0:
        return _no_edges()
    _check_separation(distances, senders, receivers, source)
    keep = keep[edge_order(senders[keep], receivers[keep], shifts[keep], len(positions))]
    return EdgeList(senders[keep], receivers[keep], shifts[keep])


def _dense(positions: NDArray[np.float64], r_max: float, source: str) -> EdgeList:
    """The edges of a small molecule, from all its distances."""
    vectors = positions[:, None] - positions
    distances = np.sqrt(np.einsum("rsc,rsc->rs", vectors, vectors))
    np.fill_diagonal(distances, np.inf)
    receivers, senders = np.nonzero(distances < r_max)
    if len(receivers):
        _check_separation(distances[receivers, senders], senders, receivers, source)
    return EdgeList(senders, receivers, np.zeros((len(senders), 3), dtype=np.int64))


def _no_edges() -> EdgeList:
    none = np.zeros(0, dtype=np.int64)
    return EdgeList(none, none, np.zeros((0, 3), dtype=np.int64))


def _box(
    positions: NDArray[np.float64],
    cell: NDArray[np.float64],
    pbc: NDArray[np.bool_],
    radius: float,
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.float64]]:
    """Box and periodicity for the search, and the extent [3] of the box across its faces, Å.

    Without periodicity vesin bounds the atoms itself. With periodicity in one or two directions
    the others become vectors normal to them, long enough that images are out of reach.
    """
    if not pbc.any():
        return cell, pbc, np.asarray(np.ptp(positions, axis=0))
    box = np.array(cell)
    if not pbc.all():
        directions = np.linalg.svd(cell[pbc])[2][int(pbc.sum()) :]  # normal to the periodic ones
        extents = np.ptp(positions @ directions.T, axis=0)
        box[~pbc] = directions * (extents + 3 * radius)[:, None]
    heights = 1 / np.linalg.norm(np.linalg.inv(box), axis=0)
    return box, np.ones(3, dtype=bool), heights


def _check_density(
    n_atoms: int,
    box: NDArray[np.float64],
    periodic: NDArray[np.bool_],
    r_max: float,
    source: str,
) -> None:
    """InputError where the periodic cell is so small that it cannot be meant."""
    if not periodic.all():
        return
    volume = abs(float(np.linalg.det(box)))
    if 4.19 * r_max**3 * n_atoms / volume > MAX_NEIGHBORS:
        raise InvalidStructureError(
            "dense cell",
            f"{source}: {n_atoms} atoms in {volume:.3g} Å^3 have more than {MAX_NEIGHBORS:.0f} "
            f"neighbours each within r_max={r_max} Å; is the cell in Å? correct it, or r_max",
        )


def _search_radius(heights: NDArray[np.float64], r_max: float, source: str) -> float:
    """The radius, at least r_max, that vesin can search a region of these extents with."""
    radius = r_max
    while True:
        boxes = np.maximum(heights / radius, 1.0)
        excess = np.cbrt(boxes.prod() / MAX_BOXES)
        if excess <= 1 or boxes.min() >= 2 * excess:
            return radius
        radius *= 1.5
        if radius > MAX_SEARCH_RADIUS * r_max:
            raise InvalidStructureError(
                "thin cell",
                f"{source}: cell or atoms extend over {np.round(heights, 3).tolist()} Å, too "
                f"thin and long to search with r_max={r_max} Å; are the positions in Å?",
            )


def _check_separation(
    distances: NDArray[np.float64],
    senders: NDArray[np.int64],
    receivers: NDArray[np.int64],
    source: str,
) -> None:
    nearest = int(np.argmin(distances))
    if distances[nearest] < COINCIDENT:
        first, second = sorted((int(senders[nearest]), int(receivers[nearest])))
        raise InvalidStructureError(
            "coincident atoms",
            f"{source}: atoms {first} and {second} are {distances[nearest]:.2g} Å apart, at the "
            "same place; remove one, or the structure",
        )


def edge_order(
    senders: NDArray[np.int64],
    receivers: NDArray[np.int64],
    shifts: NDArray[np.int64],
    n_atoms: int,
) -> NDArray[np.intp]:
    """The permutation [n_edges] that sorts edges by receiver, sender and shift.

    senders and receivers are [n_edges], shifts [n_edges, 3].
    """
    least = shifts.min(axis=0)
    counts = shifts.max(axis=0) - least + 1
    if float(n_atoms) ** 2 * float(counts[0]) * float(counts[1]) * float(counts[2]) < 2.0**62:
        key = receivers * n_atoms + senders
        for axis in range(3):
            key = key * counts[axis] + (shifts[:, axis] - least[axis])
        return np.argsort(key)
    return np.lexsort((*shifts.T[::-1], senders, receivers))
