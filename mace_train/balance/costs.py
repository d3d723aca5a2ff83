"""What a structure costs a GPU, and how much one GPU takes in one step.

Memory grows with atoms and with edges, each on its own, so a bin is limited in both:

    sum of n_atoms <= max_atoms    and    sum of n_edges <= max_edges.

Time is compared through one number, the cost = n_atoms + n_edges / 30: at 30 edges per atom half
of the time is spent per edge. It is only reported; no packer decides by it. All quantities are
integers (the cost is kept as 30 n_atoms + n_edges), so that every rank computes the same plan.

The costs of a data set take 16 bytes per structure; everything here is O(n) in numpy.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mace_train.errors import InputError
from mace_train.settings import BatchingSettings

EDGES_PER_ATOM = 30  # this many edges take as long as one atom does outside of its edges
ATOM_SLACK_PERCENT = 110  # derived max_atoms, relative to the atoms of batch_size mean structures:
# bins filled to the last atom do not exist, and each that fails costs everyone more steps
EDGE_SLACK_PERCENT = 115  # derived max_edges, relative to the edges of max_atoms mean atoms


@dataclass(frozen=True)
class Costs:
    """Atoms and edges of every structure of a data set; a structure's id is its index here.

    Raises ``InputError`` for an empty data set and for counts that no structure can have.
    """

    n_atoms: NDArray[np.int64]  # [n_structures]
    n_edges: NDArray[np.int64]  # [n_structures]

    def __post_init__(self) -> None:
        """Convert to int64 and check."""
        for name in ("n_atoms", "n_edges"):
            object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name), np.int64))
        if self.n_atoms.ndim != 1 or self.n_atoms.shape != self.n_edges.shape:
            raise InputError(
                f"n_atoms has shape {self.n_atoms.shape} and n_edges {self.n_edges.shape}; "
                "both must be [n_structures]"
            )
        if not len(self.n_atoms):
            raise InputError("the data set holds no structures, so there is no step to plan")
        bad = np.flatnonzero((self.n_atoms < 1) | (self.n_edges < 0))
        if len(bad):
            i = int(bad[0])
            raise InputError(
                f"structure {i}: {self.n_atoms[i]} atoms and {self.n_edges[i]} edges; a structure "
                "has at least one atom and no negative count; preprocess the data set again"
            )

    def __len__(self) -> int:
        """The number of structures."""
        return len(self.n_atoms)

    @property
    def scaled(self) -> NDArray[np.int64]:
        """Cost of every structure times 30, [n_structures], exact."""
        return EDGES_PER_ATOM * self.n_atoms + self.n_edges

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change when the number, order or size of structures does."""
        digest = hashlib.blake2b(digest_size=8)
        digest.update(self.n_atoms.astype("<i8").tobytes())
        digest.update(self.n_edges.astype("<i8").tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Capacity:
    """What one GPU takes in one step."""

    max_atoms: int
    max_edges: int
    batch_size: int | None = None
    """Structures of a bin: exactly (fixed_count), or at most on average over the epoch
    (algorithm1); None leaves the number to max_atoms and max_edges."""


def ceil_div(a: int, b: int) -> int:
    """a / b rounded up."""
    return -(-a // b)


def derive_capacity(
    costs: Costs, batch_size: int, max_atoms: int | None, max_edges: int | None
) -> Capacity:
    """The given capacity, with what is None derived from the data set.

    - max_atoms: batch_size mean structures plus 10 %, but at least the largest structure. The
      average number of structures per bin is then held at or below batch_size by the number of
      bins, so the 10 % are room to even out sizes, and a giant does not make every bin giant.
    - max_edges: the edges of max_atoms mean atoms plus 15 %, but at least the most of a structure.

    Raises ``InputError`` when a structure alone is above a given limit.
    """
    atoms, edges = int(costs.n_atoms.sum()), int(costs.n_edges.sum())
    average = batch_size if max_atoms is None else None
    if max_atoms is None:
        mean_full = ceil_div(ATOM_SLACK_PERCENT * batch_size * atoms, 100 * len(costs))
        max_atoms = max(mean_full, int(costs.n_atoms.max()))
    if max_edges is None:
        mean_full = ceil_div(EDGE_SLACK_PERCENT * max_atoms * edges, 100 * atoms)
        max_edges = max(mean_full, int(costs.n_edges.max()))
    capacity = Capacity(max_atoms, max_edges, average)
    check_fits(costs, capacity)
    return capacity


def capacity_of(costs: Costs, settings: BatchingSettings) -> Capacity:
    """The capacity for the packer that the settings name.

    fixed_count takes batch_size structures whatever their size, so a limit beside it could not be
    kept: ``InputError``.
    """
    if settings.packer != "fixed_count":
        return derive_capacity(costs, settings.batch_size, settings.max_atoms, settings.max_edges)
    for name in ("max_atoms", "max_edges"):
        if getattr(settings, name) is not None:
            raise InputError(
                f"batching.{name}={getattr(settings, name)} cannot be kept with packer=fixed_count,"
                f" which takes {settings.batch_size} structures of any size; set "
                f"batching.{name}=null or batching.packer=algorithm1"
            )
    return derive_capacity(costs, settings.batch_size, None, None)


def check_fits(costs: Costs, capacity: Capacity) -> None:
    """Raise ``InputError`` naming the largest structure that no bin can hold."""
    for name, word, counts, limit in (
        ("max_atoms", "atoms", costs.n_atoms, capacity.max_atoms),
        ("max_edges", "edges", costs.n_edges, capacity.max_edges),
    ):
        largest = int(counts.argmax())
        if counts[largest] > limit:
            n_over = int((counts > limit).sum())
            raise InputError(
                f"structure {largest} has {counts[largest]} {word}, more than one GPU takes in one "
                f"step (batching.{name}={limit}); {n_over} of {len(costs)} structures are too "
                f"large; set batching.{name} to at least {counts[largest]}, or to null, or remove "
                "them from the data set"
            )
