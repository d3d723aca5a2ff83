"""Constant tables of a model: exact in float64, copied to the type and device that ask."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class ConstantTensor:
    """A table (float64 or int64) that hands out copies on the device of other tensors.

    Float tables come in the dtype of the other tensor too.

    It is no buffer: casting a model to float32 and back must not round the tables, and data
    parallel training must not send them around.
    """

    def __init__(self, values: NDArray[np.float64] | list[int]) -> None:
        dtype = torch.int64 if isinstance(values, list) else torch.float64
        self._values = torch.tensor(values, dtype=dtype)
        self._copies: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def like(self, other: Tensor) -> Tensor:
        """The table with other's dtype and device."""
        dtype = other.dtype if self._values.is_floating_point() else torch.int64
        key = (dtype, other.device)
        if key not in self._copies:
            copy = self._values.to(dtype=dtype, device=other.device)
            if type(copy) is not Tensor:  # while PyTorch traces
                return copy
            self._copies[key] = copy
        return self._copies[key]

    @property
    def shape(self) -> torch.Size:
        """Shape of the table."""
        return self._values.shape
