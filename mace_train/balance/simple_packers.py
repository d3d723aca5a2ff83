"""Packers to compare with: a fixed number of structures, and first fit in random order."""

import numpy as np

from mace_train.balance.bins import Bins, Ints
from mace_train.balance.costs import Capacity, Costs, ceil_div, check_fits
from mace_train.balance.counter_rng import Stream, shuffled
from mace_train.errors import InputError
from mace_train.jit import compiled

N_OPEN = 256  # bins that first fit looks into


def fixed_count(costs: Costs, capacity: Capacity, world_size: int, seed: int, epoch: int) -> Bins:
    """batch_size structures in every bin, at random; the rest is spread evenly over a last step.

    The sizes of structures are not looked at: capacities may be exceeded.
    """
    if capacity.batch_size is None:
        raise InputError("fixed_count needs Capacity.batch_size, the structures of one bin")
    order = shuffled(len(costs), seed, epoch, Stream.STRUCTURES)
    n_full = len(costs) // (capacity.batch_size * world_size) * world_size
    full = order[: n_full * capacity.batch_size].reshape(n_full, capacity.batch_size)
    rest = order[full.size :]
    last = np.array_split(rest, world_size) if len(rest) else []
    offsets = np.arange(n_full + 1) * capacity.batch_size
    ends = offsets[-1] + np.cumsum([len(ids) for ids in last], dtype=np.int64)
    ids = np.concatenate([np.sort(full, axis=1).ravel(), *(np.sort(ids) for ids in last)])
    return Bins(ids, np.concatenate([offsets, ends]))


def first_fit(costs: Costs, capacity: Capacity, world_size: int, seed: int, epoch: int) -> Bins:
    """Structures in random order, each to the first of the last 256 bins with room for it.

    (First fit with bounded space; batch_size plays no role.) Where the number of bins is not a
    multiple of world_size, the fullest are halved. Steps are random groups of bins. O(n).
    """
    check_fits(costs, capacity)
    order = shuffled(len(costs), seed, epoch, Stream.STRUCTURES)
    bin_of = _first_fit(costs.sizes(order), capacity.limits, N_OPEN)
    n_bins = _whole_steps(bin_of, world_size)
    n_filled = min(n_bins, len(costs))
    position = np.arange(n_bins)
    position[shuffled(n_filled, seed, epoch, Stream.BINS)] = np.arange(n_filled)
    return Bins.of(position[bin_of], order, n_bins)


def _whole_steps(bin_of: Ints, world_size: int) -> int:
    """Halve the bins of most structures until their number is a multiple, in place; the number."""
    n_used = int(bin_of.max()) + 1
    n_bins = ceil_div(n_used, world_size) * world_size
    while n_used < n_bins:
        counts = np.bincount(bin_of)
        fullest = np.argsort(-counts, kind="stable")[: n_bins - n_used]
        fullest = fullest[counts[fullest] > 1]
        if not len(fullest):
            break  # every structure has a bin of its own
        for k in fullest:
            members = np.flatnonzero(bin_of == k)
            bin_of[members[: len(members) // 2]] = n_used
            n_used += 1
    return n_bins


@compiled
def _first_fit(sizes: Ints, limits: Ints, n_open: int) -> Ints:
    """Bin of every structure, [n], in the order given."""
    bin_of = np.empty(len(sizes), np.int64)
    room = np.zeros((len(sizes), 3), np.int64)
    n_bins = 0
    for i in range(len(sizes)):
        a, e, m = sizes[i]
        k = max(0, n_bins - n_open)
        while k < n_bins and (room[k, 0] < a or room[k, 1] < e or room[k, 2] < m):
            k += 1
        if k == n_bins:
            room[k] = limits
            n_bins += 1
        room[k, 0] -= a
        room[k, 1] -= e
        room[k, 2] -= m
        bin_of[i] = k
    return bin_of
