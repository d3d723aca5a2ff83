"""Layers of MACE beside interactions and readouts: embedding, product (arXiv 2206.07697).

Module and parameter names are those of mace-torch's state dict, so that weights are exchanged by
name. Features are [n_atoms, (l_max + 1)^2, n_channels].
"""

import torch
from torch import Tensor, nn

from mace_train.model.batch_index import BatchIndex
from mace_train.model.contraction import SymmetricContraction
from mace_train.model.layer_spec import LayerSpec
from mace_train.model.linear import DegreeLinear, ElementEmbedding


class NodeEmbedding(nn.Module):
    """Scalars that depend on the element alone."""

    def __init__(self, n_elements: int, n_channels: int) -> None:
        super().__init__()
        self.linear = ElementEmbedding(n_elements, n_channels)

    def forward(self, index: BatchIndex) -> Tensor:
        """Features [n_atoms, 1, n_channels]."""
        return index.backend.take_rows(self.linear.table().unsqueeze(1), index.elements)


class ProductBlock(nn.Module):
    """Many-body features from the message: symmetric contraction, linear map, skipping term."""

    def __init__(self, spec: LayerSpec) -> None:
        super().__init__()
        n_channels, l_out = spec.hidden_irreps.mul, spec.hidden_irreps.l_max
        self.symmetric_contractions = SymmetricContraction(
            spec.target_irreps.l_max, l_out, spec.correlation, spec.n_product_elements, n_channels
        )
        self.linear = DegreeLinear([n_channels] * (l_out + 1), n_channels)

    def forward(self, message: Tensor, skip: Tensor | None, index: BatchIndex) -> Tensor:
        """Features [n_atoms, (l_out + 1)^2, n_channels]."""
        contracted = self.symmetric_contractions(message, index.elements, index.chunks)
        features = self.linear(contracted, index.backend)
        if skip is None:
            return features
        missing = features.shape[1] - skip.shape[1]
        return features + torch.nn.functional.pad(skip, (0, 0, 0, missing))
