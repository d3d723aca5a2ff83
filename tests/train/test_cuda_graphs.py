"""Captured gradients: a graph captured with one bin gives the gradients of all others.

Where there is no GPU, the operations of one run stand in for the capture (conftest.py).
"""

from pathlib import Path
from typing import Any

import pytest
import torch

from mace_train.distributed.world import World, open_world
from mace_train.errors import InputError
from mace_train.ops.cpp.compiler import find_compiler
from mace_train.settings import ClusterSettings, StageTwoSettings, TrainSettings
from mace_train.train.run import Run
from mace_train.train.setup import set_up
from mace_train.train.step import train_step
from mace_train.train.train import fit
from tests.train.training import graph_of, records, settings_for, with_graphs

needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler")


def run_of(settings: TrainSettings, world: World) -> tuple[Run, list[dict[str, Any]]]:
    run = set_up(settings, world)
    fit(run)
    return run, records(run.output)


def assert_same_training(prepared: Path, folder: Path, tolerance: float, **changes: Any) -> None:
    found = []
    for captured in (False, True):
        output = folder / str(captured)
        settings = with_graphs(prepared, output, captured=captured, **changes)
        with open_world(settings.cluster) as world:
            found.append(run_of(settings, world))
    (_, eager), (run, replayed) = found
    assert run.updater.graphed_gradient is not None
    n_stages = len(run.stages)
    assert n_stages <= run.updater.graphed_gradient.n_captures <= n_stages + 1
    assert run.progress.step > 2 * run.updater.graphed_gradient.n_captures
    assert [row["epoch"] for row in replayed] == [row["epoch"] for row in eager]
    for one, other in zip(eager, replayed, strict=True):  # learning rates are float32 there
        for key in ("train_loss", "valid_loss", "grad_norm"):
            assert other[key] == pytest.approx(one[key], rel=tolerance), key


@needs_compiler
@pytest.mark.slow
def test_a_graph_of_one_bin_trains_on_all_others(prepared, tmp_path, stand_in):
    stage_two = StageTwoSettings(enabled=True, start=2)
    assert_same_training(prepared, tmp_path, 1e-7, max_num_epochs=3, stage_two=stage_two)


@needs_compiler
def test_accumulated_bins_and_an_end_of_memory(prepared, tmp_path, stand_in, monkeypatch):
    eager, run = (
        set_up(
            with_graphs(prepared, tmp_path, captured=captured, activation_checkpointing=captured),
            World(),
        )
        for captured in (False, True)
    )
    graphs = [padded_of(run, ids) for ids in ([2, 9], [1], [])]
    gradients = []
    for one in (eager, run):
        train_step(one, graphs, lr=0.0)
        gradients.append([p.grad.clone() for p in one.updater.parameters])
    scale = max(float(g.abs().max()) for g in gradients[0])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-11, atol=1e-12 * scale)
    assert run.updater.graphed_gradient.n_captures == 1

    def fail() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(run.updater.graphed_gradient._captured, "replay", fail)
    result = train_step(run, graphs[:1], lr=0.0)
    assert [failure.reason for failure in result.failures] == ["memory"]
    assert run.updater.graphed_gradient._captured is None  # its memory is free for the next one


def padded_of(run: Run, ids: list[int]) -> Any:
    from mace_train.data.loading.padding import Shape, padded

    return padded(graph_of(run, ids), Shape(8, 60, 3000, run.model.data.r_max))


def test_without_a_gpu_or_static_shapes_it_is_an_error(prepared, tmp_path):
    with pytest.raises(InputError, match=r"needs batching\.static_shapes=true"):
        settings_for(prepared, tmp_path, cluster=ClusterSettings(cuda_graphs=True))
    settings = with_graphs(prepared, tmp_path, captured=True)
    with pytest.raises(InputError, match="needs an NVIDIA GPU, but the training runs on cpu"):
        set_up(settings, World())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_replays_on_a_gpu_train_as_eager_steps_do(checkpointing, prepared, tmp_path):
    assert_same_training(
        prepared,
        tmp_path,
        1e-7,
        device="cuda",
        max_num_epochs=3,
        stage_two=StageTwoSettings(enabled=True, start=2),
        activation_checkpointing=checkpointing,
    )
