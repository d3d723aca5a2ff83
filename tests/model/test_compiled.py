"""The traced model: torch.compile with training on forces, and torch.export."""

import io

import pytest
import torch
from ase import Atoms

from mace_train.model.compiled import CompiledMACE, export, trace
from mace_train.model.derivatives import predict
from mace_train.settings.model import DENSITY_RESIDUAL
from tests.model.systems import (
    NONLINEAR_SETTINGS,
    graph_of,
    mixed,
    model_of,
    nonlinear_model_of,
    salt,
    single_atom,
    water,
)

ELEMENTS = (1, 8, 11, 17)
R_MAX = 4.0
BATCHES = {
    "two structures": [water(), salt()],
    "three": [mixed(ELEMENTS), single_atom(), water()],
    "one atom": [Atoms("O")],
    "no edges": [Atoms("OH", positions=[[0, 0, 0], [0, 9, 0]])],
    "nothing": [],
}
torch_warnings = pytest.mark.filterwarnings("ignore")  # of its own, while it compiles


def small_model(kernels="auto", **settings):
    model = model_of(ELEMENTS, **{"max_ell": 1, "max_L": 1, "correlation": 2, **settings})
    model.kernels = kernels
    return model


def training_results(model, prediction):
    """What a step on energies, forces and stress computes."""
    loss = prediction.energy.square().sum() + prediction.forces.square().sum()
    loss = loss + 100 * prediction.stress.square().sum()
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return [prediction.energy, prediction.forces, prediction.stress, *gradients]


def assert_same(found, expected, tolerance=1e-12):
    for mine, eager in zip(found, expected, strict=True):
        scale = 1.0 + (float(eager.detach().abs().max()) if eager.numel() else 0.0)
        torch.testing.assert_close(mine, eager, rtol=0.0, atol=tolerance * scale)


def check_batches(model, compiled, names=BATCHES):
    for name in names:
        graph = graph_of(BATCHES[name], R_MAX, ELEMENTS, model.dtype)
        expected = training_results(model, predict(model, graph, stress=True, create_graph=True))
        found = training_results(model, compiled(graph, stress=True))
        assert_same(found, expected, 1e-12 if model.dtype == torch.float64 else 1e-4)


@pytest.mark.slow
@torch_warnings
def test_compiled_training_step():
    """Batches of all sizes by one compilation; changed weights count."""
    torch.compiler.reset()
    model = small_model()
    compiled = CompiledMACE(model, "aot_eager")
    check_batches(model, compiled)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1
    with torch.compiler.set_stance("fail_on_recompile"):
        check_batches(model, compiled)


@pytest.mark.slow
@torch_warnings
def test_compiled_by_inductor():
    torch.compiler.reset()
    model = small_model(num_interactions=1)  # for two it compiles twice as long
    check_batches(model, CompiledMACE(model))


@torch_warnings
def test_fused_kernels_are_single_nodes_of_the_trace():
    model = small_model("cpp")
    names = [str(node.target) for node in trace(model).graph.nodes if node.op == "call_function"]
    for operator in ("convolution", "symmetric_contraction", "grouped_matmul"):
        found = [name for name in names if name.startswith(f"mace_train.{operator}.")]
        assert len(found) == (3 if operator == "grouped_matmul" else 2), operator
    # no table was cached as a tensor of the trace
    graph = graph_of([water()], R_MAX, ELEMENTS)
    assert type(predict(model, graph, stress=False, create_graph=True).forces) is torch.Tensor


@torch_warnings
def test_a_float32_trace_leaves_no_tables_behind():
    model = small_model().float()
    check_batches(model, CompiledMACE(model, "eager"), ["two structures"])


@torch_warnings
@pytest.mark.parametrize(
    "settings",
    [{**NONLINEAR_SETTINGS, "max_ell": 1}, {"interaction_first": DENSITY_RESIDUAL}],
)
def test_results_that_derivatives_need_are_differentiated_too(settings):
    """As those of tanh; ``trace`` alone, without a compiler, shows it."""
    model = small_model(num_interactions=1, **settings)
    traced = trace(model)
    compiled = CompiledMACE(model)
    compiled._graph = lambda device: (traced, traced)
    check_batches(model, compiled)


@torch_warnings
@pytest.mark.parametrize(
    ("make", "kernels", "forces"),
    [
        (model_of, "auto", False),
        (model_of, "auto", True),
        (model_of, "reference", False),
        (nonlinear_model_of, "auto", True),
    ],
)
def test_export(make, kernels, forces):
    model = make(ELEMENTS, max_ell=1, max_L=1, correlation=2)
    model.kernels = kernels
    file = io.BytesIO()
    torch.export.save(export(model, forces=forces), file)
    file.seek(0)
    check_guards = make is model_of  # see ``export``
    loaded = torch.export.load(file).module(check_guards=check_guards)
    for name in (
        "two structures",
        "three",
        *(["one atom", "nothing"] if kernels == "auto" else []),
    ):
        graph = graph_of(BATCHES[name], R_MAX, ELEMENTS)
        vectors = graph.vectors().requires_grad_()
        pairs = (graph.pairs, graph.first_of_pair)
        index = model.batch_index(graph.elements, graph.senders, graph.receivers, *pairs)
        energies = model.energies(vectors, graph.elements, index)
        (gradient,) = torch.autograd.grad(energies.sum(), vectors)
        found = loaded(vectors.detach(), graph.elements, index)
        expected = [energies.detach(), gradient] if forces else [energies.detach()]
        assert_same([t.detach() for t in (found if forces else [found])], expected)
