"""Which edges share a row with their reverse."""

from collections import Counter

import pytest
import torch

from mace_train.model.batch_index import BatchIndex, SharedWeights
from mace_train.ops.backends import Backend
from tests.model.systems import graph_of, mixed, salt, water

ELEMENTS = (1, 8, 11, 17)


def index_of(shared_weights, backend="cpp", **options):
    graph = graph_of([mixed(ELEMENTS), water(), salt()], 4.0, ELEMENTS, torch.float64)
    index = BatchIndex.of(
        Backend(backend),
        graph.elements,
        graph.senders,
        graph.receivers,
        graph.pairs,
        graph.first_of_pair,
        n_elements=len(ELEMENTS),
        edge_ends=True,
        shared_weights=shared_weights,
        **options,
    )
    return graph, index


def test_edges_between_atoms_of_one_element_share_a_row_with_their_reverse():
    graph, index = index_of(SharedWeights.OF_ELEMENTS)
    pairs, first = index.edges.pairs.tolist(), index.edges.first_of_pair.tolist()
    elements, senders, receivers = (
        tensor.tolist() for tensor in (graph.elements, graph.senders, graph.receivers)
    )
    edges_of = Counter(pairs)
    for edge, (row, s, r) in enumerate(zip(pairs, senders, receivers, strict=True)):
        is_shared = elements[s] == elements[r]
        assert edges_of[row] == (2 if is_shared else 1)
        old = graph.first_of_pair.tolist()[graph.pairs.tolist()[edge]]
        assert first[row] == (old if is_shared else edge)
    assert 0 < sum(n == 2 for n in edges_of.values()) < len(first)
    counts = [edges_of[row] for row in range(len(first))]
    assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize(
    ("shared_weights", "options"),
    [(SharedWeights.OF_NONE, {}), (SharedWeights.OF_ELEMENTS, {"static_shapes": True})],
)
def test_otherwise_every_edge_is_alone(shared_weights, options):
    graph, index = index_of(shared_weights, **options)
    assert index.edges.pairs.tolist() == list(range(graph.n_edges))


def test_without_pairs_no_row_is_shared():
    index = BatchIndex.of(
        Backend("cpp"),
        torch.tensor([0, 0]),
        torch.tensor([1, 0]),
        torch.tensor([0, 1]),
        n_elements=1,
        shared_weights=SharedWeights.OF_ELEMENTS,
    )
    assert index.edges.first_of_pair.tolist() == [0, 1]
