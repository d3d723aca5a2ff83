"""The model inside of PyTorch's other machinery: autocast, DDP, torch.func, copies."""

import copy
import pickle

import pytest
import torch

from mace_train.model.derivatives import predict
from mace_train.ops import torch_library
from mace_train.ops.cpp.compiler import find_compiler
from tests.model.systems import graph_of, mixed, model_of, salt, single_atom, water
from tests.train.ranks import run_ranks

ELEMENTS = (1, 8, 11, 17)
R_MAX = 4.0
needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="needs a C++ compiler")


def case(kernels, dtype=torch.float64, structures=None):
    model = model_of(ELEMENTS, dtype=dtype, max_ell=2, max_L=1)
    model.kernels = kernels
    return model, graph_of(structures or [water(), salt()], R_MAX, ELEMENTS, dtype)


class Forces(torch.nn.Module):
    """A model whose forward gives forces and stress to train on, as DDP wants it."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, graph):
        return predict(self.model, graph, stress=True, create_graph=True)


def loss_of(prediction):
    squares = prediction.forces.square().sum() + prediction.stress.square().sum()
    return prediction.energy.square().sum() + squares


def test_hooks_of_the_model_run_in_a_prediction():
    """Training calls the module itself, as FSDP and others that register hooks need it."""
    model, graph = case("reference")
    seen = []
    model.register_forward_hook(lambda module, inputs, energies: seen.append(energies.detach()))
    prediction = predict(model, graph, stress=True, create_graph=True)
    (energies,) = seen
    assert energies.shape == (graph.n_atoms,)
    torch.testing.assert_close(energies.sum(), prediction.interaction_energy.detach().sum())


def gradients_of(model, graph):
    prediction = predict(model, graph, stress=True, create_graph=True)
    return torch.autograd.grad(loss_of(prediction), list(model.parameters()))


@pytest.mark.parametrize("kernels", ["auto", "reference"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 3e-2), (torch.float16, 1e-2)])
def test_autocast(dtype, tolerance, kernels):
    """Matrix products are rounded, nothing else; dtypes of results are those without autocast."""
    model, graph = case(kernels, torch.float32)
    exact = predict(model, graph, stress=True, create_graph=True)
    with torch.autocast("cpu", dtype=dtype):
        rounded = predict(model, graph, stress=True, create_graph=True)
    for name in ("energy", "interaction_energy", "node_energy", "forces", "stress", "virials"):
        found, expected = getattr(rounded, name), getattr(exact, name)
        assert found.dtype == expected.dtype, name
        scale = getattr(exact, "interaction_energy" if "energy" in name else name)
        error = float((found - expected).detach().abs().max())
        assert 0.0 < error < tolerance * float(scale.detach().abs().max()), name
    loss_of(rounded).backward()
    for parameter in model.parameters():
        assert parameter.grad.dtype == torch.float32
        assert torch.isfinite(parameter.grad).all()


@pytest.mark.parametrize("kernels", ["auto", "reference"])
def test_copies_compute_the_same(kernels):
    model, graph = case(kernels)
    expected = gradients_of(model, graph)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert all(map(torch.equal, gradients_of(other, graph), expected))


def _ddp_gradients(world, kernels, static_graph):
    """Gradients of the mean loss over ranks, of three steps, of which the last sees other atoms."""
    found = []
    batches = [[water(), salt()], [single_atom(), mixed(ELEMENTS)], [salt(), water()]]
    model, _ = case(kernels)
    wrapped = torch.nn.parallel.DistributedDataParallel(Forces(model), static_graph=static_graph)
    for structures in batches:
        wrapped.zero_grad()
        graph = graph_of([structures[world.rank]], R_MAX, ELEMENTS)
        loss_of(wrapped(graph)).backward()
        found.append([parameter.grad.clone() for parameter in model.parameters()])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("static_graph", [False, True])
def test_ddp_gradients_equal_those_of_one_process(static_graph, tmp_path):
    kernels = "auto"
    ranks = run_ranks(2, _ddp_gradients, tmp_path, kernels, static_graph)
    batches = [[water(), salt()], [single_atom(), mixed(ELEMENTS)], [salt(), water()]]
    for step, structures in enumerate(batches):
        model, _ = case(kernels)
        single = [gradients_of(model, graph_of([s], R_MAX, ELEMENTS)) for s in structures]
        mean = [(a + b) / 2 for a, b in zip(*single, strict=True)]
        for found in ranks:
            for mine, expected in zip(found[step], mean, strict=True):
                scale = 1.0 + float(expected.abs().max())
                torch.testing.assert_close(mine, expected, rtol=0.0, atol=1e-12 * scale)


def energy_of(model, graph):
    index = (graph.elements, graph.senders, graph.receivers)
    return lambda vectors: model(vectors, *index).sum()


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own use
def test_transforms_of_torch_func_are_right_or_refused():
    model, graph = case("reference")
    vectors = graph.vectors()
    found = torch.func.grad(energy_of(model, graph))(vectors)
    leaf = vectors.clone().requires_grad_()
    (expected,) = torch.autograd.grad(energy_of(model, graph)(leaf), leaf)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-12)
    if find_compiler() is not None:
        model.kernels = "cpp"
        with pytest.raises(RuntimeError, match="functorch transforms"):
            torch.func.grad(energy_of(model, graph))(vectors)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own use
def test_forward_mode_is_right_or_refused():
    model, graph = case("reference")
    vectors = graph.vectors()
    tangent = torch.randn_like(vectors)
    _, found = torch.func.jvp(energy_of(model, graph), (vectors,), (tangent,))
    expected = (torch.func.grad(energy_of(model, graph))(vectors) * tangent).sum()
    torch.testing.assert_close(found, expected)
    if find_compiler() is not None:
        model.kernels = "cpp"
        with pytest.raises(NotImplementedError, match="jvp"):
            torch.func.jvp(energy_of(model, graph), (vectors,), (tangent,))


@needs_compiler
def test_third_derivative_is_refused_and_the_reference_has_it():
    for kernels in ("cpp", "reference"):
        model, graph = case(kernels, structures=[water()])
        vectors = graph.vectors().requires_grad_()
        (first,) = torch.autograd.grad(energy_of(model, graph)(vectors), vectors, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), vectors, create_graph=True)
        if kernels == "reference":
            (third,) = torch.autograd.grad(second.sum(), vectors)
            assert float(third.abs().max()) > 1e-6
        else:
            with pytest.raises(NotImplementedError, match="first and second derivatives only"):
                torch.autograd.grad(second.sum(), vectors)


@needs_compiler
def test_without_the_private_query_of_the_engine(monkeypatch):
    """Gradients that nobody uses are computed then; all others are the same."""
    model, graph = case("cpp")
    expected = gradients_of(model, graph)
    monkeypatch.setattr(torch_library, "_WILL_EXECUTE", None)
    for mine, right in zip(gradients_of(model, graph), expected, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-12, atol=1e-12)
