"""Predictions equal those that mace-torch made once (scripts/make_reference.py)."""

import pytest
import torch

from mace_train.interop.state_dict import from_mace_torch
from mace_train.model.derivatives import predict
from tests.model.reference_file import NAMES, read_reference
from tests.model.systems import graph_of


def test_all_files_are_there():
    plain = ["all_elements", "default", "mace", "one_layer", "scalars", "tensors"]
    assert sorted(NAMES) == sorted([*plain, "density", "inputs", "nonlinear"])


@pytest.mark.parametrize("kernels", ["auto", "reference"])
@pytest.mark.parametrize("name", NAMES)
def test_same_predictions(name, kernels):
    reference = read_reference(name)
    model = from_mace_torch(reference.tensors, reference.header)
    model.kernels = kernels
    numbers = model.data.atomic_numbers
    graph = graph_of(reference.structures, model.data.r_max, numbers, inputs=model.inputs)
    found = predict(model, graph, stress=True, create_graph=False)
    periodic = graph.pbc.all(1)
    for key, expected in reference.results.items():
        value = getattr(found, key)
        if key == "stress":
            value, expected = value[periodic], expected[periodic]
        scale = max(float(expected.abs().max()), 1e-3) if expected.numel() else 1.0
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-10 * scale)
