"""The ranges of the numbers of a structure: what lies beyond them is a slip, or another unit.

In these ranges squares of labels are finite in float32, and sums of squares over any data set in
float64, so that no loss and no statistic overflows.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mace_train.errors import InvalidStructureError
from mace_train.settings.ranges import ATOMIC_ENERGY, LOSS_WEIGHT, Range

POSITION = Range(-1e6, 1e6, reason="Å; 1e6 Å are 0.1 mm")
FORCE = Range(-1e8, 1e8, reason="eV/Å; forces in matter are below 1000")
STRESS = Range(-1e8, 1e8, reason="eV/Å^3; 1 eV/Å^3 is 160 GPa")
WEIGHT = LOSS_WEIGHT
SMALLEST_WEIGHT = 1e-30
"""A label whose weights have a product up to this does not count: single precision loses it."""
SHORTEST_VECTOR = 0.01  # Å, of a cell along a periodic direction; bonds are longer than 0.5


def has_weight(products: NDArray[np.float64]) -> NDArray[np.bool_]:
    """[...] whether labels whose weights have these products [...] count, anywhere."""
    return products > SMALLEST_WEIGHT


def energy_range(n_atoms: int) -> Range:
    """The range of the energy, and of the virials, of a structure of so many atoms, eV."""
    most = ATOMIC_ENERGY.maximum * n_atoms
    return replace(
        ATOMIC_ENERGY,
        minimum=-most,
        maximum=most,
        reason=f"{ATOMIC_ENERGY.maximum:g} per atom, {ATOMIC_ENERGY.reason}",
    )


def check_values(
    values: NDArray[np.float64], limits: Range, what: str, source: str, kind: str = "label"
) -> None:
    """InvalidStructureError that names ``source`` and ``what`` for a value out of its range.

    ``values`` have any shape and may be NaN; the limits belong to the range.
    """
    inside = (values >= limits.minimum) & (values <= limits.maximum)
    if inside.all():
        return
    where = np.argwhere(~inside)[0].tolist()
    value, place = values[tuple(where)], f" at index {where}" if where else ""
    if kind == "position":
        what = f"position of atom {where[0]}"
    if not np.isfinite(value):
        raise InvalidStructureError(
            f"{kind} not finite",
            f"{source}: {what} is not finite ({value}{place}); correct the file or remove this "
            "structure",
        )
    raise InvalidStructureError(
        f"{kind} out of range",
        f"{source}: {what} is {value:g}{place}, it must be {limits}; correct the file or remove "
        "this structure",
    )


def check_labels(
    source: str,
    n_atoms: int,
    energy: float | None,
    forces: NDArray[np.float64] | None,
    stress: NDArray[np.float64] | None,
) -> None:
    """InvalidStructureError for labels of a shard (eV, [n_atoms, 3] eV/Å, [3, 3] eV/Å^3).

    Files are checked when they are read; shards may be of an earlier version, or of another tool.
    """
    if energy is not None:
        check_values(np.array(energy), energy_range(n_atoms), "the energy", source)
    if forces is not None:
        check_values(forces, FORCE, "a force [atom, component]", source)
    if stress is not None:
        check_values(stress, STRESS, "the stress", source)
