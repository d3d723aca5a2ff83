"""Random rotations, and the matrices that real spherical harmonics transform with."""

import numpy as np
import torch

from mace_train.model.spherical_harmonics import SphericalHarmonics


def rotation(seed: int) -> np.ndarray:
    """A random proper rotation [3, 3], acting on columns."""
    matrix, _ = np.linalg.qr(np.random.RandomState(seed).standard_normal((3, 3)))
    return matrix * np.sign(np.linalg.det(matrix))


def degree_matrices(rotate: np.ndarray, l_max: int) -> list[np.ndarray]:
    """D with Y_l(R v) = D_l Y_l(v), from the values at many points."""
    points = np.random.RandomState(0).standard_normal((100, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    harmonics = SphericalHarmonics(l_max)
    before = harmonics(torch.as_tensor(points))
    after = harmonics(torch.as_tensor(points @ rotate.T))
    return [
        np.linalg.lstsq(a.numpy(), b.numpy(), rcond=None)[0].T
        for a, b in zip(before, after, strict=True)
    ]
