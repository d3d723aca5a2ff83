"""All kernels of a training step are compiled before it, and no others are generated."""

import pytest
import torch

from mace_train.model.compile_kernels import compile_kernels, training_kernels
from mace_train.model.derivatives import predict
from mace_train.ops.codegen import kernel_cache
from mace_train.ops.cpp import compiler as cpp_compiler
from mace_train.ops.cpp import small_products
from mace_train.ops.dispatch import requests_of
from tests.model.systems import graph_of, model_of, water

needs_compiler = pytest.mark.skipif(
    cpp_compiler.find_compiler() is None, reason="needs a C++ compiler"
)


def small_model(kernels):
    model = model_of((1, 8), max_ell=1, max_L=1, correlation=2)
    model.kernels = kernels
    return model


def step(model):
    prediction = predict(model, graph_of([water()], 4.0, (1, 8)), stress=True, create_graph=True)
    loss = prediction.energy.sum() + prediction.forces.square().sum()
    return [loss, *torch.autograd.grad(loss, list(model.parameters()))]


@needs_compiler
def test_nothing_is_compiled_after(tmp_path, monkeypatch):
    monkeypatch.setattr(kernel_cache, "cache_folder", lambda: tmp_path)
    model = small_model("cpp")
    for kernel, *_ in training_kernels(model):
        kernel.cpp._functions.clear()  # other tests may have loaded them
    small_products.functions.cache_clear()
    expected = step(small_model("reference"))
    assert compile_kernels(model, show_progress=True) == len(list(tmp_path.glob("*.so")))
    monkeypatch.setattr(kernel_cache, "built", lambda *_: pytest.fail("compiled again"))
    monkeypatch.setattr(cpp_compiler, "built", lambda *_: pytest.fail("compiled again"))
    for mine, right in zip(step(model), expected, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-10, atol=1e-10)


def test_the_reference_needs_none():
    assert compile_kernels(small_model("reference")) == 0


@needs_compiler
def test_noting_requests_ends_with_an_error_too():
    model = small_model("cpp")

    def work():
        step(model)
        raise KeyError("stop")

    with pytest.raises(KeyError):
        requests_of(work)
    assert float(step(model)[0].detach()) != 0.0
