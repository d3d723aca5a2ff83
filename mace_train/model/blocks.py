"""Layers of MACE beside the interactions: embedding, product, readouts (arXiv 2206.07697).

Module and parameter names are those of mace-torch's state dict, so that weights are exchanged by
name. Features are [n_atoms, (l_max + 1)^2, n_channels].
"""

import torch
from torch import Tensor, nn

from mace_train.model.batch_index import BatchIndex
from mace_train.model.contraction import SymmetricContraction
from mace_train.model.layer_spec import LayerSpec
from mace_train.model.linear import DegreeLinear, ElementEmbedding, split_degrees
from mace_train.model.radial import scaled_silu


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
        features = self.linear(split_degrees(contracted))
        if skip is None:
            return features
        missing = features.shape[1] - skip.shape[1]
        return features + torch.nn.functional.pad(skip, (0, 0, 0, missing))


class LinearReadout(nn.Module):
    """Energy as a linear function of the scalars, one for each head."""

    def __init__(self, n_channels: int, n_heads: int = 1) -> None:
        super().__init__()
        self.linear = DegreeLinear([n_channels], n_heads)

    def forward(self, x: Tensor, head: Tensor | None = None) -> Tensor:
        """Energies [n_atoms]; ``head`` [n_atoms, n_heads] is 1 at the head of each atom."""
        return _of_head(self.linear([x[:, :1]]), head)


class NonLinearReadout(nn.Module):
    """Energy as a two-layer perceptron of the scalars; each head has hidden values of its own.

    The hidden values of one head are contiguous, head after head, as in mace-torch.
    """

    def __init__(self, n_channels: int, n_hidden: int, n_heads: int = 1) -> None:
        super().__init__()
        self.linear_1 = DegreeLinear([n_channels], n_hidden * n_heads)
        self.linear_2 = DegreeLinear([n_hidden * n_heads], n_heads)

    def forward(self, x: Tensor, head: Tensor | None = None) -> Tensor:
        """Energies [n_atoms]; ``head`` [n_atoms, n_heads] is 1 at the head of each atom."""
        hidden = scaled_silu(self.linear_1([x[:, :1]]))
        if head is not None:
            of_heads = hidden.view(hidden.shape[0], 1, head.shape[1], -1)
            hidden = (of_heads * head[:, None, :, None]).flatten(2)
        return _of_head(self.linear_2([hidden]), head)


def _of_head(energies: Tensor, head: Tensor | None) -> Tensor:
    """Those of each atom's head [n_atoms] from those of all [n_atoms, 1, n_heads]."""
    return energies.flatten() if head is None else (energies.squeeze(1) * head).sum(1)
