"""Couplings: invariance, orthogonality, the pinned signs, and e3nn."""

from importlib.metadata import version

import numpy as np
import pytest
import torch

from mace_train.irreps import import_o3
from mace_train.model.constant import ConstantTensor
from mace_train.model.coupling import clebsch_gordan, convolution_paths, wigner_3j
from tests.equivariance import degree_matrices, rotation

DEGREES = [
    (l1, l2, l3) for l1 in range(5) for l2 in range(5) for l3 in range(abs(l1 - l2), l1 + l2 + 1)
]


@pytest.mark.parametrize("degrees", [d for d in DEGREES if max(d) <= 4])
def test_invariant_under_rotation(degrees):
    matrices = degree_matrices(rotation(3), 4)
    tensor = wigner_3j(*degrees)
    rotated = np.einsum("abc,ai,bj,ck->ijk", tensor, *(matrices[degree] for degree in degrees))
    np.testing.assert_allclose(rotated, tensor, atol=1e-12)
    assert np.linalg.norm(tensor) == pytest.approx(1.0, abs=1e-14)


def test_couplings_to_all_degrees_are_a_rotation():
    for l1, l2 in [(1, 1), (2, 3), (4, 2)]:
        degrees = range(abs(l1 - l2), l1 + l2 + 1)
        rows = [clebsch_gordan(l3, l1, l2).reshape(2 * l3 + 1, -1) for l3 in degrees]
        matrix = np.concatenate(rows)
        np.testing.assert_allclose(
            matrix @ matrix.T, np.eye((2 * l1 + 1) * (2 * l2 + 1)), atol=1e-13
        )


def test_permuted_degrees_permute_axes():
    for l1, l2, l3 in DEGREES:
        sign = (-1) ** (l1 + l2 + l3)
        tensor = wigner_3j(l1, l2, l3)
        np.testing.assert_array_equal(wigner_3j(l2, l1, l3), sign * tensor.transpose(1, 0, 2))
        np.testing.assert_array_equal(wigner_3j(l3, l1, l2), tensor.transpose(2, 0, 1))


def test_pinned_signs():
    """A sample with both signs; every weight of a trained model relies on them."""
    assert wigner_3j(1, 1, 1)[0, 1, 2] == pytest.approx(1 / np.sqrt(6))
    assert wigner_3j(1, 1, 2)[1, 1, 2] == pytest.approx(np.sqrt(2 / 15))
    assert wigner_3j(2, 2, 2)[2, 2, 2] == pytest.approx(np.sqrt(2 / 35))
    assert wigner_3j(1, 2, 2)[0, 0, 1] == pytest.approx(1 / np.sqrt(30))
    assert wigner_3j(2, 2, 3)[0, 0, 1] == pytest.approx(0.0)
    np.testing.assert_allclose(clebsch_gordan(3, 0, 3)[:, 0], np.eye(7), atol=1e-15)


def test_equal_to_e3nn():
    """Releases since 0.4.4 differ from it, and from us, in the sign of some couplings."""
    o3, signs = import_o3(), set()
    for l1, l2, l3 in [(a, b, c) for a, b, c in DEGREES if c <= 8]:
        expected = o3.wigner_3j(l1, l2, l3, dtype=torch.float64).numpy()
        sign = np.sign((expected * wigner_3j(l1, l2, l3)).sum())
        np.testing.assert_allclose(sign * wigner_3j(l1, l2, l3), expected, atol=1e-14)
        signs.add(int(sign))
    if version("e3nn") == "0.4.4":
        assert signs == {1}


def test_triangle_rule():
    with pytest.raises(ValueError, match="triangle"):
        wigner_3j(1, 1, 3)


def test_convolution_paths():
    assert convolution_paths(0, 2) == [(0, 0, 0), (0, 1, 1), (0, 2, 2)]
    assert convolution_paths(1, 2) == [
        (0, 0, 0),
        (1, 1, 0),
        (0, 1, 1),
        (1, 0, 1),
        (1, 2, 1),
        (0, 2, 2),
        (1, 1, 2),
    ]
    assert [len(convolution_paths(l_nodes, 3)) for l_nodes in range(3)] == [4, 10, 17]


def test_constant_is_not_rounded_by_casts():
    third = ConstantTensor(np.array([1 / 3]))
    assert third.like(torch.zeros(1, dtype=torch.float32)).dtype == torch.float32
    assert float(third.like(torch.zeros(1, dtype=torch.float64))) == 1 / 3
    assert ConstantTensor([2, 1]).like(torch.zeros(1)).dtype == torch.int64
