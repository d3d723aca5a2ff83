"""Packers: from the sizes of structures to the bins of one epoch, behind one interface.

- ``balanced`` (balanced.py): two-dimensional packing with local refinement, the default;
- ``algorithm1`` (algorithm1.py): the packing of arXiv 2504.10700;
- ``first_fit`` (simple_packers.py): first fit in random order;
- ``fixed_count`` (simple_packers.py): the usual batching, a shuffle cut into equal numbers.

All decisions compare integers, all random numbers are a counter hash of (seed, epoch), all sorts
are stable or have unique keys: every rank gets the same bins without communication, on any machine.
"""

from collections.abc import Callable

from mace_train.balance.algorithm1 import algorithm1
from mace_train.balance.balanced import balanced
from mace_train.balance.bins import Bins
from mace_train.balance.costs import Capacity, Costs
from mace_train.balance.simple_packers import first_fit, fixed_count

Packer = Callable[[Costs, Capacity, int, int, int], Bins]
"""(costs, capacity, world_size, seed, epoch) -> bins of structure ids, every structure in exactly
one of them. Their number is a multiple of world_size; bins [s world_size, (s + 1) world_size) are
step s; no step is empty."""

PACKERS: dict[str, Packer] = {
    "balanced": balanced,
    "algorithm1": algorithm1,
    "first_fit": first_fit,
    "fixed_count": fixed_count,
}
