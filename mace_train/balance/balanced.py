"""Two-dimensional packing with local refinement: every bin of a window alike in atoms and in edges.

Steps per epoch come from the lower bound, with what trial windows need above it. The structures of
an epoch are assigned to windows (windows.py). A window is packed from large to small, each
structure to the bin where it adds least to the squared loads, among those with room in all
capacities; then exchanges between two bins even out atoms and edges to 0.15 % (refine.py). Small
windows are packed several times and the best is kept. Sizes are compared with +-30 % of random
jitter, so that bins are of other structures in every epoch. Bins of a window of several steps are
sorted by cost, neighbours make a step, and the steps come in random order; ranks are random.

A window follows from (seed, epoch, window) alone, so training starts, or restarts in mid-epoch, as
soon as one window is packed. Structures that a window has no room for (rare, see ``usual_steps``)
make steps of their own at the end of the epoch. No capacity is ever exceeded, nothing is lost, and
the number of steps is equal on all ranks.

Cost: O(n n_bins_of_window) comparisons in vector instructions; 2.65 M structures take seconds.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mace_train.balance.bins import Bins, Ints, StructureIds
from mace_train.balance.bounds import least_steps
from mace_train.balance.costs import Capacity, Costs, ceil_div, check_fits
from mace_train.balance.counter_rng import Stream, bits_of, random_bits, shuffled, start_of
from mace_train.balance.refine import NOWHERE, UNIT, make_room, place, refine
from mace_train.balance.windows import Assignment, assign, layout_for

TOLERANCE = UNIT // 667  # 0.15 % of the mean load
ROUNDS_PER_BIN = 3  # exchanges tried, in a window that is not small
WORK_OF_TRIALS, MOST_TRIALS = 150_000, 8  # windows that must fit in the number of steps
WORK = 8_000  # structures that are packed again and again in a small window
MOST_REPEATED, MOST_MOVED = 32, 3


@dataclass(frozen=True)
class PackedWindow:
    """One window: the bin of every structure, NOWHERE for those without room."""

    ids: NDArray[np.int32]
    bin_of: NDArray[np.int32]
    largest: int
    """Cost of the largest bin; 0 where only one packing was tried."""
    n_left: int


def pack_window(
    costs: Costs,
    ids: NDArray[np.int32],
    limits: Ints,
    n_bins: int,
    seed: int,
    epoch: int,
    part: int,
) -> PackedWindow:
    """The best packing of the structures ``ids`` [n] into ``n_bins`` bins.

    ``limits`` [3] are those of ``Capacity``; a small window is packed several times.
    """
    ids = np.sort(ids)
    sizes = costs.sizes(ids)
    scaled = _scaled(sizes, n_bins)
    n_tries = max(1, min(MOST_REPEATED, WORK // len(ids)))
    cost = costs.edges_per_atom * sizes[:, 0] + sizes[:, 1]
    rounds = ROUNDS_PER_BIN * n_bins if n_tries == 1 else 40 * n_bins
    tolerance = TOLERANCE if n_tries == 1 else 0
    narrow, caps = sizes.astype(np.int32), limits.astype(np.int32)
    best: PackedWindow | None = None
    for attempt in range(MOST_REPEATED):
        start = np.uint64(start_of(seed, epoch, Stream.SIZES, (part << 8) + attempt))
        order = _large_to_small(scaled, ids, start, 30 if attempt % 8 < 7 else 0)
        bin_of, n_left = place(narrow, scaled, order, caps, n_bins)
        refine(narrow, scaled, bin_of, caps, n_bins, tolerance, rounds)
        if n_left:
            n_left = make_room(narrow, bin_of, caps, n_bins, MOST_MOVED)
        found = PackedWindow(
            ids, bin_of, _largest(bin_of, cost, n_bins) if n_tries > 1 else 0, n_left
        )
        if best is None or (found.n_left, found.largest) < (best.n_left, best.largest):
            best = found
        if attempt + 1 >= n_tries and (best.n_left == 0 or attempt >= 1):
            break
    assert best is not None
    return best


def _scaled(sizes: Ints, n_bins: int) -> Ints:
    """Atoms and edges in units of a bin's mean load over UNIT, [n, 2]."""
    totals = np.maximum(sizes[:, :2].sum(axis=0), 1)
    return (sizes[:, :2] * ((n_bins << 40) // totals)) >> 20


def _large_to_small(scaled: Ints, ids: NDArray[np.int32], start: np.uint64, percent: int) -> Ints:
    """Indices from large to small; sizes with random jitter of +-percent, by id."""
    size = scaled[:, 0] + scaled[:, 1] + np.maximum(scaled[:, 0], scaled[:, 1])
    random = (bits_of(start, ids) >> np.uint64(54)).astype(np.int64)  # 0 ... 1023
    factor = 512 * 100 + (random - 512) * percent
    return np.argsort(-size * factor, kind="stable")


def _largest(bin_of: NDArray[np.int32], cost: Ints, n_bins: int) -> int:
    """The largest cost of a bin."""
    placed = bin_of >= 0
    loads = np.zeros(n_bins, np.int64)
    np.add.at(loads, bin_of[placed], cost[placed])
    return int(loads.max())


class Packing:
    """The bins of one epoch, window by window."""

    def __init__(
        self, costs: Costs, capacity: Capacity, world_size: int, seed: int, epoch: int, n_steps: int
    ) -> None:
        self.costs, self.limits = costs, capacity.limits
        self.seed, self.epoch = seed, epoch
        self.layout = layout_for(n_steps, world_size, len(costs))

    @cached_property
    def _assignment(self) -> Assignment:
        return assign(self.costs.locality_order, self.layout.n_windows, self.seed, self.epoch)

    def window(self, window: int) -> tuple[Bins, NDArray[np.int32]]:
        """(bins of a window by step and rank, ids [n] of structures without room)."""
        return self._pack(self._assignment.members(window), self.layout.n_bins, window)

    def of_rank(self, rank: int, first_step: int) -> Iterator[StructureIds]:
        """One rank's bins, ids [n] each, from a step on; packs only their windows, not ``rest``."""
        world_size, n_bins = self.layout.world_size, self.layout.n_bins
        made = NOWHERE
        for step in range(first_step, self.layout.n_steps):
            window, position = divmod(step * world_size + rank, n_bins)
            if window != made:
                (bins, _), made = self.window(window), window
            yield bins[position]

    def fullest(self) -> list[int]:
        """The windows that are fullest relative to the capacity, fullest first."""
        by_window = self._assignment.ids
        n_tried = max(2, min(MOST_TRIALS, WORK_OF_TRIALS * self.layout.n_windows // len(by_window)))
        fills = [
            np.add.reduceat(counts[by_window], self._assignment.offsets[:-1]) / limit
            for counts, limit in zip(self.costs.dimensions, self.limits, strict=True)
            if limit > 0
        ]
        return np.argsort(-np.max(fills, axis=0), kind="stable")[:n_tried].tolist()

    def rest(self, ids: NDArray[np.int32]) -> Bins:
        """The fewest whole steps for structures ``ids`` [n] for which no window had room."""
        n_bins = self.layout.world_size
        while True:
            bins, left = self._pack(np.sort(ids), n_bins, self.layout.n_windows)
            if not len(left):
                return bins
            n_bins += self.layout.world_size

    def _pack(
        self, members: NDArray[np.int32], n_bins: int, part: int
    ) -> tuple[Bins, NDArray[np.int32]]:
        packed = pack_window(self.costs, members, self.limits, n_bins, self.seed, self.epoch, part)
        placed = packed.bin_of != NOWHERE
        ids, bin_of = packed.ids[placed], packed.bin_of[placed]
        position_of = self._positions(ids, bin_of, n_bins, part)
        return Bins.of(position_of[bin_of], ids.astype(np.int64), n_bins), packed.ids[~placed]

    def _positions(
        self, ids: NDArray[np.int32], bin_of: NDArray[np.int32], n_bins: int, part: int
    ) -> Ints:
        """Position of every bin [n_bins]: steps of equal cost, in random order, ranks random."""
        world_size = self.layout.world_size
        order = shuffled(n_bins, self.seed, self.epoch, Stream.BINS, 2 * part + 2)
        if n_bins > world_size:
            loads = np.zeros(n_bins, np.int64)
            np.add.at(loads, bin_of, self.costs.scaled[ids])
            steps = order[np.argsort(loads[order], kind="stable")].reshape(-1, world_size)
            n_steps = len(steps)
            steps = steps[shuffled(n_steps, self.seed, self.epoch, Stream.BINS, 2 * part + 3)]
            bits = random_bits(n_bins, self.seed, self.epoch, Stream.RANKS, part)
            ranks = np.argsort(bits.reshape(n_steps, world_size), axis=1, kind="stable")
            order = np.take_along_axis(steps, ranks, axis=1).ravel()
        position_of = np.empty(n_bins, np.int64)
        position_of[order] = np.arange(n_bins)
        return position_of


def usual_steps(costs: Costs, capacity: Capacity, world_size: int) -> int:
    """Steps of every epoch: from the lower bound on, the fewest for which the windows of a
    trial assignment fit; the fullest of them are packed.

    A function of the sizes alone. Raises ``InputError`` when a structure fits into no bin.
    """
    check_fits(costs, capacity)
    n_steps = least_steps(costs, capacity, world_size)
    one_each = ceil_div(len(costs), world_size)
    while n_steps < one_each:
        packing = Packing(costs, capacity, world_size, 0, -1, n_steps)
        if not any(len(packing.window(window)[1]) for window in packing.fullest()):
            break
        n_steps = max(packing.layout.n_steps, n_steps) + max(1, n_steps // 400)
    return layout_for(n_steps, world_size, len(costs)).n_steps


def balanced(costs: Costs, capacity: Capacity, world_size: int, seed: int, epoch: int) -> Bins:
    """Bins alike in atoms and in edges, within capacity, in random order."""
    n_steps = usual_steps(costs, capacity, world_size)
    while True:
        packing = Packing(costs, capacity, world_size, seed, epoch, n_steps)
        n_windows = packing.layout.n_windows
        parts, left = zip(*(packing.window(w) for w in range(n_windows)), strict=True)
        if not any(map(len, left)):
            return Bins.joined(list(parts))
        if n_windows > 1:
            return Bins.joined([*parts, packing.rest(np.concatenate(left))])
        n_steps += 1
