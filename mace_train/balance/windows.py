"""Windows: equal parts of an epoch that are packed one by one, each like a small epoch.

A window is a number of whole steps, or a whole part of one step. Structures are assigned to windows
so that every window has nearly the same sizes: along an order in which neighbours are alike in
atoms and in edges, every block of n_windows structures gives one structure to every window, by a
random permutation. Which structures meet in a window is new in every epoch, its totals are not.

Cost: one sort per data set (kept with its ``Costs``), and O(n) per epoch for the assignment.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mace_train.balance.counter_rng import Stream, below, bits_at, start_of
from mace_train.jit import compiled

# of a window, where the numbers of ranks and steps allow it
FEWEST_BINS, USUAL_BINS, MOST_BINS = 256, 370, 512
MOST_BINS_OF_SMALL = 1536  # where few windows make up the epoch
MOST_STEPS = 1.02  # of the least number


@dataclass(frozen=True)
class Layout:
    """Windows of ``n_bins`` bins; bins [s world_size, (s + 1) world_size) of all are step s."""

    world_size: int
    n_windows: int
    n_bins: int

    @property
    def n_steps(self) -> int:
        """Steps of all windows together."""
        return self.n_windows * self.n_bins // self.world_size


def layout_for(n_steps: int, world_size: int, n_structures: int) -> Layout:
    """The layout with the fewest steps >= n_steps, and about 256 to 512 bins per window.

    There are at most 2 % more steps, or one: windows are larger where that needs it. Steps are not
    divided where there are few structures for a bin, so that no window is empty.
    """
    if world_size > MOST_BINS and n_structures < 2 * n_steps * world_size:
        return Layout(world_size, n_steps, world_size)
    if world_size > MOST_BINS:
        parts = [m for m in range(1, world_size + 1) if world_size % m == 0]
        sizes = [world_size // m for m in parts]
        good = [size for size in sizes if size >= FEWEST_BINS // 2]
        size = min(good, key=lambda size: abs(math.log(size / USUAL_BINS)))
        return Layout(world_size, n_steps * (world_size // size), size)
    least = min(n_steps, max(1, FEWEST_BINS // world_size))
    small = n_steps * world_size <= 4 * MOST_BINS_OF_SMALL
    most = max(1, (MOST_BINS_OF_SMALL if small else MOST_BINS) // world_size)
    while True:
        choices = range(least, max(least, min(n_steps, most)) + 1)
        best = min(choices, key=lambda p: (-(-n_steps // p) * p, abs(p * world_size - USUAL_BINS)))
        n_windows = -(-n_steps // best)
        if n_windows * best <= max(MOST_STEPS * n_steps, n_steps + 1):
            return Layout(world_size, n_windows, best * world_size)
        most *= 2


def locality_order(n_atoms: NDArray[np.int64], n_edges: NDArray[np.int64]) -> NDArray[np.int32]:
    """Structure ids along a path on which neighbours are alike in atoms and in edges per atom, [n].

    Bands of equal population by atoms, each sorted by edges per atom, every second one backwards.
    """
    n = len(n_atoms)
    n_bands = math.isqrt(n // FEWEST_BINS) + 1
    at = n_atoms if n_atoms.max() <= 4 * n else np.unique(n_atoms, return_inverse=True)[1]
    n_up_to = np.cumsum(np.bincount(at))
    band_of_value = (n_up_to - 1) * n_bands // n
    index_bits = max(1, (n - 1).bit_length())
    keys = _path_keys(at, n_atoms, n_edges, band_of_value, index_bits)
    keys.sort()
    keys &= np.uint64((1 << index_bits) - 1)
    return keys.astype(np.int32)


@compiled
def _path_keys(
    at: NDArray[np.int64],
    n_atoms: NDArray[np.int64],
    n_edges: NDArray[np.int64],
    band_of_value: NDArray[np.int64],
    index_bits: int,
) -> NDArray[np.uint64]:
    """Band, density (forwards or backwards) and index of every structure in one number."""
    keys = np.empty(len(n_atoms), np.uint64)
    most = 0
    for i in range(len(n_atoms)):
        most = max(most, (n_edges[i] << 8) // n_atoms[i])
    n_bits = 0
    while most >> n_bits:
        n_bits += 1
    last = (1 << n_bits) - 1
    for i in range(len(n_atoms)):
        band = band_of_value[at[i]]
        density = (n_edges[i] << 8) // n_atoms[i]
        if band & 1:
            density = last - density
        keys[i] = (((band << n_bits) | density) << index_bits) | i
    return keys


@dataclass(frozen=True)
class Assignment:
    """The structures of every window of one epoch."""

    ids: NDArray[np.int32]  # [n_structures], by window
    offsets: NDArray[np.int64]  # [n_windows + 1]

    def members(self, window: int) -> NDArray[np.int32]:
        """Ids [n] of the structures of a window."""
        return self.ids[self.offsets[window] : self.offsets[window + 1]]


def assign(order: NDArray[np.int32], n_windows: int, seed: int, epoch: int) -> Assignment:
    """Assign structures in ``order`` [n_structures] to windows, whose sizes differ by at most 1."""
    start = np.uint64(start_of(seed, epoch, Stream.WINDOWS))
    return Assignment(*_assign(order, n_windows, start))


@compiled
def _assign(
    order: NDArray[np.int32], n_windows: int, start: np.uint64
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    n = len(order)
    roll = below(bits_at(start, n), n)
    n_blocks, rest = n // n_windows, n % n_windows
    window = np.arange(n_windows)
    offsets = np.zeros(n_windows + 1, np.int64)
    # the incomplete block comes first: its members say which windows have one structure more
    for i in range(rest):
        j = i + below(bits_at(start, i), n_windows - i)
        window[i], window[j] = window[j], window[i]
        offsets[window[i] + 1] = 1
    for w in range(n_windows):
        offsets[w + 1] += offsets[w] + n_blocks
    ids = np.empty(n, np.int32)
    n_held = np.zeros(n_windows, np.int64)
    for i in range(rest):
        w = window[i]
        ids[offsets[w]] = order[(i + roll) % n]
        n_held[w] = 1
    for block in range(n_blocks):
        first = rest + block * n_windows
        for i in range(n_windows):
            j = i + below(bits_at(start, first + i), n_windows - i)
            window[i], window[j] = window[j], window[i]
            w = window[i]
            position = first + i + roll
            if position >= n:
                position -= n
            ids[offsets[w] + n_held[w]] = order[position]
            n_held[w] += 1
    return ids, offsets
