"""Layers of MACE: interaction, product and readouts (arXiv 2206.07697, eqs. 7-13).

Module and parameter names are those of mace-torch's state dict, so that weights are exchanged by
name. Features are [n_atoms, (l_max + 1)^2, n_channels].
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mace_train.model.contraction import SymmetricContraction
from mace_train.model.convolution import Convolution, EdgeFeatures
from mace_train.model.linear import DegreeLinear, ElementGroups, ElementLinear, split_degrees
from mace_train.model.radial import RadialNetwork, scaled_silu
from mace_train.ops.row_sums import take_rows
from mace_train.ops.symmetric_contraction import Chunks


@dataclass(frozen=True)
class LayerSpec:
    """What a layer needs to know of the architecture."""

    n_elements: int
    n_channels: int
    l_in: int  # highest degree of the features that enter the layer
    l_out: int  # ... that leave it
    l_edges: int  # ... of the spherical harmonics and the message
    correlation: int
    n_basis: int
    radial_widths: list[int]
    avg_num_neighbors: float


class NodeEmbedding(nn.Module):
    """Scalars that depend on the element alone."""

    def __init__(self, n_elements: int, n_channels: int) -> None:
        super().__init__()
        self.n_elements = n_elements
        self.linear = DegreeLinear([n_elements], n_channels)

    def forward(self, elements: Tensor, *, in_order: bool = False) -> Tensor:
        """Features [n_atoms, 1, n_channels]; the gradient's sum over atoms ``in_order`` or not."""
        table = self.linear.weight.view(self.n_elements, 1, -1) * self.n_elements**-0.5
        return take_rows(table, elements) if in_order else table.index_select(0, elements)


class InteractionBlock(nn.Module):
    """Messages from neighbours, and the term that skips the product.

    The residual kind passes the incoming features through an element-dependent linear map around
    the product; the other kind (first layer of the "MACE" flavour) applies one to the message.
    """

    def __init__(self, sizes: LayerSpec, *, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        self.checkpointing = False  # of what the convolution makes per edge
        self.avg_num_neighbors = sizes.avg_num_neighbors
        n_channels = sizes.n_channels
        self._convolution = Convolution(sizes.l_in, sizes.l_edges)
        n_paths = len(self._convolution.paths)
        fan_in = [
            self._convolution.paths_to(degree) * n_channels for degree in range(sizes.l_edges + 1)
        ]
        self.linear_up = DegreeLinear([n_channels] * (sizes.l_in + 1), n_channels)
        self.conv_tp_weights = RadialNetwork(
            sizes.n_basis, sizes.radial_widths, n_paths, n_channels
        )
        self.linear = DegreeLinear(fan_in, n_channels)
        skipped = min(sizes.l_in, sizes.l_out) if residual else sizes.l_edges
        self.skip_tp = ElementLinear(skipped + 1, sizes.n_elements, n_channels)

    def forward(
        self, x: Tensor, edges: EdgeFeatures, groups: ElementGroups
    ) -> tuple[Tensor, Tensor | None]:
        """Message [n_atoms, (l_edges + 1)^2, n_channels], and the skipping term or None."""
        up = self.linear_up(split_degrees(x))
        network = self.conv_tp_weights
        summed = self._convolution(up, edges, network, checkpointing=self.checkpointing)
        message = self.linear(summed) / self.avg_num_neighbors
        if self.residual:
            return message, self.skip_tp(x, groups)
        return self.skip_tp(message, groups), None


class ProductBlock(nn.Module):
    """Many-body features from the message: symmetric contraction, linear map, skipping term."""

    def __init__(self, sizes: LayerSpec) -> None:
        super().__init__()
        n_channels = sizes.n_channels
        self.symmetric_contractions = SymmetricContraction(
            sizes.l_edges, sizes.l_out, sizes.correlation, sizes.n_elements, n_channels
        )
        self.linear = DegreeLinear([n_channels] * (sizes.l_out + 1), n_channels)

    def forward(self, message: Tensor, skip: Tensor | None, elements: Tensor | Chunks) -> Tensor:
        """Features [n_atoms, (l_out + 1)^2, n_channels]."""
        contracted = self.symmetric_contractions(message, elements)
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

    def forward(self, x: Tensor, chosen: Tensor | None = None) -> Tensor:
        """Energies [n_atoms]; ``chosen`` [n_atoms, n_heads] is 1 at the head of each atom."""
        return _of_head(self.linear([x[:, :1]]), chosen)


class NonLinearReadout(nn.Module):
    """Energy as a two-layer perceptron of the scalars; each head has hidden values of its own.

    The hidden values of one head stand together, head after head, as in mace-torch.
    """

    def __init__(self, n_channels: int, n_hidden: int, n_heads: int = 1) -> None:
        super().__init__()
        self.linear_1 = DegreeLinear([n_channels], n_hidden * n_heads)
        self.linear_2 = DegreeLinear([n_hidden * n_heads], n_heads)

    def forward(self, x: Tensor, chosen: Tensor | None = None) -> Tensor:
        """Energies [n_atoms]; ``chosen`` [n_atoms, n_heads] is 1 at the head of each atom."""
        hidden = scaled_silu(self.linear_1([x[:, :1]]))
        if chosen is not None:
            of_heads = hidden.view(hidden.shape[0], 1, chosen.shape[1], -1)
            hidden = (of_heads * chosen[:, None, :, None]).flatten(2)
        return _of_head(self.linear_2([hidden]), chosen)


def _of_head(energies: Tensor, chosen: Tensor | None) -> Tensor:
    """Those of the chosen heads [n_atoms] from those of all [n_atoms, 1, n_heads]."""
    return energies.flatten() if chosen is None else (energies.squeeze(1) * chosen).sum(1)
