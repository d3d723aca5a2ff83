"""The cost of a structure in time and memory, and the capacity of one GPU and step.

A bin is limited in three sums over its structures at once:

    atoms <= max_atoms,    edges <= max_edges,    memory <= max_memory,

the last one where memory is given (kB, by a measured model, see cost_model.py). Time is compared
through one number, the cost = n_atoms + n_edges / edges_per_atom; with the 30 edges per atom of
condensed matter at 5 Å half of the time is spent per edge. It is only reported; packers even out
atoms and edges, and with them any cost of this form. All quantities are integers (the cost is kept
as edges_per_atom n_atoms + n_edges), so that every rank computes the same plan.

The costs of a data set take 16 to 24 bytes per structure; everything here is O(n) in numpy.
"""

import hashlib
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mace_train.balance.windows import locality_order
from mace_train.checks import check_at_least
from mace_train.errors import InputError
from mace_train.settings import BatchingSettings

EDGES_PER_ATOM = 30  # unless measured: so many edges take as long as one atom without its edges
MEMORY_UNIT = 1000  # bytes; memory is counted in whole kB
UNLIMITED = 2**31 - 1  # sums of a bin are compared as 32-bit integers
ATOM_SLACK_PERCENT = 110  # derived max_atoms, relative to the atoms of batch_size mean structures:
# bins filled to the last atom do not exist, and each that fails costs everyone more steps
EDGE_SLACK_PERCENT = 115  # derived max_edges, relative to the edges of max_atoms mean atoms


@dataclass(frozen=True)
class Costs:
    """Sizes and costs of the structures of a data set; a structure's id is its index here.

    Raises ``InputError`` for an empty data set and for counts that no structure can have.
    """

    n_atoms: NDArray[np.int64]  # [n_structures]
    n_edges: NDArray[np.int64]  # [n_structures]
    memory: NDArray[np.int64] | None = None  # [n_structures]; None: not limited
    step_memory: int = 0
    """Memory of a step that is not of its structures (weights, optimizer), in the same unit."""
    edges_per_atom: int = EDGES_PER_ATOM
    """So many edges take as long as one atom without its edges."""

    def __post_init__(self) -> None:
        """Convert to int64 and check."""
        for name in ("n_atoms", "n_edges"):
            object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name), np.int64))
        if self.n_atoms.ndim != 1 or self.n_atoms.shape != self.n_edges.shape:
            raise InputError(
                f"n_atoms has shape {self.n_atoms.shape} and n_edges {self.n_edges.shape}; "
                "both must be [n_structures]"
            )
        if self.memory is not None:
            object.__setattr__(self, "memory", np.ascontiguousarray(self.memory, np.int64))
            if self.memory.shape != self.n_atoms.shape or (self.memory < 0).any():
                raise InputError("memory must be [n_structures] and not negative")
        check_at_least("edges_per_atom", self.edges_per_atom, 1)
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
    def dimensions(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Atoms, edges and memory, [n_structures] each; memory is 0 where it is not limited."""
        memory = np.zeros_like(self.n_atoms) if self.memory is None else self.memory
        return self.n_atoms, self.n_edges, memory

    def subset(self, ids: NDArray[np.integer[Any]]) -> "Costs":
        """The costs of the structures ``ids`` [n], whose new ids are 0 ... n - 1 in that order."""
        memory = None if self.memory is None else self.memory[ids]
        return replace(self, n_atoms=self.n_atoms[ids], n_edges=self.n_edges[ids], memory=memory)

    def sizes(self, ids: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """Atoms, edges and memory of some structures, [n, 3]."""
        sizes = np.zeros((len(ids), 3), np.int64)
        sizes[:, 0], sizes[:, 1] = self.n_atoms[ids], self.n_edges[ids]
        if self.memory is not None:
            sizes[:, 2] = self.memory[ids]
        return sizes

    @property
    def scaled(self) -> NDArray[np.int64]:
        """Cost of every structure times edges_per_atom, [n_structures], exact."""
        return self.edges_per_atom * self.n_atoms + self.n_edges

    @cached_property
    def locality_order(self) -> NDArray[np.int32]:
        """Structure ids along a path on which neighbours are alike, [n_structures] (windows.py)."""
        return locality_order(self.n_atoms, self.n_edges)

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change when the number, order or size of structures does."""
        digest = hashlib.blake2b(digest_size=8)
        for counts in (self.n_atoms, self.n_edges, self.memory):
            if counts is not None:
                digest.update(counts.astype("<i8", copy=False).data)
        return digest.hexdigest()


@dataclass(frozen=True)
class EpochSize:
    """What an epoch holds, on average over epochs; exact, so fractions where heads are sampled."""

    n_structures: int | Fraction
    n_atoms: int | Fraction
    n_edges: int | Fraction

    @staticmethod
    def of(costs: Costs) -> "EpochSize":
        """Every structure once."""
        return EpochSize(len(costs), int(costs.n_atoms.sum()), int(costs.n_edges.sum()))


@dataclass(frozen=True)
class Capacity:
    """Limits of the bin of one GPU in one step."""

    max_atoms: int
    max_edges: int
    batch_size: int | None = None
    """Structures of a bin: exactly (fixed_count), or at most on average over the epoch (the other
    packers); None leaves their number to the limits."""
    max_memory: int | None = None

    @property
    def limits(self) -> NDArray[np.int64]:
        """Atoms, edges and memory of a bin, [3]."""
        memory = UNLIMITED if self.max_memory is None else self.max_memory
        return np.minimum([self.max_atoms, self.max_edges, memory], UNLIMITED)


def ceil_div(a: int | Fraction, b: int | Fraction) -> int:
    """a / b rounded up."""
    return int(-(-a // b))


def derive_capacity(
    costs: Costs,
    batch_size: int,
    max_atoms: int | None,
    max_edges: int | None,
    epoch: EpochSize | None = None,
) -> Capacity:
    """The given capacity, with what is None derived from the data set.

    - max_atoms: batch_size mean structures plus 10 %, but at least the largest structure. The
      average number of structures per bin is then held at or below batch_size by the number of
      bins, so the 10 % are room to even out sizes, and a giant does not make every bin giant.
    - max_edges: the edges of max_atoms mean atoms plus 15 %, but at least the most of a structure.

    Means are over an ``epoch``; None: every structure once. Raises ``InputError`` when a structure
    alone is above a given limit.
    """
    epoch = epoch or EpochSize.of(costs)
    atoms, edges = epoch.n_atoms, epoch.n_edges
    average = batch_size if max_atoms is None else None
    if max_atoms is None:
        mean_full = ceil_div(ATOM_SLACK_PERCENT * batch_size * atoms, 100 * epoch.n_structures)
        max_atoms = max(mean_full, int(costs.n_atoms.max()))
    if max_edges is None:
        mean_full = ceil_div(EDGE_SLACK_PERCENT * max_atoms * edges, 100 * atoms)
        max_edges = max(mean_full, int(costs.n_edges.max()))
    capacity = Capacity(max_atoms, max_edges, average)
    check_fits(costs, capacity)
    return capacity


def capacity_of(
    costs: Costs, settings: BatchingSettings, epoch: EpochSize | None = None
) -> Capacity:
    """The capacity for the packer that the settings name; ``epoch`` as in ``derive_capacity``.

    fixed_count takes batch_size structures whatever their size, so a limit beside it could not be
    kept: ``InputError``.
    """
    if settings.packer != "fixed_count":
        capacity = derive_capacity(
            costs, settings.batch_size, settings.max_atoms, settings.max_edges, epoch
        )
        return limit_memory(costs, capacity, settings.max_memory_gb)
    for name in ("max_atoms", "max_edges", "max_memory_gb"):
        if getattr(settings, name) is not None:
            raise InputError(
                f"batching.{name}={getattr(settings, name)} cannot be kept with packer=fixed_count,"
                f" which takes {settings.batch_size} structures of any size; set "
                f"batching.{name}=null or batching.packer=balanced"
            )
    return derive_capacity(costs, settings.batch_size, None, None, epoch)


def limit_memory(costs: Costs, capacity: Capacity, max_memory_gb: float | None) -> Capacity:
    """The capacity with a limit of memory; ``InputError`` when a structure is above it."""
    if max_memory_gb is None:
        return capacity
    room = int(max_memory_gb * 1e9 / MEMORY_UNIT) - costs.step_memory
    if room < 1:
        raise InputError(
            f"batching.max_memory_gb={max_memory_gb} is not above what a step takes without "
            f"structures, {costs.step_memory * MEMORY_UNIT / 1e9:.3g} GB by batching.cost_model; "
            "give more, or measure another cost model"
        )
    capacity = replace(capacity, max_memory=room)
    check_fits(costs, capacity)
    return capacity


def check_fits(costs: Costs, capacity: Capacity) -> None:
    """Raise ``InputError`` naming the largest structure that no bin can hold."""
    for name, word, unit, counts, limit in (
        ("max_atoms", "atoms", 1, costs.n_atoms, capacity.max_atoms),
        ("max_edges", "edges", 1, costs.n_edges, capacity.max_edges),
        (
            "max_memory_gb",
            "GB above an empty step",
            1e9 / MEMORY_UNIT,
            costs.memory,
            capacity.max_memory,
        ),
    ):
        if counts is None or limit is None:
            continue
        largest = int(counts.argmax())
        if counts[largest] > limit:
            n_over = int((counts > limit).sum())
            raise InputError(
                f"structure {largest} has {counts[largest] / unit:.10g} {word}, more than one GPU "
                f"takes in one step (batching.{name}={limit / unit:.10g}); {n_over} of {len(costs)}"
                f" structures are too large; set batching.{name} to at least "
                f"{counts[largest] / unit:.10g}, or to null, or remove them from the data set"
            )
