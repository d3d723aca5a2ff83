"""Blocks that divide by the mean number of neighbours of the training data."""

from torch import Tensor

from mace_train.model.batch_index import BatchIndex
from mace_train.model.convolution import EdgeFeatures
from mace_train.model.interactions.interaction import (
    MapOfMessage,
    RadialInteractionBlock,
    SkipOfFeatures,
)
from mace_train.model.layer_spec import LayerSpec


class _AgnosticBlock(RadialInteractionBlock):
    def __init__(self, spec: LayerSpec) -> None:
        super().__init__(spec)
        self.avg_num_neighbors = spec.avg_num_neighbors

    def message(self, x: Tensor, edges: EdgeFeatures, index: BatchIndex) -> Tensor:
        """The message [n_atoms, (l_edges + 1)^2, n_channels]."""
        return self.summed_messages(x, edges, index) / self.avg_num_neighbors


class RealAgnosticInteractionBlock(MapOfMessage, _AgnosticBlock):
    """The message goes through a map of each element; nothing skips the product."""


class RealAgnosticResidualInteractionBlock(SkipOfFeatures, _AgnosticBlock):
    """The features that enter skip the product, through a map of each element."""
