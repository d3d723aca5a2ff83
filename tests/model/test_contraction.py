"""The factored contraction equals the dense sum over paths, with all derivatives."""

import pytest
import torch

from mace_train.model.contraction import SymmetricContraction
from mace_train.model.product_basis import paths, product_basis, reduced_basis
from tests.equivariance import assert_equivariant
from tests.model.dense import dense_contraction


def contraction_and_input(l_max, l_out, correlation, n_atoms=5, n_channels=2):
    torch.manual_seed(0)
    module = SymmetricContraction(l_max, l_out, correlation, 3, n_channels).double()
    x = torch.randn(n_atoms, (l_max + 1) ** 2, n_channels, dtype=torch.float64)
    return module, x.requires_grad_(), torch.tensor([0, 2, 2, 1, 0])[:n_atoms]


@pytest.mark.parametrize(
    ("l_max", "l_out", "correlation"),
    [(1, 0, 1), (1, 1, 3), (2, 2, 2), (3, 1, 3), (2, 2, 3), (3, 3, 2), (4, 0, 3), (1, 1, 4)],
)
def test_equal_to_dense_sum(l_max, l_out, correlation):
    module, x, elements = contraction_and_input(l_max, l_out, correlation)
    found = module(x, elements)
    expected = dense_contraction(module, l_max, x, elements)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    probe = torch.randn_like(found)
    variables = [x, *module.parameters()]
    found_gradients = torch.autograd.grad((found * probe).sum(), variables)
    expected_gradients = torch.autograd.grad((expected * probe).sum(), variables)
    for mine, slow in zip(found_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(mine, slow, rtol=1e-10, atol=1e-10)


def test_first_and_second_derivatives():
    module, x, elements = contraction_and_input(2, 1, 3, n_atoms=3, n_channels=1)
    names = [name for name, _ in module.named_parameters()]

    def function(x, *weights):
        parameters = dict(zip(names, weights, strict=True))
        return torch.func.functional_call(module, parameters, (x, elements))

    assert torch.autograd.gradcheck(function, (x, *module.parameters()))
    assert torch.autograd.gradgradcheck(function, (x, *module.parameters()))


def test_equivariant():
    module, x, elements = contraction_and_input(3, 2, 3)
    assert_equivariant(
        lambda x: {"features": module(x, elements)},
        [x.detach()],
        lambda motion, x: [motion.features(x, range(4))],
        lambda motion, out: {"features": motion.features(out["features"], range(3))},
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_atoms(dtype):
    module, x, elements = contraction_and_input(3, 1, 3)
    module.to(dtype)
    result = module(x[:0].to(dtype), elements[:0])
    assert result.shape == (0, 4, 2)
    result.sum().backward()
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in module.parameters())


def test_float32_is_close():
    module, x, elements = contraction_and_input(3, 1, 3)
    exact = module(x, elements)
    rounded = module.float()(x.float(), elements)
    torch.testing.assert_close(rounded.double(), exact, rtol=1e-4, atol=1e-4)


def test_numbers_of_paths():
    """mace-torch's numbers of weights, and the published ranks of the symmetrised tensors."""
    listed = [[len(paths(3, order, degree)) for order in (1, 2, 3)] for degree in range(3)]
    assert listed == [[1, 4, 23], [1, 6, 51], [1, 7, 65]]
    kept = [[len(reduced_basis(3, order, degree)[0]) for order in (2, 3)] for degree in range(3)]
    assert kept == [[4, 8], [3, 12], [5, 14]]


def test_basis_is_made_once():
    assert product_basis(2, 1, 2) is product_basis(2, 1, 2)


def test_initial_weights_are_normal_over_number_of_paths():
    torch.manual_seed(0)
    module = SymmetricContraction(2, 0, 3, 10, 200)
    for order in (1, 2, 3):
        weights = module.contractions[0].of_order(order)
        expected = 1.0 / len(paths(2, order, 0))
        assert float(weights.detach().std()) == pytest.approx(expected, rel=0.1)
