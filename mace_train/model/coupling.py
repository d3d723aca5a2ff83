"""Coupling coefficients of real spherical harmonics, with one pinned sign convention.

Real spherical harmonics of degree l have 2l + 1 components, m = -l..l, polar axis y: degree one is
(x, y, z). The invariant tensor of three degrees,

    w3j(l1, l2, l3)[m1, m2, m3],   sum of squares 1,

is unique up to its sign. Trained weights multiply these tensors, so the sign is part of the file
format; it is fixed here as e3nn 0.4.4 (hence every mace-torch model) has it. With the degrees in
ascending order: if l1 + l2 + l3 is even, the component (0, 0, 0) is positive; if it is odd, the
first non-zero component in row-major order is positive. Permuting the arguments permutes the axes
and multiplies by (-1)^(l1 + l2 + l3) for an odd permutation.

The values come from Racah's closed sum for SU(2) in exact integer arithmetic (Edmonds, Angular
Momentum in Quantum Mechanics, eq. 3.6.11), taken to the real basis. A few milliseconds per tensor
for degrees below eight; all results are cached.
"""

from fractions import Fraction
from functools import cache
from math import factorial, sqrt

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]


def degree_slice(l: int) -> slice:  # noqa: E741
    """Where degree l lies among the (l_max + 1)^2 components."""
    return slice(l * l, (l + 1) ** 2)


def clebsch_gordan(l_out: int, l1: int, l2: int) -> Float:
    """Tensor [2 l_out + 1, 2 l1 + 1, 2 l2 + 1] that couples l1 and l2 to l_out.

    Component normalisation: unit-variance components couple to unit-variance components.
    """
    return sqrt(2 * l_out + 1) * wigner_3j(l_out, l1, l2)


@cache
def wigner_3j(l1: int, l2: int, l3: int) -> Float:
    """Real invariant tensor [2 l1 + 1, 2 l2 + 1, 2 l3 + 1] of Frobenius norm 1 (read-only)."""
    degrees = (l1, l2, l3)
    if not abs(l1 - l2) <= l3 <= l1 + l2:
        raise ValueError(f"degrees {degrees} violate the triangle rule")
    order = sorted(range(3), key=lambda axis: degrees[axis])
    tensor = _ascending_3j(*(degrees[axis] for axis in order))
    inversions = sum(order[i] > order[j] for i in range(3) for j in range(i + 1, 3))
    sign = (-1.0) ** (inversions * sum(degrees))
    result = sign * np.transpose(tensor, np.argsort(order))
    result.setflags(write=False)
    return result


@cache
def _ascending_3j(l1: int, l2: int, l3: int) -> Float:
    complex_basis = np.zeros((2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1))
    for m1 in range(-l1, l1 + 1):
        for m2 in range(max(-l2, -l3 - m1), min(l2, l3 - m1) + 1):
            complex_basis[l1 + m1, l2 + m2, l3 + m1 + m2] = _su2_coefficient(l1, m1, l2, m2, l3)
    bases = (_real_basis(l1), _real_basis(l2), _real_basis(l3).conj())
    rotated = np.einsum("ai,bj,ck,ijk->abc", *bases, complex_basis)
    # the product of the three basis changes is real or purely imaginary
    tensor: Float = rotated.real if (l1 + l2 + l3) % 2 == 0 else rotated.imag
    tensor = np.where(np.abs(tensor) < 1e-14, 0.0, tensor)
    tensor = tensor / np.linalg.norm(tensor)
    reference = tensor[l1, l2, l3] if (l1 + l2 + l3) % 2 == 0 else tensor[tensor != 0][0]
    return tensor * np.sign(reference)


def _real_basis(l: int) -> NDArray[np.complex128]:  # noqa: E741
    """Rows are real harmonics m = -l..l in terms of complex ones (Condon-Shortley phase)."""
    rows = np.zeros((2 * l + 1, 2 * l + 1), dtype=np.complex128)
    rows[l, l] = 1.0
    for m in range(1, l + 1):
        rows[l + m, [l - m, l + m]] = np.array([1, (-1) ** m]) / sqrt(2)
        rows[l - m, [l - m, l + m]] = 1j * np.array([1, -((-1) ** m)]) / sqrt(2)
    return rows


def _su2_coefficient(j1: int, m1: int, j2: int, m2: int, j3: int) -> float:
    """Racah's sum for the coefficient <j1 m1 j2 m2 | j3 m1+m2>."""
    m3 = m1 + m2
    square = Fraction((2 * j3 + 1) * _product(j3 + j1 - j2, j3 - j1 + j2, j1 + j2 - j3))
    square *= Fraction(
        _product(j3 + m3, j3 - m3, j1 - m1, j1 + m1, j2 - m2, j2 + m2), factorial(j1 + j2 + j3 + 1)
    )
    low = max(0, j2 - j3 - m1, j1 - j3 + m2)
    high = min(j1 + j2 - j3, j1 - m1, j2 + m2)
    total = sum(
        (-1) ** k
        * Fraction(
            1,
            _product(k, j1 + j2 - j3 - k, j1 - m1 - k, j2 + m2 - k, j3 - j2 + m1 + k)
            * factorial(j3 - j1 - m2 + k),
        )
        for k in range(low, high + 1)
    )
    return sqrt(square) * float(total)


def _product(*numbers: int) -> int:
    product = 1
    for number in numbers:
        product *= factorial(number)
    return product


def convolution_paths(l_nodes: int, l_edges: int) -> list[tuple[int, int, int]]:
    """Paths (l1 of the sender, l2 of the edge, l3 of the message) in mace-torch's weight order.

    Natural parity only: l1 + l2 + l3 even; l3 <= l_edges. Sorted by l3, then l1, then l2.
    """
    return sorted(
        (
            (l1, l2, l3)
            for l1 in range(l_nodes + 1)
            for l2 in range(l_edges + 1)
            for l3 in range(abs(l1 - l2), min(l1 + l2, l_edges) + 1)
            if (l1 + l2 + l3) % 2 == 0
        ),
        key=lambda path: path[2],
    )
