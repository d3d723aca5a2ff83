"""The block whose weights of an edge depend on the features of both of its atoms.

    R_e = network(radial basis, down(x)[sender of e], down(x)[receiver of e])

The network has no biases, and its hidden widths are fixed; weights are not normalised over
neighbours, in spite of the name.
"""

from typing import ClassVar

from torch import Tensor

from mace_train.model.batch_index import BatchIndex, SharedWeights
from mace_train.model.convolution import EdgeFeatures
from mace_train.model.interactions.interaction import (
    InteractionBlock,
    message_fan_in,
    n_paths,
    skip_fan_in,
)
from mace_train.model.layer_spec import LayerSpec
from mace_train.model.linear import DegreeLinear, degree_linear_size, split_degrees
from mace_train.model.radial import RadialNetwork, radial_network_size
from mace_train.model.radial_mlp import EdgeInputs

ATTENTION_CHANNELS = 64  # of down(x)
_WIDTHS = [256, 256, 256]


class RealAgnosticAttResidualInteractionBlock(InteractionBlock):
    """The features that enter skip the product, through a map of all elements."""

    needs_edge_ends: ClassVar[bool] = True
    shared_weights: ClassVar[SharedWeights] = SharedWeights.OF_NONE

    def __init__(self, spec: LayerSpec) -> None:
        super().__init__(spec)
        n_channels = spec.node_feats_irreps.mul
        self.avg_num_neighbors = spec.avg_num_neighbors
        self.linear_down = DegreeLinear([n_channels], ATTENTION_CHANNELS)
        self.conv_tp_weights = RadialNetwork(*_network_sizes(spec))
        self.linear = DegreeLinear(message_fan_in(spec), spec.target_irreps.mul)
        self.skip_linear = DegreeLinear(skip_fan_in(spec), n_channels)

    @classmethod
    def count_weights(cls, spec: LayerSpec) -> int:
        """The number of weights of the block, without building it."""
        n_channels = spec.node_feats_irreps.mul
        return (
            super().count_weights(spec)
            + n_channels * ATTENTION_CHANNELS
            + radial_network_size(*_network_sizes(spec))
            + degree_linear_size(message_fan_in(spec), spec.target_irreps.mul)
            + degree_linear_size(skip_fan_in(spec), n_channels)
        )

    def forward(self, x: Tensor, edges: EdgeFeatures, index: BatchIndex) -> tuple[Tensor, Tensor]:
        """See ``InteractionBlock``."""
        network, down = self.conv_tp_weights, self.linear_down([x[:, :1]]).squeeze(1)
        inputs = EdgeInputs(edges.radial, down, down, index)
        first, *others = network.matrices()
        factors = network.behind(inputs.times(first, network.matmul_dtype), others, edges.cutoff)
        summed = self.convolved(self.sent(x, index), edges, index, network, factors)
        skip = self.skip_linear(split_degrees(x)[: len(self.skip_linear.fan_in)])
        return self.linear(summed) / self.avg_num_neighbors, skip


def _network_sizes(spec: LayerSpec) -> tuple[int, list[int], int, int]:
    n_inputs = spec.n_basis + 2 * ATTENTION_CHANNELS
    return n_inputs, _WIDTHS, n_paths(spec), spec.edge_irreps.mul
