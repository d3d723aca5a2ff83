"""A Graph in one block of memory."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mace_train.data.graph import Graph
from mace_train.data.loading.packed import _LAYOUT, PackedGraph, on_device, packed_memory


def test_every_tensor_has_a_place():
    assert set(_LAYOUT) == {item.name for item in fields(Graph)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", [(0, 0, 0), (1, 1, 0), (3, 7, 22)])
def test_tensors_are_views_that_do_not_overlap(dtype, sizes):
    packed = PackedGraph.empty(*sizes, dtype)
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


def test_a_packed_graph_reaches_a_device_by_one_copy():
    for sizes in ((0, 0, 0), (3, 7, 22)):
        packed = PackedGraph.empty(*sizes, torch.float32)
        packed.memory.fill_(1)
        graph = packed.graph()
        memory = packed_memory(graph)
        assert memory is not None
        assert torch.equal(memory.memory, packed.memory)
        assert on_device(graph, torch.device("cpu")) is graph
        with _Copies() as copies:
            moved = on_device(graph, torch.device("meta"))
        assert copies.n == 1
        assert all(getattr(moved, item.name).is_meta for item in fields(Graph))
        assert moved.n_edges == graph.n_edges


def test_a_graph_of_other_tensors_is_not_taken_for_a_packed_one():
    graph = PackedGraph.empty(3, 7, 22, torch.float32).graph()
    for name in ("positions", "ids", "pairs"):
        other = replace(graph, **{name: getattr(graph, name).clone()})
        assert packed_memory(other) is None
        assert on_device(other, torch.device("meta")).pairs.is_meta
    swapped = replace(graph, senders=graph.receivers, receivers=graph.senders)
    assert packed_memory(swapped) is None


class _Copies(TorchDispatchMode):
    """Counts copies between devices."""

    n = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.n += function is torch.ops.aten._to_copy.default
        return function(*args, **(kwargs or {}))
