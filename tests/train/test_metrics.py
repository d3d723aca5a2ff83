"""Error sums against numpy on all data at once, whatever the batches."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mace_train.train.metrics import ErrorSums
from tests.train.labelled_batch import SIZES, batch, prediction_for

CONFIG_TYPES = ["crystal", "molecule"]
INDEX = torch.tensor([0, 1, 0, 1])


def sums_of(missing: bool) -> tuple[ErrorSums, object, object]:
    graph = batch(missing)
    graph.elements = torch.arange(sum(SIZES)) % 2
    prediction = prediction_for(graph)
    errors = ErrorSums(CONFIG_TYPES, (1, 8))
    errors.add(prediction, graph, INDEX)
    return errors, graph, prediction


@pytest.mark.parametrize("missing", [False, True])
def test_rows_equal_numpy(missing):
    errors, graph, prediction = sums_of(missing)
    table = {row["name"]: row for row in errors.table()}
    assert list(table) == [
        "all",
        "config_type crystal",
        "config_type molecule",
        "element H",
        "element O",
    ]
    energy = ((prediction.energy - graph.energy) / torch.tensor(SIZES)).numpy()
    has_energy = graph.has_energy.numpy()
    forces = (prediction.forces - graph.forces).numpy()
    has_forces = graph.has_forces[graph.graph_of_atom].numpy()
    kind_of_atom = INDEX[graph.graph_of_atom].numpy()
    masks = {
        "all": np.ones(sum(SIZES), bool),
        "config_type crystal": kind_of_atom == 0,
        "element O": graph.elements.numpy() == 1,
    }
    for name, mask in masks.items():
        chosen = forces[mask & has_forces]
        assert table[name]["forces_rmse_eV_per_A"] == pytest.approx(np.sqrt((chosen**2).mean()))
        assert table[name]["forces_mae_eV_per_A"] == pytest.approx(np.abs(chosen).mean())
        assert table[name]["forces_count"] == chosen.size
    chosen = energy[has_energy]
    assert table["all"]["energy_rmse_eV_per_atom"] == pytest.approx(np.sqrt((chosen**2).mean()))
    stress = (prediction.stress - graph.stress)[graph.has_stress].numpy()
    assert table["all"]["stress_mae_eV_per_A3"] == pytest.approx(np.abs(stress).mean())
    reference = graph.forces.numpy()[has_forces]
    rms = table["all"]["forces_rms_reference_eV_per_A"]
    assert rms == pytest.approx(np.sqrt((reference**2).mean()))
    assert "energy_rmse_eV_per_atom" not in table["element H"]


def test_components_across_slabs_do_not_count():
    graph = batch(False)
    graph.pbc = torch.tensor([[1, 1, 1], [0, 1, 1], [0, 1, 0], [0, 0, 0]], dtype=torch.bool)
    graph.has_stress = graph.pbc.any(1)
    mask = graph.pbc[:, :, None] * graph.pbc[:, None, :]
    graph.stress = graph.stress * mask
    prediction = prediction_for(graph)
    prediction = replace(prediction, stress=prediction.stress * mask)
    errors = ErrorSums(CONFIG_TYPES, (1, 8))
    errors.add(prediction, graph, INDEX)
    row = errors.table()[0]
    chosen = (prediction.stress - graph.stress)[mask].numpy()
    assert row["stress_count"] == chosen.size == 14
    assert row["stress_rmse_eV_per_A3"] == pytest.approx(np.sqrt((chosen**2).mean()))
    assert row["stress_mae_eV_per_A3"] == pytest.approx(np.abs(chosen).mean())


def test_rows_without_labels_are_left_out():
    errors, graph, prediction = sums_of(False)
    empty = ErrorSums([*CONFIG_TYPES, "surface"], (1, 8, 26))
    empty.add(prediction, graph, INDEX)
    names = [row["name"] for row in empty.table()]
    assert "config_type surface" not in names
    assert "element Fe" not in names
    assert len(names) == len(errors.table())


def test_sums_add_over_batches():
    errors, graph, prediction = sums_of(False)
    twice = ErrorSums(CONFIG_TYPES, (1, 8))
    twice.add(prediction, graph, INDEX)
    twice.add(prediction, graph, INDEX)
    torch.testing.assert_close(twice.sums, 2 * errors.sums)
