"""Recomputed activations: the same numbers in all passes, and less memory between them."""

import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mace_train.model.activation_checkpointing import checkpointed
from mace_train.model.derivatives import predict
from tests.model.systems import NONLINEAR_SETTINGS, graph_of, mixed, model_of, salt, water

ELEMENTS = (1, 8, 11, 13, 17)


class LargestMemory(TorchDispatchMode):
    """Bytes of all tensors made within that were alive at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.largest = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None) -> Any:
        found = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor.untyped_storage())
        return found

    def _note(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.now += size
        self.largest = max(self.largest, self.now)

        def gone() -> None:
            self._seen.discard(key)
            self.now -= size

        weakref.finalize(storage, gone)


def step(model, graph):
    """Prediction and gradient in the weights of a loss on energies, forces and stress."""
    prediction = predict(model, graph, stress=True, create_graph=True)
    loss = prediction.energy.square().sum() + (prediction.forces**4).sum()
    loss = loss + prediction.stress.square().sum()
    weights = [p for p in model.parameters() if p.requires_grad]
    return prediction, torch.autograd.grad(loss, weights)


@pytest.mark.parametrize("kernels", ["auto", "reference"])
@pytest.mark.parametrize("settings", [{"model": "MACE"}, {}, NONLINEAR_SETTINGS])
def test_predictions_and_gradients_are_those_of_the_plain_model(kernels, settings):
    model = model_of(ELEMENTS, **{"max_ell": 2, "max_L": 1, **settings})
    model.kernels = kernels
    graph = graph_of([water(), salt(), mixed(ELEMENTS)], 4.0, ELEMENTS, model.dtype)
    expected, gradients = step(model, graph)
    model.checkpoint_activations(True)
    found, others = step(model, graph)
    validation = predict(model, graph, stress=True, create_graph=False)
    for name in ("energy", "forces", "stress"):
        value = getattr(expected, name)
        torch.testing.assert_close(getattr(found, name), value, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(getattr(validation, name), value, rtol=1e-12, atol=1e-13)
    scale = max(float(g.abs().max()) for g in gradients)
    for one, other in zip(gradients, others, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-13 * scale)


def test_frozen_weights_and_energies_alone():
    model = model_of(ELEMENTS, max_ell=2, max_L=1)
    for parameter in (*model.node_embedding.parameters(), *model.interactions[0].parameters()):
        parameter.requires_grad_(False)
    graph = graph_of([water(), salt()], 4.0, ELEMENTS, model.dtype)
    weights = [p for p in model.parameters() if p.requires_grad]
    results = []
    for on in (False, True):
        model.checkpoint_activations(on)
        energy = predict(model, graph, stress=False, forces=False, create_graph=True).energy.sum()
        results.append((*step(model, graph)[1], *torch.autograd.grad(energy, weights)))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-12)


def test_less_memory():
    model = model_of(ELEMENTS, max_ell=2, max_L=1, num_channels=128, radial_MLP=[16])
    graph = graph_of([salt(), salt()], 6.0, ELEMENTS, model.dtype)
    largest = []
    for on in (False, True):
        model.checkpoint_activations(on)
        step(model, graph)  # tables are made, kernels loaded
        with LargestMemory() as memory:
            step(model, graph)
        largest.append(memory.largest)
    assert largest[1] < 0.7 * largest[0]


def test_any_function_twice_differentiable():
    torch.manual_seed(0)
    x, w, unused = (torch.randn(n, 3, dtype=torch.float64, requires_grad=True) for n in (5, 3, 2))

    def function(x, w, unused):
        return torch.tanh(x @ w), x.sin()

    def again(x, w, unused):
        return checkpointed(function, x, w, unused)

    assert torch.autograd.gradcheck(again, (x, w, unused))
    assert torch.autograd.gradgradcheck(again, (x, w, unused))
    both = []
    for run in (function, again):
        first, second = run(x, w, unused)
        (gx,) = torch.autograd.grad((first**3).sum() + second.sum(), x, create_graph=True)
        both.append(torch.autograd.grad((gx**2).sum() + first.sum(), [x, w]))
        assert torch.autograd.grad(run(x, w, unused)[1].sum(), w, allow_unused=True) == (None,)
    for one, other in zip(*both, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-13)
    (gx,) = torch.autograd.grad(again(x, w, unused)[0].sum(), x, create_graph=True)
    (gx,) = torch.autograd.grad(gx.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gx.sum().backward()
