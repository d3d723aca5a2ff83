"""Low-rank changes: none at first, the only thing that trains, and gone when merged."""

import pytest
import torch

from mace_train.model.derivatives import predict
from mace_train.model.lora import LowRank, add_low_rank, merged
from tests.equivariance import assert_model_equivariant
from tests.model.systems import (
    NONLINEAR_SETTINGS,
    graph_of,
    model_of,
    results_of,
    single_atom,
    water,
)


def changed_model(seed: int = 0, **settings):
    """A model with low-rank changes that are not zero."""
    model = model_of((1, 8), seed=seed, **{"max_ell": 2, **settings})
    add_low_rank(model, 2, 4.0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".B"):
                parameter.normal_()
    return model


def test_nothing_changes_at_first_and_little_trains():
    plain, model = (model_of((1, 8), max_ell=2) for _ in range(2))
    add_low_rank(model, 2, 4.0)
    graph = graph_of([water(), single_atom()], 4.0, (1, 8))
    expected = predict(plain, graph, stress=True, create_graph=True)
    found = predict(model, graph, stress=True, create_graph=True)
    assert torch.equal(found.energy, expected.energy)
    assert torch.equal(found.forces, expected.forces)
    found.forces.square().sum().backward()
    for name, parameter in model.named_parameters():
        is_change = name.endswith((".A", ".B"))
        assert parameter.requires_grad == is_change, name
        assert (parameter.grad is not None) == is_change, name
    changes = [module for module in model.modules() if isinstance(module, LowRank)]
    assert len(changes) == 1 + 2 * (2 + 3 + 1) + 2 + 3  # layers of two interactions and products


@pytest.mark.parametrize("settings", [{}, NONLINEAR_SETTINGS])
def test_merged_weights_are_those_of_a_plain_model(settings):
    settings = {"max_ell": 2, **settings}
    model = changed_model(**settings)
    plain = model_of((1, 8), seed=5, **settings)
    plain.load_state_dict(merged(model.state_dict(), 4.0 / 2))
    graph = graph_of([water(), single_atom()], 4.0, (1, 8))
    expected, found = (predict(m, graph, stress=False, create_graph=False) for m in (model, plain))
    torch.testing.assert_close(found.energy, expected.energy, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.forces, expected.forces, rtol=0, atol=1e-11)
    original = predict(model_of((1, 8), **settings), graph, stress=False, create_graph=False)
    assert float((found.forces - original.forces).abs().max()) > 1e-3


@pytest.mark.parametrize("settings", [{}, NONLINEAR_SETTINGS])
def test_a_changed_model_is_equivariant(settings):
    model = changed_model(**settings)

    def results(atoms):
        return results_of(model, graph_of([atoms], 4.0, (1, 8)))

    assert_model_equivariant(results, water())
