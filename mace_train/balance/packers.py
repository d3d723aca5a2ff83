"""Packers: from the sizes of structures to the bins of one epoch.

``algorithm1`` is the iterative multi-objective bin packing of Firoz et al., arXiv 2504.10700
(Algorithm 1). As published, as far as descriptions of the paper tell (its listing was not at
hand): the number of bins is a multiple of the number of GPUs; structures are taken from large to
small by atoms and dealt over the bins in rounds by what each bin has left, and bins without room
are passed over. Every bin of the epoch so ends with nearly the same number of atoms, topped up by
ever smaller structures: *any* world_size of them are a matched step. Steps are therefore random
groups of bins; sorting bins by cost would make some steps systematically unlike others.

Ours, where the descriptions are silent or training wants more:

- a round serves the bins with the fewest atoms first and ends where a bin just served would be due
  again, so that it equals "the next structure goes to the bin with the fewest atoms" one by one;
- edges are a second capacity. A structure that its bin has no room for comes first in the next
  round, where it gets the bin of fewest atoms among those with room;
- sizes are compared with +-12 % of random jitter, new in every epoch: near-equal structures change
  places, so bins are remixed also where no two structures have the same size. Where this order
  fails at the lower bound of steps the exact one (random ties only) is tried;
- the number of steps starts at its lower bound. When a structure fits nowhere, a step is added and
  everything packed again (then 2, 4, ... more, so that a loose bound costs few repetitions).

``fixed_count`` is the usual batching: a shuffle cut into groups of batch_size.

All decisions compare integers, all random numbers are a counter hash of (seed, epoch), all sorts
have unique keys: every rank gets the same bins without communication, on any version of numpy.
Cost: O(n log n) for one sort, and about n / n_bins rounds of O(n_bins log n_bins).
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from mace_train.balance.costs import Capacity, Costs, ceil_div, check_fits
from mace_train.errors import InputError

Ids = NDArray[np.int64]
Packer = Callable[[Costs, Capacity, int, int, int], list[Ids]]
"""(costs, capacity, world_size, seed, epoch) -> bins of structure ids, every structure in exactly
one of them. Their number is a multiple of world_size; bins [s world_size, (s + 1) world_size) are
step s; empty bins come last, and there are fewer of them than world_size."""

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_UNBOUNDED = np.iinfo(np.int64).max


class _Stream(IntEnum):
    """Independent sequences of random numbers."""

    STRUCTURES = 1
    BINS = 2


def _mix(z: int) -> int:
    """Scalar splitmix64 (Steele, Lea, Flood 2014): a bijection of 64-bit integers."""
    z = (z + _GOLDEN) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def random_bits(n: int, seed: int, epoch: int, stream: int) -> NDArray[np.uint64]:
    """The first n numbers of a stream, [n], uniform 64-bit: splitmix64 with a hashed start."""
    start = _mix(_mix(_mix(seed & _MASK) ^ epoch) ^ stream)
    z = np.arange(1, n + 1, dtype=np.uint64)
    z *= np.uint64(_GOLDEN)
    z += np.uint64(start)
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


def shuffled(n: int, seed: int, epoch: int, stream: int) -> Ids:
    """A random permutation of range(n), [n]."""
    return _sorted_by(random_bits(n, seed, epoch, stream))


def _sorted_by(keys: NDArray[np.uint64]) -> Ids:
    """Indices in order of the high bits of keys, then of the index: what remains below the index
    bits is dropped, which makes the keys unique and any sorting algorithm give the same answer."""
    n_bits = np.uint64(max(1, (len(keys) - 1).bit_length()))
    low = (np.uint64(1) << n_bits) - np.uint64(1)
    packed = (keys & ~low) | np.arange(len(keys), dtype=np.uint64)
    packed.sort()
    return (packed & low).astype(np.int64)


def _large_to_small(atoms: Ids, bits: NDArray[np.uint64], *, jitter: bool) -> Ids:
    """Structure ids from large to small; ties (jitter: all near-equal sizes) by random bits."""
    size = atoms
    if jitter:
        size = atoms * (224 + (bits >> np.uint64(58)).astype(np.int64))  # 256 x (0.875 ... 1.121)
    largest = int(size.max())
    shift = np.uint64(64 - largest.bit_length())
    keys = (largest - size).astype(np.uint64) << shift
    keys |= bits & ((np.uint64(1) << shift) - np.uint64(1))
    return _sorted_by(keys)


@dataclass
class _Bins:
    """Loads of the bins while structures are dealt to them."""

    capacity: Capacity
    atoms: Ids  # [n_bins]
    edges: Ids  # [n_bins]

    @staticmethod
    def empty(n_bins: int, capacity: Capacity) -> "_Bins":
        """n_bins bins without structures."""
        atoms, edges = np.zeros((2, n_bins), np.int64)
        return _Bins(capacity, atoms, edges)

    def has_room(
        self, bins: Ids | slice, atoms: Ids | np.int64, edges: Ids | np.int64
    ) -> NDArray[np.bool_]:
        """Whether bins[i] has room for a structure of atoms[i] and edges[i]."""
        fits_atoms = self.atoms[bins] <= self.capacity.max_atoms - atoms
        return fits_atoms & (self.edges[bins] <= self.capacity.max_edges - edges)

    def least_loaded(self, atoms: np.int64, edges: np.int64, at_most: int) -> Ids:
        """Bins by rising atoms, [<= at_most], from the best one for a structure to those that it
        would then overtake; only bins with room for it; empty when there is none."""
        bins = np.flatnonzero(self.has_room(slice(None), atoms, edges))
        if not len(bins):
            return bins
        loads = self.atoms[bins]
        near = loads <= loads.min() + atoms
        keys = (loads[near] << 32) | bins[near]  # unique, so any sort is stable
        keys.sort()
        return keys[:at_most] & 0xFFFFFFFF

    def serve(self, bins: Ids, room: NDArray[np.bool_], atoms: Ids, edges: Ids) -> None:
        """Put structure i into bins[i] (all different) where it has room."""
        self.atoms[bins[room]] += atoms[room]
        self.edges[bins[room]] += edges[room]


def _deal(atoms: Ids, edges: Ids, n_bins: int, capacity: Capacity) -> Ids | None:
    """Bin of every structure, [n], dealt in the order given; None when one fits nowhere.

    A round pairs the next structures s_1, s_2, ... with the bins l_1 <= l_2 <= ... of fewest atoms.
    Dealing one by one would give s_i to l_i as long as no bin that was just served has less, that
    is l_i <= min over j < i of (l_j + s_j): there the round ends. The first structure of a round
    always finds room, so there is always progress.
    """
    n = len(atoms)
    bin_of_structure = np.full(n, -1, np.int64)
    bins = _Bins.empty(n_bins, capacity)
    waiting = np.empty(0, np.int64)
    position = 0
    while len(waiting) or position < n:
        first = int(waiting[0]) if len(waiting) else position
        chosen = bins.least_loaded(atoms[first], edges[first], len(waiting) + n - position)
        if not len(chosen):
            return None
        n_new = max(0, len(chosen) - len(waiting))
        served = np.concatenate([waiting, np.arange(position, position + n_new)])[: len(chosen)]
        loads = bins.atoms[chosen]
        overtaken = np.flatnonzero(loads[1:] > np.minimum.accumulate(loads + atoms[served])[:-1])
        n_served = int(overtaken[0]) + 1 if len(overtaken) else len(served)
        chosen, served = chosen[:n_served], served[:n_served]
        room = bins.has_room(chosen, atoms[served], edges[served])
        bins.serve(chosen, room, atoms[served], edges[served])
        bin_of_structure[served[room]] = chosen[room]
        position += max(0, n_served - len(waiting))
        waiting = np.concatenate([served[~room], waiting[n_served:]])
    return bin_of_structure


def _split(bin_of_structure: Ids, order: Ids, bin_rank: Ids) -> list[Ids]:
    """Bins as arrays of rising ids; bin b comes at place bin_rank[b]."""
    bin_of_id = np.empty_like(bin_of_structure)
    bin_of_id[order] = bin_rank[bin_of_structure]
    ids = _sorted_by(bin_of_id.astype(np.uint64) << np.uint64(32))
    ends = np.cumsum(np.bincount(bin_of_id, minlength=len(bin_rank))).tolist()
    return [ids[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)]


def least_steps(costs: Costs, capacity: Capacity, world_size: int) -> int:
    """The lower bound of the number of steps, by atoms, edges and structures."""
    n_bins = max(
        ceil_div(int(costs.n_atoms.sum()), capacity.max_atoms),
        ceil_div(int(costs.n_edges.sum()), max(capacity.max_edges, 1)),
        ceil_div(len(costs), capacity.batch_size) if capacity.batch_size else 1,
    )
    return ceil_div(n_bins, world_size)


def pack_evenly(
    costs: Costs, capacity: Capacity, world_size: int, bits: NDArray[np.uint64]
) -> tuple[Ids, Ids, int]:
    """Algorithm 1 up to the order of bins: (bin of the i-th structure dealt, its id, n_bins).

    ``bits`` [n_structures] are random; with zeros there is no jitter and ties go by id.
    Bins 0, 1, ... are filled first, so that the empty ones, if any, have the highest numbers.
    Raises ``InputError`` when a structure alone is above the capacity.
    """
    check_fits(costs, capacity)
    n_steps, more = least_steps(costs, capacity, world_size), 1
    orders = (True, False) if bits.any() else (False,)
    while True:
        for jitter in orders:
            order = _large_to_small(costs.n_atoms, bits, jitter=jitter)
            n_bins = n_steps * world_size
            dealt = _deal(costs.n_atoms[order], costs.n_edges[order], n_bins, capacity)
            if dealt is not None:
                return dealt, order, n_bins
        one_each = ceil_div(len(costs), world_size)  # enough, whatever the sizes
        n_steps, more, orders = min(n_steps + more, one_each), 2 * more, orders[:1]


def algorithm1(
    costs: Costs, capacity: Capacity, world_size: int, seed: int, epoch: int
) -> list[Ids]:
    """Bins of nearly equal atoms, within capacity, in random order (arXiv 2504.10700)."""
    bits = random_bits(len(costs), seed, epoch, _Stream.STRUCTURES)
    dealt, order, n_bins = pack_evenly(costs, capacity, world_size, bits)
    n_filled = min(n_bins, len(costs))  # the first round gives every bin one structure
    place = np.arange(n_bins)
    place[shuffled(n_filled, seed, epoch, _Stream.BINS)] = np.arange(n_filled)
    return _split(dealt, order, place)


def without_chance(costs: Costs, capacity: Capacity, world_size: int) -> list[Ids]:
    """Bins of nearly equal atoms, always the same: for evaluation, where order changes nothing."""
    dealt, order, n_bins = pack_evenly(costs, capacity, world_size, np.zeros(len(costs), np.uint64))
    return _split(dealt, order, np.arange(n_bins))


def fixed_count(
    costs: Costs, capacity: Capacity, world_size: int, seed: int, epoch: int
) -> list[Ids]:
    """batch_size structures in every bin, at random; the rest is spread evenly over a last step.

    The sizes of structures are not looked at: max_atoms and max_edges may be exceeded.
    """
    if capacity.batch_size is None:
        raise InputError("fixed_count needs Capacity.batch_size, the structures of one bin")
    order = shuffled(len(costs), seed, epoch, _Stream.STRUCTURES)
    n_full = len(costs) // (capacity.batch_size * world_size) * world_size
    full = order[: n_full * capacity.batch_size].reshape(n_full, capacity.batch_size)
    rest = order[full.size :]
    last = np.array_split(rest, world_size) if len(rest) else []
    return [*np.sort(full, axis=1), *(np.sort(ids) for ids in last)]


PACKERS: dict[str, Packer] = {"algorithm1": algorithm1, "fixed_count": fixed_count}
