"""Every interaction block: derivatives, and the same numbers in every way to compute them."""

import pytest
import torch

from mace_train.model.compiled import CompiledMACE, trace
from mace_train.model.derivatives import predict
from mace_train.model.interactions import INTERACTIONS
from mace_train.settings.model import NONLINEAR
from tests.model.differences import assert_forces_are_derivatives
from tests.model.systems import (
    NONLINEAR_SETTINGS,
    graph_of,
    mixed,
    model_of,
    nonlinear_model_of,
    salt,
)

NUMBERS = (1, 8, 11, 17)
MODELS = {
    "agnostic": {"model": "MACE", "interaction": "RealAgnosticInteractionBlock"},
    "residual": {},
    "density": {
        "interaction_first": "RealAgnosticDensityInteractionBlock",
        "interaction": "RealAgnosticDensityResidualInteractionBlock",
    },
    "density residual first": {
        "interaction_first": "RealAgnosticDensityResidualInteractionBlock",
        "interaction": "RealAgnosticDensityInteractionBlock",
    },
    "attention": {"interaction": "RealAgnosticAttResidualInteractionBlock"},
    "nonlinear": NONLINEAR_SETTINGS,
}
every_model = pytest.mark.parametrize("settings", MODELS.values(), ids=MODELS)


def model_with(settings):
    make = nonlinear_model_of if settings.get("interaction") == NONLINEAR else model_of
    return make(NUMBERS, **{"max_ell": 2, "max_L": 1, "correlation": 2, **settings})


def loss_of(prediction):
    return prediction.energy.sum() + (prediction.forces**2).sum() + (prediction.stress**2).sum()


def results(model, graph, predicted=None):
    """Energies, forces, stress, and the gradient in the weights of a loss on all of them."""
    prediction = predicted or predict(model, graph, stress=True, create_graph=True)
    gradient = torch.autograd.grad(loss_of(prediction), list(model.parameters()))
    return [prediction.energy, prediction.forces, prediction.stress, *gradient]


def assert_same(found, expected, tolerance=1e-11):
    for a, b in zip(found, expected, strict=True):
        scale = 1 + float(b.detach().abs().max())
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * scale)


def test_every_block_is_here():
    named = {
        name for settings in MODELS.values() for name in model_with(settings).settings.blocks()
    }
    assert named == set(INTERACTIONS)


@every_model
def test_forces_are_derivatives(settings):
    model, atoms = model_with(settings), salt()

    def prediction(positions):
        moved = atoms.copy()
        moved.positions[:] = positions
        return predict(model, graph_of([moved], 4.0, NUMBERS), stress=False, create_graph=False)

    assert_forces_are_derivatives(prediction, atoms.positions, 1e-7)


@every_model
def test_gradient_in_the_weights(settings):
    """Central differences, in the weights that only this kind of block has and in all others."""
    model, graph = model_with(settings), graph_of([mixed(NUMBERS)], 4.0, NUMBERS)
    parameters = list(model.parameters())
    gradient = results(model, graph)[3:]
    generator = torch.Generator().manual_seed(0)
    for parameter, found in zip(parameters, gradient, strict=True):
        direction = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        losses = []
        for step in (1e-4, -2e-4, 1e-4):  # up, down, back
            with torch.no_grad():
                parameter.add_(step * direction)
            prediction = predict(model, graph, stress=True, create_graph=False)
            losses.append(float(loss_of(prediction).detach()))
        slope = (losses[0] - losses[1]) / 2e-4
        assert float((found * direction).sum()) == pytest.approx(slope, rel=1e-5, abs=1e-5)


@every_model
def test_kernels_recomputation_and_static_shapes_change_nothing(settings):
    model = model_with(settings)
    graph = graph_of([mixed(NUMBERS), salt()], 4.0, NUMBERS)
    model.kernels = "reference"
    expected = results(model, graph)
    model.static_shapes = True
    assert_same(results(model, graph), expected)
    model.static_shapes, model.kernels = False, "auto"
    assert_same(results(model, graph), expected)
    model.checkpoint_activations(True)
    assert_same(results(model, graph), expected)


@pytest.mark.filterwarnings("ignore")  # torch's own, while it traces
@every_model
def test_traced(settings):
    model = model_with(settings)
    graph = graph_of([mixed(NUMBERS), salt()], 4.0, NUMBERS)
    expected = results(model, graph)
    traced = trace(model)
    compiled = CompiledMACE(model)
    compiled._graph = lambda device: (traced, traced)  # test_compiled.py has what compiles it
    assert_same(results(model, graph, compiled(graph, stress=True)), expected)
