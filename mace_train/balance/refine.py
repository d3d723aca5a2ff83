"""The two loops of two-dimensional packing: greedy placement and local refinement.

Sizes are integers in units of a bin's mean load, ``UNIT``; both dimensions (atoms, edges) count
alike. If both are equal in all bins, so is every linear cost, whatever its coefficients.

Capacities are on the true sizes: atoms, edges and memory. All comparisons are of integers.
"""

import numpy as np
from numpy.typing import NDArray

from mace_train.jit import compiled

UNIT = 1 << 20  # a bin's mean load in the scaled sizes
NOWHERE = -1
_LOAD_SHIFT = 6  # loads are compared in units of 2^-14 of the mean ...
_DIRECTION = 511  # ... and weighed by directions of 9 bits: sums stay below 2^31
_NO_ROOM = np.int32(2**31 - 1)
_ABOVE = np.int64(UNIT) << 20
_N_PARTNERS = 4  # bins among which the exchange partner of a bin is chosen
_N_TRIED = 24  # structures of a bin that are tried in one exchange

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]


@compiled
def place(sizes: I32, scaled: I64, order: I64, caps: I32, n_bins: int) -> tuple[I32, int]:
    """Greedy: each structure in turn to the bin in which it adds least to the squared loads.

    That is the smallest scalar product of its size and the bin's load, among the bins with room in
    all capacities, or among all where none has room: ``refine`` then corrects what is too full.
    sizes [n, 3] atoms, edges, memory; scaled [n, 2]; caps [3].
    Returns the bin of every structure [n] and the number of those without room.
    """
    atoms, edges, memory = np.zeros((3, n_bins), np.int32)
    loads_a, loads_e = np.zeros((2, n_bins), np.int32)
    true_a, true_e = np.zeros((2, n_bins), np.int64)
    scores = np.empty(n_bins, np.int32)
    bin_of = np.full(len(order), NOWHERE, np.int32)
    n_left = 0
    for i in order:
        room_a = np.int32(caps[0] - sizes[i, 0])
        room_e = np.int32(caps[1] - sizes[i, 1])
        room_m = np.int32(caps[2] - sizes[i, 2])
        most = max(scaled[i, 0], scaled[i, 1], 1)
        weight_a = np.int32(scaled[i, 0] * _DIRECTION // most)
        weight_e = np.int32(scaled[i, 1] * _DIRECTION // most)
        best = _NO_ROOM
        for k in range(n_bins):
            score = np.int32(weight_a * loads_a[k] + weight_e * loads_e[k])
            full = (atoms[k] > room_a) | (edges[k] > room_e) | (memory[k] > room_m)
            score = _NO_ROOM if full else score
            scores[k] = score
            best = min(best, score)
        if best == _NO_ROOM:
            n_left += 1
            for k in range(n_bins):
                scores[k] = np.int32(weight_a * loads_a[k] + weight_e * loads_e[k])
                best = min(best, scores[k])
        chosen = 0
        while scores[chosen] != best:
            chosen += 1
        bin_of[i] = chosen
        atoms[chosen] += sizes[i, 0]
        edges[chosen] += sizes[i, 1]
        memory[chosen] += sizes[i, 2]
        true_a[chosen] += scaled[i, 0]
        true_e[chosen] += scaled[i, 1]
        loads_a[chosen] = min(true_a[chosen] >> _LOAD_SHIFT, 1 << 20)
        loads_e[chosen] = min(true_e[chosen] >> _LOAD_SHIFT, 1 << 20)
    return bin_of, n_left


@compiled
def _slots(bin_of: I32, n_bins: int) -> tuple[I32, I64]:
    """(structures of every bin [n_bins, most + spare], their numbers [n_bins])."""
    count = np.zeros(n_bins, np.int64)
    for k in bin_of:
        if k >= 0:
            count[k] += 1
    most = 0
    for k in range(n_bins):
        most = max(most, count[k])
    slots = np.empty((n_bins, most + most // 4 + 8), np.int32)
    for k in range(n_bins):
        count[k] = 0
    for i in range(len(bin_of)):
        k = bin_of[i]
        if k >= 0:
            slots[k, count[k]] = i
            count[k] += 1
    return slots, count


@compiled
def make_room(sizes: I32, bin_of: I32, caps: I32, n_bins: int, most: int) -> int:
    """Remove structures from bins above a capacity; place each by moving one other if that helps.

    Returns the number of those that stay without a bin (NOWHERE). O(n n_bins) per structure, so it
    is not tried when there are more than ``most``.
    """
    loads = np.zeros((n_bins, 3), np.int64)
    for i in range(len(bin_of)):
        for d in range(3):
            loads[bin_of[i], d] += sizes[i, d]
    n_left = 0
    for i in range(len(bin_of)):
        k = bin_of[i]
        if not _fits(loads, caps, k):
            bin_of[i] = NOWHERE
            n_left += 1
            for d in range(3):
                loads[k, d] -= sizes[i, d]
    if n_left > most:
        return n_left
    for i in range(len(bin_of)):
        if bin_of[i] >= 0:
            continue
        for j in range(len(bin_of)):
            k = bin_of[j]
            if k < 0 or not _fits_after(loads, sizes, caps, k, i, j):
                continue
            other = 0
            while other < n_bins and (
                other == k or not _fits_after(loads, sizes, caps, other, j, NOWHERE)
            ):
                other += 1
            if other < n_bins:
                for d in range(3):
                    loads[k, d] += sizes[i, d] - sizes[j, d]
                    loads[other, d] += sizes[j, d]
                bin_of[i], bin_of[j] = k, other
                n_left -= 1
                break
    return n_left


@compiled
def _fits(loads: I64, caps: I32, k: int) -> bool:
    return loads[k, 0] <= caps[0] and loads[k, 1] <= caps[1] and loads[k, 2] <= caps[2]


@compiled
def _fits_after(loads: I64, sizes: I32, caps: I32, k: int, added: int, removed: int) -> bool:
    fits = True
    for d in range(3):
        load = loads[k, d] + sizes[added, d]
        if removed >= 0:
            load -= sizes[removed, d]
        fits = fits and load <= caps[d]
    return fits


@compiled
def refine(
    sizes: I32, scaled: I64, bin_of: I32, caps: I32, n_bins: int, tolerance: int, most: int
) -> int:
    """Even out atoms and edges by exchanges between two bins, in place; the largest excess left.

    Takes the bin with the largest excess over the mean (in atoms or edges; those above a capacity
    come first) and the bins whose deviation complements it best; applies the swap or move that
    lowers the sum of their squared deviations most and makes no capacity exceeded. Ends at
    ``tolerance`` (of UNIT) or after ``most`` exchanges tried.
    """
    slots, count = _slots(bin_of, n_bins)
    loads = np.zeros((n_bins, 3), np.int64)
    excess = np.zeros((n_bins, 2), np.int64)
    for k in range(n_bins):
        for s in range(count[k]):
            i = slots[k, s]
            for d in range(3):
                loads[k, d] += sizes[i, d]
            excess[k, 0] += scaled[i, 0]
            excess[k, 1] += scaled[i, 1]
    for d in range(2):
        total = 0
        for k in range(n_bins):
            total += excess[k, d]
        for k in range(n_bins):
            excess[k, d] -= total // n_bins
    stuck = np.zeros(n_bins, np.int64)  # exchanges that failed since the bin last changed
    partners = np.empty(_N_PARTNERS, np.int64)
    turn = 0
    for _ in range(most):
        high, worst = -1, tolerance
        for k in range(n_bins):
            x = max(excess[k, 0], excess[k, 1])
            if not _fits(loads, caps, k):
                x += _ABOVE
            if x > worst and stuck[k] < 3:
                high, worst = k, x
        if high < 0:
            break
        n_partners = _partners(excess, high, stuck[high], partners)
        gain, place_high, place_low, low = 0, -1, -1, -1
        for p in range(n_partners):
            k = partners[p]
            turn += 1
            found = _best_exchange(sizes, scaled, slots, count, loads, excess, caps, high, k, turn)
            if found[0] > gain:
                gain, place_high, place_low = found
                low = k
        if low < 0:
            stuck[high] += 1
            continue
        _exchange(sizes, scaled, slots, count, loads, excess, high, low, place_high, place_low)
        stuck[high], stuck[low] = 0, 0
    largest = 0
    for k in range(n_bins):
        largest = max(largest, excess[k, 0], excess[k, 1])
        for s in range(count[k]):
            bin_of[slots[k, s]] = k
    return largest


@compiled
def _partners(excess: I64, high: int, skip: int, partners: I64) -> int:
    """The bins whose deviation adds up with that of ``high`` to the least; their number.

    ``skip`` groups of them have been tried before and are passed over.
    """
    n_wanted = min(len(partners) * (skip + 1), len(excess) - 1)
    best = np.full(len(partners) * (skip + 1), np.iinfo(np.int64).max)
    ids = np.full(len(best), -1)
    for k in range(len(excess)):
        if k == high:
            continue
        x, y = excess[high, 0] + excess[k, 0], excess[high, 1] + excess[k, 1]
        distance = x * x + y * y
        if distance >= best[n_wanted - 1]:
            continue
        s = n_wanted - 1
        while s > 0 and best[s - 1] > distance:
            best[s], ids[s] = best[s - 1], ids[s - 1]
            s -= 1
        best[s], ids[s] = distance, k
    n = 0
    for s in range(len(partners) * skip, n_wanted):
        partners[n] = ids[s]
        n += 1
    return n


@compiled
def _best_exchange(
    sizes: I32,
    scaled: I64,
    slots: I32,
    count: I64,
    loads: I64,
    excess: I64,
    caps: I32,
    high: int,
    low: int,
    turn: int,
) -> tuple[int, int, int]:
    """(gain, place in high, place in low or -1 for a move) of the best exchange; gain 0: none."""
    n_high, n_low = count[high], count[low]
    x_high, y_high = excess[high, 0], excess[high, 1]
    x_low, y_low = excess[low, 0], excess[low, 1]
    before = x_high * x_high + y_high * y_high + x_low * x_low + y_low * y_low
    gain, best_high, best_low = 0, -1, -1
    may_move = n_low < slots.shape[1] and n_high > 1
    for p in range(min(n_high, _N_TRIED)):
        s = (p + turn * _N_TRIED) % n_high
        i = slots[high, s]
        for q in range(-1 if may_move else 0, min(n_low, _N_TRIED)):
            t = -1 if q < 0 else (q + turn * _N_TRIED) % n_low
            dx, dy = scaled[i, 0], scaled[i, 1]
            if t >= 0:
                j = slots[low, t]
                dx, dy = dx - scaled[j, 0], dy - scaled[j, 1]
            x, y, u, v = x_high - dx, y_high - dy, x_low + dx, y_low + dy
            lowered = before - (x * x + y * y + u * u + v * v)
            if lowered <= gain:
                continue
            fits = True
            for d in range(3):
                delta = np.int64(sizes[i, d])
                if t >= 0:
                    delta -= sizes[slots[low, t], d]
                # where a capacity is exceeded already, it may be by less
                fits = fits and loads[low, d] + delta <= max(np.int64(caps[d]), loads[low, d])
                fits = fits and loads[high, d] - delta <= max(np.int64(caps[d]), loads[high, d])
            if fits:
                gain, best_high, best_low = lowered, s, t
    return gain, best_high, best_low


@compiled
def _exchange(
    sizes: I32,
    scaled: I64,
    slots: I32,
    count: I64,
    loads: I64,
    excess: I64,
    high: int,
    low: int,
    place_high: int,
    place_low: int,
) -> None:
    """Swap two structures, or (place_low -1) move one from ``high`` to ``low``."""
    i = slots[high, place_high]
    _add(sizes, scaled, loads, excess, i, low, 1)
    _add(sizes, scaled, loads, excess, i, high, -1)
    if place_low >= 0:
        j = slots[low, place_low]
        _add(sizes, scaled, loads, excess, j, high, 1)
        _add(sizes, scaled, loads, excess, j, low, -1)
        slots[high, place_high], slots[low, place_low] = j, i
        return
    slots[low, count[low]] = i
    count[low] += 1
    count[high] -= 1
    slots[high, place_high] = slots[high, count[high]]


@compiled
def _add(sizes: I32, scaled: I64, loads: I64, excess: I64, i: int, k: int, sign: int) -> None:
    for d in range(3):
        loads[k, d] += sign * sizes[i, d]
    for d in range(2):
        excess[k, d] += sign * scaled[i, d]
