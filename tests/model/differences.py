"""Derivatives of a prediction by central differences."""

from collections.abc import Callable

import numpy as np
import pytest

from mace_train.model.derivatives import Prediction


def assert_forces_are_derivatives(
    prediction: Callable[[np.ndarray], Prediction], positions: np.ndarray, tolerance: float
) -> None:
    """Forces against differences of the energy, at two of the positions [n_atoms, 3]."""
    found = prediction(positions)
    for atom, axis in ((0, 0), (5, 2)):
        step = np.zeros_like(positions)
        step[atom, axis] = 1e-5
        up, down = (prediction(positions + s * step).energy for s in (1, -1))
        slope = float(up - down) / 2e-5
        assert float(found.forces[atom, axis]) == pytest.approx(-slope, abs=tolerance, rel=1e-7)
