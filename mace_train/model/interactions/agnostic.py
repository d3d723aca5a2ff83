"""Blocks that divide by the mean number of neighbours of the training data."""

from torch import Tensor

from mace_train.model.batch_index import BatchIndex
from mace_train.model.convolution import EdgeFeatures
from mace_train.model.interactions.interaction import (
    InteractionBlock,
    map_of_message,
    skip_of_features,
)
from mace_train.model.layer_spec import LayerSpec


class RealAgnosticInteractionBlock(InteractionBlock):
    """The message goes through a map of each element; nothing skips the product."""

    def __init__(self, spec: LayerSpec) -> None:
        super().__init__(spec)
        self.avg_num_neighbors = spec.avg_num_neighbors
        self.skip_tp = map_of_message(spec)

    def forward(self, x: Tensor, edges: EdgeFeatures, index: BatchIndex) -> tuple[Tensor, None]:
        """See ``InteractionBlock``."""
        message = self.summed_messages(x, edges, index) / self.avg_num_neighbors
        return self.skip_tp(message, index.groups), None


class RealAgnosticResidualInteractionBlock(InteractionBlock):
    """The features that enter skip the product, through a map of each element."""

    def __init__(self, spec: LayerSpec) -> None:
        super().__init__(spec)
        self.avg_num_neighbors = spec.avg_num_neighbors
        self.skip_tp = skip_of_features(spec)

    def forward(self, x: Tensor, edges: EdgeFeatures, index: BatchIndex) -> tuple[Tensor, Tensor]:
        """See ``InteractionBlock``."""
        message = self.summed_messages(x, edges, index) / self.avg_num_neighbors
        return message, self.skip_tp(x, index.groups)
