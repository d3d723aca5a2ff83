"""A batch that is padded gives the same numbers, and the filling takes no part."""

from dataclasses import fields

import numpy as np
import pytest
import torch

from mace_train.data.loading.loader import batches
from mace_train.data.loading.padding import Shape, padded
from mace_train.distributed.world import World
from mace_train.errors import InputError
from mace_train.model.derivatives import predict
from mace_train.settings import BatchingSettings, LossSettings
from mace_train.train.loss import label_counts, loss_sums
from mace_train.train.setup import set_up
from mace_train.train.step import train_step
from mace_train.train.train import train
from tests.train.training import graph_of, records, settings_for


@pytest.mark.parametrize("kernels", ["reference", "auto"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_predictions_losses_and_gradients_are_those_without_padding(
    kernels, dtype, prepared, tmp_path
):
    run = set_up(settings_for(prepared, tmp_path / "run", default_dtype=dtype), World())
    run.model.kernels = kernels
    graph = graph_of(run, [0, 3, 7])
    shape = Shape(graph.n_graphs + 3, graph.n_atoms + 5, graph.n_edges + 102, run.model.data.r_max)
    full = padded(graph, shape)
    assert (full.n_graphs, full.n_atoms, full.n_edges) == (
        shape.n_graphs,
        shape.n_atoms,
        shape.n_edges,
    )
    assert (full.receivers.diff() >= 0).all()
    both = [predict(run.model, g, stress=True, create_graph=False) for g in (graph, full)]
    tolerance = {"float64": 1e-12, "float32": 2e-6}[dtype]
    for name, n in (("energy", graph.n_graphs), ("forces", graph.n_atoms), ("stress", 3)):
        one, other = (getattr(prediction, name) for prediction in both)
        scale = float(one.abs().max())
        torch.testing.assert_close(other[:n], one, rtol=0, atol=tolerance * scale)
    assert (both[1].forces[graph.n_atoms :] == 0).all()
    for kind in ("weighted", "huber", "universal", "l1l2"):
        settings = LossSettings(loss=kind)
        assert torch.equal(label_counts(full, kind), label_counts(graph, kind))
        sums = [
            loss_sums(p, g, settings).loss(settings)
            for p, g in zip(both, (graph, full), strict=True)
        ]
        assert float(sums[1]) == pytest.approx(float(sums[0]), rel=100 * tolerance)
    gradients = []
    for g in (graph, full):
        train_step(run, [g], lr=0.0)
        gradients.append(torch.cat([p.grad.flatten() for p in run.model.parameters()]).clone())
    scale = float(gradients[0].abs().max())
    torch.testing.assert_close(*gradients, rtol=0, atol=20 * tolerance * scale)


def test_what_does_not_fit_is_an_error(prepared, tmp_path):
    run = set_up(settings_for(prepared, tmp_path / "run"), World())
    graph = graph_of(run, [0, 3])
    for change in ((2, 99, 999), (9, graph.n_atoms, 999), (9, 99, graph.n_edges - 2)):
        with pytest.raises(InputError, match="leaves no room"):
            padded(graph, Shape(*change, r_max=4.0))


def test_an_empty_bin_is_padded_too(prepared, tmp_path):
    run = set_up(settings_for(prepared, tmp_path / "run"), World())
    empty = next(
        batches(
            run.train.shards,
            [np.zeros(0, dtype=np.int64)],
            atomic_numbers=run.model.data.atomic_numbers,
            dtype=run.dtype,
        )
    )
    full = padded(empty, Shape(2, 7, 30, run.model.data.r_max))
    prediction = predict(run.model, full, stress=False, create_graph=False)
    assert torch.isfinite(prediction.energy).all()
    assert (prediction.forces == 0).all()


def test_a_training_with_static_shapes_learns_the_same(prepared, tmp_path):
    rows = []
    for static in (False, True):
        batching = BatchingSettings(batch_size=3, static_shapes=static)
        output = tmp_path / str(static)
        train(settings_for(prepared, output, max_num_epochs=2, batching=batching))
        rows.append(records(output))
    for one, other in zip(*rows, strict=True):
        for key in ("train_loss", "valid_loss", "structures"):
            assert other[key] == pytest.approx(one[key], rel=1e-9), key


@pytest.mark.parametrize("num_workers", [0, 1])
def test_loading_pads_as_padded_does(num_workers, prepared, tmp_path):
    run = set_up(settings_for(prepared, tmp_path / "run"), World())
    shards, numbers = run.train.shards, run.model.data.atomic_numbers
    bins = [np.array([0, 3]), np.array([], dtype=np.int64), np.array([7])]
    shape = Shape(5, 60, 2000, 4.5)
    options = {"atomic_numbers": numbers, "dtype": torch.float32, "num_workers": num_workers}
    one = [padded(graph, shape) for graph in batches(shards, bins, **options)]
    other = list(batches(shards, bins, shape=shape, **options))
    for graph, expected in zip(other, one, strict=True):
        for item in fields(graph):
            assert torch.equal(getattr(graph, item.name), getattr(expected, item.name)), item.name
    with pytest.raises(InputError, match="leaves no room"):
        next(batches(shards, bins, shape=Shape(2, 60, 2000, 4.5), **options))
