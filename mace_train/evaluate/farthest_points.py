"""Farthest-point sampling: rows of a matrix, each as far as possible from those before it.

    i_0 from the seed,   i_k = argmax_i min_{j < k} |x_i - x_(i_j)|      (the first one of equals)

(Gonzalez, Theor. Comput. Sci. 38, 293 (1985): no choice of as many rows has less than half of the
largest distance that is left.) A step reads the matrix once, so k of n rows of d columns take k n d
operations; the matrix and one distance per row are all that is held.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mace_train.jit import compiled

_LANES = 16
_ROWS_PER_TASK = 1 << 14


@compiled
def _nearer(points: Any, chosen: Any, nearest: Any, begin: int, end: int) -> Any:
    """Lower ``nearest`` [n] to the squared distances from ``chosen``; (index, value) of the most.

    Sums are taken in lanes of a fixed number, so that they are the same on every processor.
    """
    n_columns = points.shape[1]
    whole = n_columns - n_columns % _LANES
    lanes = np.zeros(_LANES, dtype=np.float32)
    best, largest = begin, np.float32(-1.0)
    for i in range(begin, end):
        lanes[:] = 0
        for first in range(0, whole, _LANES):
            for k in range(_LANES):
                step = points[i, first + k] - chosen[first + k]
                lanes[k] += step * step
        for k in range(whole, n_columns):
            step = points[i, k] - chosen[k]
            lanes[k - whole] += step * step
        distance = np.float32(0.0)
        for k in range(_LANES):
            distance += lanes[k]
        if distance < nearest[i]:
            nearest[i] = distance
        if nearest[i] > largest:
            best, largest = i, nearest[i]
    return best, largest


def farthest_points(
    points: NDArray[np.float32],
    n: int,
    seed: int,
    *,
    n_threads: int = 1,
    advance: Callable[[], None] = lambda: None,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Rows [m] of points [n_points, d], and the distance [m] of each to those before it.

    The first has distance inf. There are fewer than ``n`` where all others equal a chosen one.
    Results do not depend on the number of threads. ``advance`` is called after every row.

    >>> line = np.array([[0.0], [1.0], [4.0], [10.0]], dtype=np.float32)
    >>> chosen, distances = farthest_points(line, 3, seed=0)  # begins with the last
    >>> chosen.tolist(), distances.tolist()
    ([3, 0, 2], [inf, 10.0, 4.0])
    """
    n_points = len(points)
    following = int(np.random.default_rng(seed).integers(n_points))
    nearest = np.full(n_points, np.inf, dtype=np.float32)
    chosen, distances = [following], [np.inf]
    tasks = [
        (first, min(first + _ROWS_PER_TASK, n_points))
        for first in range(0, n_points, _ROWS_PER_TASK)
    ]
    advance()
    with ThreadPoolExecutor(max(n_threads, 1)) as pool:
        while len(chosen) < min(n, n_points):
            row = points[following]
            found = pool.map(lambda task: _nearer(points, row, nearest, *task), tasks)  # noqa: B023
            following, squared = max(found, key=lambda pair: (pair[1], -pair[0]))
            if squared <= 0:
                break
            chosen.append(int(following))
            distances.append(float(np.sqrt(squared)))
            advance()
    return np.array(chosen, dtype=np.int64), np.array(distances)


def random_projection(n_columns: int, n_kept: int, seed: int) -> NDArray[np.float32]:
    """A matrix [n_columns, n_kept] after which distances are the same on average.

    Their relative standard deviation is about 1 / sqrt(2 n_kept) (Johnson and Lindenstrauss).
    """
    random = np.random.default_rng([seed, 1])
    matrix = random.standard_normal((n_columns, n_kept)) / np.sqrt(n_kept)
    return matrix.astype(np.float32)
