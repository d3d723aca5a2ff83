"""Lower bounds on the number of bins and steps of any packing.

Number of bins (vector bin packing, each dimension on its own, the largest counts):

- L1: the sum of sizes over the capacity;
- L2 of Martello and Toth (1990): two structures above half of the capacity never share a bin, and
  structures that do not fit beside a large one need other bins;
- structures over the structures of a bin, where their number is limited.
"""

import numpy as np
from numpy.typing import NDArray

from mace_train.balance.costs import Capacity, Costs, ceil_div


def least_bins(costs: Costs, capacity: Capacity) -> int:
    """The lower bound of the number of bins."""
    bounds = [ceil_div(len(costs), capacity.batch_size) if capacity.batch_size else 1]
    for sizes, limit in zip(costs.dimensions, capacity.limits, strict=True):
        bounds.append(_martello_toth(sizes, int(limit)))
    return max(bounds)


def least_steps(costs: Costs, capacity: Capacity, world_size: int) -> int:
    """The lower bound of the number of steps."""
    return ceil_div(least_bins(costs, capacity), world_size)


def _martello_toth(sizes: NDArray[np.int64], limit: int) -> int:
    """The larger of L1 and L2 for one dimension."""
    total = int(sizes.sum())
    if limit <= 0 or total == 0:
        return 1
    if 2 * int(sizes.max()) <= limit:
        return ceil_div(total, limit)
    values, counts = np.unique(sizes, return_counts=True)
    n_up_to = np.concatenate([[0], np.cumsum(counts)])  # structures among the first k values
    sum_up_to = np.concatenate([[0], np.cumsum(values * counts)])
    half = int(np.searchsorted(values, limit // 2, side="right"))  # values <= limit / 2
    n_large, sum_large = n_up_to[-1] - n_up_to[half], sum_up_to[-1] - sum_up_to[half]
    smallest = np.concatenate([[0], values[:half]])  # alpha: smaller structures are left out
    first = np.searchsorted(values, smallest)
    beside = np.searchsorted(values, limit - smallest, side="right")  # values <= limit - alpha
    n_beside = n_up_to[beside] - n_up_to[half]
    room = n_beside * limit - (sum_up_to[beside] - sum_up_to[half])
    small = sum_up_to[half] - sum_up_to[first]
    bounds = n_large + np.maximum(0, -(-(small - room) // limit))
    return max(int(bounds.max()), ceil_div(int(sum_large + sum_up_to[half]), limit))
