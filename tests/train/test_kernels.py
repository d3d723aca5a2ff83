"""All kernels of a step are compiled before it, by one rank of a host."""

import pytest
import torch

from mace_train.model.derivatives import predict
from mace_train.model.mace import MACE, ModelData
from mace_train.model.prepare import training_kernels
from mace_train.ops import kernel_cache, native
from mace_train.ops.compiler import find_compiler
from mace_train.settings import ModelSettings
from mace_train.train import setup
from mace_train.world import World
from tests.model.systems import graph_of, water

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="needs a C++ compiler")


def model(method: str = "cpp", channels: int = 4) -> MACE:
    torch.manual_seed(0)
    settings = ModelSettings(
        num_channels=channels, max_L=1, max_ell=1, correlation=2, radial_MLP=[8]
    )
    return MACE(settings, ModelData(4.0, (1, 8), (0.0, 0.0), 5.0, 1.0, 0.0), method)


class Rank(World):
    """A rank that notes when it waits for the others."""

    def barrier(self) -> None:
        EVENTS.append("barrier")


EVENTS: list[str] = []


@pytest.mark.parametrize("local_rank", [0, 1])
def test_local_rank_0_compiles_and_the_others_wait(local_rank, monkeypatch):
    EVENTS.clear()
    monkeypatch.setattr(setup, "prepare", lambda *_, **__: EVENTS.append("compile"))
    rank = Rank(rank=3, local_rank=local_rank, size=4, local_size=2)
    setup.compile_kernels(model(), rank)
    expected = ["compile", "barrier"] if local_rank == 0 else ["barrier", "compile"]
    assert expected == EVENTS


def test_a_step_needs_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(kernel_cache, "cache_folder", lambda: tmp_path)
    mine = model()
    before = {name: p.detach().clone() for name, p in mine.named_parameters()}
    requests = training_kernels(mine)
    assert not list(tmp_path.iterdir())
    for kernel, *_ in requests:
        kernel.native._functions.clear()  # other tests may have loaded them
    setup.compile_kernels(mine, World())
    assert len(list(tmp_path.glob("*.so"))) == len(requests)
    assert all(p.grad is None for p in mine.parameters())
    assert all(torch.equal(p, before[name]) for name, p in mine.named_parameters())
    monkeypatch.setattr(native, "emit_cpp", None)
    monkeypatch.setattr(kernel_cache, "built", None)
    graph = graph_of([water()], 4.0, (1, 8), torch.float32)
    prediction = predict(mine, graph, stress=True, create_graph=True)
    loss = prediction.energy.sum() + prediction.forces.square().sum()
    torch.autograd.backward(loss, inputs=list(mine.parameters()))  # as the trainer does
    predict(mine, graph, stress=True, create_graph=False)
    assert all(bool(torch.isfinite(p.grad).all()) for p in mine.parameters())


def test_the_reference_needs_no_kernels():
    assert training_kernels(model("reference")) == []
