"""Algorithm 1: the iterative multi-objective bin packing of Firoz et al., arXiv 2504.10700.

As published, as far as descriptions of the paper tell (its listing was not at hand): the number of
bins is a multiple of the number of GPUs; structures are taken from large to small by atoms and
assigned to bins in rounds by the room each bin has left, and bins without room are passed over.
Every bin of the epoch so ends with nearly the same number of atoms, completed by ever smaller
structures: *any* world_size of them are a matched step. Steps are therefore random groups of bins;
sorting bins by cost would make some steps systematically unlike others.

Ours, where the descriptions are silent or training wants more:

- a round fills the bins with the fewest atoms first and ends where a bin just filled would be next
  again, so that it equals "the next structure goes to the bin with the fewest atoms" one by one;
- edges and memory are capacities, too. A structure that its bin has no room for comes first in the
  next round, where it gets the bin of fewest atoms among those with room;
- sizes are compared with +-12 % of random jitter, new in every epoch: near-equal structures change
  order, so bins are remixed also where no two structures have the same size. Where this order
  fails at the lower bound of steps the exact one (random ties only) is tried;
- the number of steps starts at its lower bound. When a structure fits nowhere, a step is added and
  everything packed again (then 2, 4, ... more, so that a loose bound costs few repetitions).

Cost: O(n log n) for one sort, and about n / n_bins rounds of O(n_bins log n_bins).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mace_train.balance.bins import Bins, Ints, StructureIds
from mace_train.balance.bounds import least_steps
from mace_train.balance.costs import Capacity, Costs, ceil_div, check_fits
from mace_train.balance.counter_rng import Stream, random_bits, shuffled, sorted_by


def _large_to_small(atoms: Ints, bits: NDArray[np.uint64], *, jitter: bool) -> StructureIds:
    """Structure ids from large to small; ties (jitter: all near-equal sizes) by random bits."""
    size = atoms
    if jitter:
        size = atoms * (224 + (bits >> np.uint64(58)).astype(np.int64))  # 256 x (0.875 ... 1.121)
    largest = int(size.max())
    shift = np.uint64(64 - largest.bit_length())
    keys = (largest - size).astype(np.uint64) << shift
    keys |= bits & ((np.uint64(1) << shift) - np.uint64(1))
    return sorted_by(keys)


@dataclass
class _Loads:
    """Loads of the bins while structures are assigned to them."""

    limits: Ints  # [3]: atoms, edges, memory
    loads: Ints  # [n_bins, 3]

    def has_room(self, bins: Ints | slice, sizes: Ints) -> NDArray[np.bool_]:
        """Whether bins[i] has room for a structure of sizes[i], [3] or [n, 3]."""
        return np.asarray((self.loads[bins] <= self.limits - sizes).all(axis=-1))

    def least_loaded(self, sizes: Ints, at_most: int) -> Ints:
        """Bins by ascending atoms, [<= at_most], from the best one for a structure to those that it
        would then overtake; only bins with room for it; empty when there is none."""
        bins = np.flatnonzero(self.has_room(slice(None), sizes))
        if not len(bins):
            return bins
        atoms = self.loads[bins, 0]
        near = atoms <= atoms.min() + sizes[0]
        keys = (atoms[near] << 32) | bins[near]  # unique, so any sort is stable
        keys.sort()
        return keys[:at_most] & 0xFFFFFFFF


def _assign(sizes: Ints, n_bins: int, capacity: Capacity) -> Ints | None:
    """Bin of every structure [n], assigned in the order given; None when one fits nowhere.

    A round pairs the next structures s_1, s_2, ... with the bins l_1 <= l_2 <= ... of fewest atoms.
    Assigning one by one would give s_i to l_i as long as no bin that was just filled has less, that
    is l_i <= min over j < i of (l_j + s_j): there the round ends. The first structure of a round
    always finds room, so there is always progress.
    """
    n = len(sizes)
    bin_of_structure = np.full(n, -1, np.int64)
    bins = _Loads(capacity.limits, np.zeros((n_bins, 3), np.int64))
    waiting = np.empty(0, np.int64)
    position = 0
    while len(waiting) or position < n:
        first = int(waiting[0]) if len(waiting) else position
        chosen = bins.least_loaded(sizes[first], len(waiting) + n - position)
        if not len(chosen):
            return None
        n_new = max(0, len(chosen) - len(waiting))
        served = np.concatenate([waiting, np.arange(position, position + n_new)])[: len(chosen)]
        atoms = bins.loads[chosen, 0]
        after = np.minimum.accumulate(atoms + sizes[served, 0])
        overtaken = np.flatnonzero(atoms[1:] > after[:-1])
        n_served = int(overtaken[0]) + 1 if len(overtaken) else len(served)
        chosen, served = chosen[:n_served], served[:n_served]
        room = bins.has_room(chosen, sizes[served])
        bins.loads[chosen[room]] += sizes[served[room]]
        bin_of_structure[served[room]] = chosen[room]
        position += max(0, n_served - len(waiting))
        waiting = np.concatenate([served[~room], waiting[n_served:]])
    return bin_of_structure


def pack_evenly(
    costs: Costs, capacity: Capacity, world_size: int, bits: NDArray[np.uint64]
) -> tuple[Ints, StructureIds, int]:
    """Algorithm 1 up to the order of bins: (bin of the i-th structure assigned, its id, n_bins).

    ``bits`` [n_structures] are random; with zeros there is no jitter and ties go by id.
    Bins 0, 1, ... are filled first, so that the empty ones, if any, have the highest numbers.
    Raises ``InputError`` when a structure alone is above the capacity.
    """
    check_fits(costs, capacity)
    n_steps, more = least_steps(costs, capacity, world_size), 1
    orders = (True, False) if bits.any() else (False,)
    sizes = np.stack(costs.dimensions, axis=1)
    while True:
        for jitter in orders:
            order = _large_to_small(costs.n_atoms, bits, jitter=jitter)
            n_bins = n_steps * world_size
            assigned = _assign(sizes[order], n_bins, capacity)
            if assigned is not None:
                return assigned, order, n_bins
        one_each = ceil_div(len(costs), world_size)  # enough, whatever the sizes
        n_steps, more, orders = min(n_steps + more, one_each), 2 * more, orders[:1]


def algorithm1(costs: Costs, capacity: Capacity, world_size: int, seed: int, epoch: int) -> Bins:
    """Bins of nearly equal atoms, within capacity, in random order (arXiv 2504.10700)."""
    bits = random_bits(len(costs), seed, epoch, Stream.STRUCTURES)
    assigned, order, n_bins = pack_evenly(costs, capacity, world_size, bits)
    n_filled = min(n_bins, len(costs))  # the first round gives every bin one structure
    position = np.arange(n_bins)
    position[shuffled(n_filled, seed, epoch, Stream.BINS)] = np.arange(n_filled)
    return Bins.of(position[assigned], order, n_bins)


def deterministic_bins(costs: Costs, capacity: Capacity, world_size: int) -> Bins:
    """Bins of nearly equal atoms without randomness: for evaluation, where order is irrelevant."""
    assigned, order, n_bins = pack_evenly(
        costs, capacity, world_size, np.zeros(len(costs), np.uint64)
    )
    return Bins.of(assigned, order, n_bins)
