"""Spherical harmonics: e3nn's values, norms, parity, and derivatives on the axes."""

import warnings

import torch

from mace_train.irreps import import_o3
from mace_train.model.spherical_harmonics import SphericalHarmonics
from tests.equivariance import degree_matrices, rotation


def unit_vectors(n: int) -> torch.Tensor:
    vectors = torch.randn(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    axes = torch.cat([torch.eye(3), -torch.eye(3)]).double()
    return torch.cat([axes, vectors / vectors.norm(dim=1, keepdim=True)])


def test_equal_to_e3nn():
    vectors = unit_vectors(50)
    with warnings.catch_warnings():  # torch.jit is deprecated
        warnings.simplefilter("ignore")
        expected = import_o3().spherical_harmonics(list(range(5)), vectors, True, "component")
    found = torch.cat(SphericalHarmonics(4)(vectors), dim=1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


def test_norm_and_parity():
    vectors = unit_vectors(20)
    values, mirrored = SphericalHarmonics(4)(vectors), SphericalHarmonics(4)(-vectors)
    for degree, (value, mirror) in enumerate(zip(values, mirrored, strict=True)):
        expected = torch.full_like(value[:, 0], 2 * degree + 1)
        torch.testing.assert_close(value.square().sum(1), expected)
        torch.testing.assert_close(mirror, (-1) ** degree * value)


def test_rotation_matrices_are_orthogonal():
    for degree, matrix in enumerate(degree_matrices(rotation(1), 4)):
        matrix = torch.as_tensor(matrix)
        identity = torch.eye(2 * degree + 1, dtype=torch.float64)
        torch.testing.assert_close(matrix @ matrix.T, identity)


def test_second_derivatives_on_the_axes():
    def of_direction(vectors):
        return torch.cat(SphericalHarmonics(3)(vectors / vectors.norm(dim=1, keepdim=True)), dim=1)

    axes = unit_vectors(0).requires_grad_()
    assert torch.autograd.gradcheck(of_direction, axes)
    assert torch.autograd.gradgradcheck(of_direction, axes)
