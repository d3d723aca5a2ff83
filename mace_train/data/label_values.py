"""Labels as arrays: numbers in their range, and symmetric matrices in any of three forms."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mace_train.data.found_labels import is_asymmetric
from mace_train.data.tokens import number_fault
from mace_train.data.values import check_values
from mace_train.errors import InvalidStructureError
from mace_train.settings.ranges import Range

_VOIGT = np.array([[0, 5, 4], [5, 1, 3], [4, 3, 2]])


def numbers_in(value: Any, name: str, limits: Range, source: str) -> NDArray[np.float64]:
    """``value`` as float64 numbers; InvalidStructureError unless all are in their range."""
    try:
        given = np.array(value)
        if given.dtype.kind == "b":  # T, F or a key without a value
            raise TypeError
        if given.dtype.kind in "SUO" and "_" in str(value):  # 1_0 is 10 to Python
            raise ValueError
        array = given.astype(np.float64, copy=False)
    except (TypeError, ValueError):
        faults = [number_fault(token) for token in str(value).split()]
        fault = next((f"; it {fault}" for fault in faults if fault), "; correct the file")
        raise InvalidStructureError(
            "label is not a number",
            f"{source}: {name!r} is {value!r}, not a number{fault}",
        ) from None
    check_values(array, limits, repr(name), source)
    return array


def symmetric_matrix_in(
    value: Any, name: str, limits: Range, source: str, mask: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """``value`` of 3x3, 9 or (Voigt) 6 numbers as a symmetric matrix [3, 3].

    Components where ``mask`` [3, 3] is not set are zero; they need not be symmetric.
    """
    array = numbers_in(value, name, limits, source)
    if array.shape == (6,):
        return np.where(mask, array[_VOIGT], 0.0)
    if array.shape not in ((9,), (3, 3)):
        raise InvalidStructureError(
            "shape of a label",
            f"{source}: {name!r} has shape {array.shape}; it must have 3x3, 9 or "
            "(xx, yy, zz, yz, xz, xy) 6 numbers, correct the file",
        )
    matrix = np.where(mask, array.reshape(3, 3), 0.0)
    if is_asymmetric(matrix):
        asymmetry = float(np.abs(matrix - matrix.T).max())
        raise InvalidStructureError(
            "asymmetric stress",
            f"{source}: {name!r} is {matrix.tolist()}, not symmetric "
            f"(by {asymmetry:.3g}); correct the file or remove it",
        )
    return 0.5 * (matrix + matrix.T)
