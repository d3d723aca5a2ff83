"""Updates that the device decides about: the same weights, and the same end of every fault."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mace_train.distributed.world import World
from mace_train.ops.cpp.compiler import find_compiler
from mace_train.settings import (
    BatchingSettings,
    CheckpointSettings,
    FinishSettings,
    OptimizerSettings,
)
from mace_train.train import epoch as epoch_module
from mace_train.train import step as step_module
from mace_train.train.cuda_graphs import Capture, GraphedUpdate, cuda_graph
from mace_train.train.ema import EMA
from mace_train.train.gradients import Gradients
from mace_train.train.optim import make_optimizer, set_lr
from mace_train.train.setup import set_up
from mace_train.train.train import fit, train
from tests.train.conftest import capture_operations
from tests.train.networks import Named
from tests.train.training import assert_same_end, records, train_until_killed, with_graphs

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler")
NAMES = ["interactions.0.linear.weight", "readouts.0.linear.weight", "node_embedding.linear.weight"]
LR = (0.25, 0.125, 0.5, 0.03125)  # exact in float32


class Both:
    """One update on the host and one on the device, from the same weights."""

    def __init__(
        self, settings: OptimizerSettings, clip_grad: float | None, device: str, capture: Capture
    ) -> None:
        self.models, self.gradients, self.emas, self.optimizers = [], [], [], []
        for on_device in (False, True):
            model = Named(NAMES).double()
            for i, parameter in enumerate(model.parameters()):
                nn.init.normal_(parameter, generator=torch.Generator().manual_seed(i))
            model = model.to(device)
            self.models.append(model)
            self.gradients.append(Gradients(list(model.parameters()), World()))
            self.emas.append(EMA(model, 0.75))
            self.optimizers.append(make_optimizer(model, settings, on_device=on_device))
        self.clip_grad = clip_grad
        self.update = GraphedUpdate(
            self.models[1], self.gradients[1], self.emas[1], clip_grad, capture
        )

    def step(self, lr: float, seed: int, *, void: bool = False, health: float = 0.0) -> float:
        """The same gradient for both; the host leaves a void step out."""
        generator = torch.Generator().manual_seed(seed)
        values = torch.randn(self.gradients[0].flat.shape, generator=generator, dtype=torch.float64)
        values[-1] = health
        for gradients, optimizer in zip(self.gradients, self.optimizers, strict=True):
            gradients.begin()
            gradients.flat.copy_(values)
            set_lr(optimizer, lr)
        if not void:
            self.gradients[0].clip(self.gradients[0].norm(), self.clip_grad)
            self.optimizers[0].step()
            self.emas[0].update(self.models[0])
        return float(self.update.step(self.optimizers[1]))

    def assert_equal(self) -> None:
        for one, other in zip(*(m.parameters() for m in self.models), strict=True):
            torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-13)
        for name, one in self.emas[0].shadow.items():
            torch.testing.assert_close(self.emas[1].shadow[name], one, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("clip_grad", [None, 0.5])
@pytest.mark.parametrize(
    "settings",
    [
        OptimizerSettings(optimizer="adam", weight_decay=0.01),
        OptimizerSettings(optimizer="adamw", amsgrad=False, lr_params_factors={"readouts": 0.5}),
    ],
    ids=["adam", "adamw"],
)
@pytest.mark.parametrize(
    ("device", "capture"),
    [
        ("cpu", capture_operations),
        pytest.param("cuda", cuda_graph, marks=[pytest.mark.gpu, needs_gpu]),
    ],
)
def test_weights_and_averages_are_those_of_the_host(settings, clip_grad, device, capture):
    both = Both(settings, clip_grad, device, capture)
    for seed, lr in enumerate(LR):
        norm = both.step(lr, seed)
        assert math.isfinite(norm)
        both.assert_equal()
    weights = [p.detach().clone() for p in both.models[1].parameters()]
    assert math.isnan(both.step(0.25, 9, void=True, health=math.nan))  # a rank has failed
    assert math.isfinite(both.step(0.25, 10, void=True))  # the step after it changes nothing
    for before, after in zip(weights, both.models[1].parameters(), strict=True):
        assert torch.equal(before, after)
    both.update.resume_updates()
    both.step(0.25, 11)
    both.assert_equal()
    assert both.step(0.25, 12, void=True, health=math.inf) == math.inf  # only this one is void
    both.step(0.25, 13)
    both.assert_equal()


def with_a_fault(run: Any, fault: str, monkeypatch: Any) -> None:
    """Large bins have no room, or one structure has no finite loss."""
    backward = step_module.backward

    def spoilt(updater: Any, graph: Any, *arguments: Any) -> Any:
        if fault == "memory" and graph.n_atoms > 26:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        sums = backward(updater, graph, *arguments)
        if fault == "loss" and 5 in graph.ids.tolist():
            updater.gradients.flat[0] = math.nan
            sums.numerators = sums.numerators * math.nan
        return sums

    monkeypatch.setattr(step_module, "backward", spoilt)


def course_of(run: Any, monkeypatch: Any) -> str:
    """Train; the order in which steps start (s) and finish (f)."""
    course = []
    start, finish = epoch_module.start_step, epoch_module.finish_step

    def start_step(*arguments: Any) -> Any:
        course.append("s")
        return start(*arguments)

    def finish_step(*arguments: Any) -> Any:
        course.append("f")
        return finish(*arguments)

    monkeypatch.setattr(epoch_module, "start_step", start_step)
    monkeypatch.setattr(epoch_module, "finish_step", finish_step)
    fit(run)
    return "".join(course)


@needs_compiler
@pytest.mark.parametrize("fault", ["memory", "loss"])
def test_a_step_that_cannot_be_made_ends_as_on_the_host(
    fault, prepared, tmp_path, stand_in, monkeypatch
):
    found = []
    batching = BatchingSettings(max_atoms=30, max_edges=300, static_shapes=True)
    changes = {"batching": batching, "max_num_epochs": 2, "non_finite": "skip"}
    for captured in (False, True):
        output = tmp_path / str(captured)
        run = set_up(with_graphs(prepared, output, captured=captured, **changes), World())
        with monkeypatch.context() as patch:
            with_a_fault(run, fault, patch)
            found.append((run.progress, course_of(run, patch), records(output)))
    (eager, one_by_one, rows), (progress, course, replayed) = found
    assert set(one_by_one.split("sf")) == {""}
    assert "ssf" in course  # a step starts while the one before is in flight
    assert progress.n_out_of_memory == eager.n_out_of_memory
    assert (progress.n_skipped, progress.step) == (eager.n_skipped, eager.step)
    assert (progress.n_out_of_memory, progress.n_skipped)[fault == "loss"] > 0
    for one, other in zip(rows, replayed, strict=True):  # each epoch checks that it held every id
        for key in ("train_loss", "valid_loss", "grad_norm"):
            assert other[key] == pytest.approx(one[key], rel=1e-7, nan_ok=True), key


@needs_compiler
@pytest.mark.slow
def test_killed_and_resumed_is_bit_for_bit(prepared, tmp_path, stand_in):
    def settings(output: Path) -> Any:
        return with_graphs(
            prepared,
            output,
            captured=True,
            max_num_epochs=3,
            restart_latest=True,
            checkpoints=CheckpointSettings(every_steps=2),
            finish=FinishSettings(optimizer="schedulefree", epochs=1, lr=0.01),
        )

    train(settings(tmp_path / "whole"))
    for _ in range(9):
        train_until_killed(World(), settings(tmp_path / "killed"), 5)
    train(settings(tmp_path / "killed"))
    assert_same_end(tmp_path / "whole", tmp_path / "killed")
