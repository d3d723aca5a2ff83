"""A Graph in one piece of memory."""

from dataclasses import fields

import numpy as np
import pytest
import torch

from mace_train.data.graph import Graph
from mace_train.data.packed import _LAYOUT, Packed


def test_every_tensor_has_a_place():
    assert set(_LAYOUT) == {item.name for item in fields(Graph)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", [(0, 0, 0), (1, 1, 0), (3, 7, 22)])
def test_tensors_are_views_that_do_not_overlap(dtype, sizes):
    packed = Packed.empty(*sizes, dtype)
    arrays, graph = packed.arrays(), packed.graph()
    for number, array in enumerate(arrays.values()):
        array[...] = number % 2 if array.dtype == bool else number
    for number, (name, array) in enumerate(arrays.items()):
        tensor = getattr(graph, name)
        assert (array == (number % 2 if array.dtype == bool else number)).all(), name
        np.testing.assert_array_equal(tensor.numpy(), array)
        assert tensor.shape == array.shape
        assert tensor.is_contiguous()
        assert tensor.data_ptr() % 64 == 0
        assert tensor.untyped_storage().data_ptr() == packed.memory.untyped_storage().data_ptr()
    assert (graph.n_graphs, graph.n_atoms, graph.n_edges) == sizes
    assert graph.positions.dtype == dtype
    assert len(graph.first_of_pair) == sizes[2] // 2
