"""Real spherical harmonics of unit vectors, component normalised, as polynomials.

    Y_0 = 1,   Y_1 = sqrt(3) (x, y, z),   Y_(l+1) = a_l  CG(l, 1 -> l+1) : Y_l (x) Y_1

with a_l such that |Y_l|^2 = 2l + 1. Polynomials have no pole, so first and second derivatives are
exact along the axes too. Signs and order of the components agree with e3nn (polar axis y).
Cost: 3 (2l+1)(2l+3) multiplications per vector and degree.
"""

from math import sqrt

import torch
from torch import Tensor

from mace_train.model.constant import ConstantTensor
from mace_train.model.coupling import Float, clebsch_gordan


class SphericalHarmonics:
    """Evaluates all degrees up to l_max."""

    def __init__(self, l_max: int) -> None:
        self.l_max = l_max
        self._raise = [ConstantTensor(_raising(degree)) for degree in range(1, l_max)]

    def __call__(self, unit_vectors: Tensor) -> list[Tensor]:
        """One tensor [n, 2l + 1] per degree l = 0..l_max, for unit vectors [n, 3]."""
        first = sqrt(3.0) * unit_vectors
        degrees = [torch.ones_like(unit_vectors[:, :1]), first][: self.l_max + 1]
        for table in self._raise:
            products = (degrees[-1].unsqueeze(2) * first.unsqueeze(1)).flatten(1)
            degrees.append(products @ table.like(products))
        return degrees


def _raising(degree: int) -> Float:
    """Matrix [(2l + 1) * 3, 2l + 3] from products of degree l and degree one to degree l + 1."""
    table = clebsch_gordan(degree + 1, degree, 1).reshape(2 * degree + 3, -1).T
    # along the polar axis only m = 0 survives, and it must become sqrt(2l + 3)
    at_pole = table[3 * degree + 1, degree + 1] * sqrt(3 * (2 * degree + 1))
    return table * (sqrt(2 * degree + 3) / at_pole)
