"""Descriptors of atoms: the features of a model's layers, as mace-torch's ``get_descriptors``.

Columns stand layer after layer, and in a layer as its irreps say: of ``128x0e+128x1o`` first 128
invariant columns, then 128 times the three components (x, y, z) of a vector. Invariant ones alone
are the 0e columns of every layer. The last layer of a model has invariant columns only,
unless it keeps its irreps (``keep_last_layer_irreps``): then all are here, of which mace-torch's
method leaves out those that turn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt

import torch
from torch import Tensor

from mace_train.data.graph import Graph
from mace_train.errors import InputError
from mace_train.irreps import FeatureIrreps
from mace_train.model.derivatives import predict
from mace_train.model.mace import MACE


@dataclass(frozen=True)
class NodeDescriptors:
    """Descriptors of the atoms of a batch, and what their columns are."""

    values: Tensor  # [n_atoms, n_columns], in the model's dtype
    irreps: tuple[str, ...]  # columns of every layer, such as ("128x0e+128x1o", "128x0e")


def node_descriptors(
    model: MACE, graph: Graph, *, invariants_only: bool = True, num_layers: int = -1
) -> NodeDescriptors:
    """Descriptors of all atoms of the batch; see the module's docstring for their columns.

    Args:
        model: Which model's; its weights get no gradients.
        graph: The batch, where the model is.
        invariants_only: Leave out what turns with the structure.
        num_layers: Take the first so many layers; -1 takes all.

    Raises:
        InputError: more layers than the model has, or none.
    """
    check_num_layers(model, num_layers)
    layers = node_features(model, graph)[: num_layers if num_layers > 0 else None]
    if invariants_only:
        layers = [x[:, :1] for x in layers]
    return NodeDescriptors(
        torch.cat([column for x in layers for column in _by_degree(x)], dim=1),
        tuple(str(FeatureIrreps(x.shape[2], _l_max(x))) for x in layers),
    )


def check_num_layers(model: MACE, num_layers: int) -> None:
    """InputError unless the model has ``num_layers`` layers; -1 are all."""
    n_layers = model.settings.num_interactions
    if num_layers != -1 and not 1 <= num_layers <= n_layers:
        raise InputError(
            f"num_layers={num_layers}: the model has {n_layers}; give 1 to {n_layers}, or -1 for "
            "all"
        )


def node_features(model: MACE, graph: Graph) -> list[Tensor]:
    """Features [n_atoms, (l_max + 1)^2, n_channels] after every layer, without gradients."""
    found: list[Tensor] = []

    def keep(module: torch.nn.Module, arguments: object, output: Tensor) -> None:
        found.append(output)

    handles = [product.register_forward_hook(keep) for product in model.products]
    try:
        with torch.no_grad():
            predict(model, graph, stress=False, forces=False, create_graph=False)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _l_max(x: Tensor) -> int:
    return isqrt(x.shape[1]) - 1


def _by_degree(x: Tensor) -> Sequence[Tensor]:
    """Features of every degree as columns [n_atoms, n_channels * (2l + 1)]."""
    return [
        x[:, degree**2 : (degree + 1) ** 2].transpose(1, 2).flatten(1)
        for degree in range(_l_max(x) + 1)
    ]
