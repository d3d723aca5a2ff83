"""Blocks that divide by a learned density of neighbours (MACE-MP-0b, MPA-0, OMAT-0, MATPES).

    m_n = linear(sum_e ...) / (1 + rho_n),     rho_n = sum_{edges e to n} tanh((w . b(r_e))^2)

with the radial basis b, which is zero at the cutoff (or, where it is not, times the cutoff): an
atom whose neighbours come and go meets no step, and one with many neighbours has no larger message
than one with few.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from mace_train.model.batch_index import BatchIndex
from mace_train.model.convolution import EdgeFeatures
from mace_train.model.interactions.interaction import (
    MapOfMessage,
    RadialInteractionBlock,
    SkipOfFeatures,
)
from mace_train.model.layer_spec import LayerSpec
from mace_train.model.radial import RadialLayer


class EdgeDensity(nn.Module):
    """rho above."""

    def __init__(self, n_basis: int) -> None:
        super().__init__()
        self.layer0 = RadialLayer(n_basis, 1)

    def forward(self, edges: EdgeFeatures, index: BatchIndex) -> Tensor:
        """Densities [n_atoms, 1]; an edge and its reverse have the same part of them."""
        of_pairs = torch.tanh(torch.matmul(edges.radial, self.layer0.scaled()).square())
        of_pairs = of_pairs if edges.cutoff is None else of_pairs * edges.cutoff
        return index.sum_to_receivers(of_pairs)


class _DensityBlock(RadialInteractionBlock):
    needs_edge_ends: ClassVar[bool] = True

    def __init__(self, spec: LayerSpec) -> None:
        super().__init__(spec)
        self.density_fn = EdgeDensity(spec.n_basis)

    @classmethod
    def count_weights(cls, spec: LayerSpec) -> int:
        """The number of weights of the block, without building it."""
        return super().count_weights(spec) + spec.n_basis

    def message(self, x: Tensor, edges: EdgeFeatures, index: BatchIndex) -> Tensor:
        """The message m above [n_atoms, (l_edges + 1)^2, n_channels]."""
        factor = (self.density_fn(edges, index) + 1).reciprocal().unsqueeze(2)
        return self.summed_messages(x, edges, index) * factor


class RealAgnosticDensityInteractionBlock(MapOfMessage, _DensityBlock):
    """The message goes through a map of each element; nothing skips the product."""


class RealAgnosticDensityResidualInteractionBlock(SkipOfFeatures, _DensityBlock):
    """The features that enter skip the product, through a map of each element."""
