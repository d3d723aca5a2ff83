"""Blocks that divide by the mean number of neighbours of the training data."""

from torch import Tensor

from mace_train.model.batch_index import BatchIndex
from mace_train.model.convolution import EdgeFeatures
from mace_train.model.interactions.interaction import (
    RadialInteractionBlock,
    irreps_of_skip,
)
from mace_train.model.layer_spec import LayerSpec
from mace_train.model.linear import ElementLinear, element_linear_size


class RealAgnosticInteractionBlock(RadialInteractionBlock):
    """The message goes through a map of each element; nothing skips the product."""

    def __init__(self, spec: LayerSpec) -> None:
        super().__init__(spec)
        self.avg_num_neighbors = spec.avg_num_neighbors
        self.skip_tp = ElementLinear(spec.target_irreps, spec.n_elements)

    @classmethod
    def count_weights(cls, spec: LayerSpec) -> int:
        """The number of weights of the block, without building it."""
        by_element = element_linear_size(spec.target_irreps, spec.n_elements)
        return super().count_weights(spec) + by_element

    def forward(self, x: Tensor, edges: EdgeFeatures, index: BatchIndex) -> tuple[Tensor, None]:
        """See ``InteractionBlock``."""
        message = self.summed_messages(x, edges, index) / self.avg_num_neighbors
        return self.skip_tp(message, index.groups), None


class RealAgnosticResidualInteractionBlock(RadialInteractionBlock):
    """The features that enter skip the product, through a map of each element."""

    def __init__(self, spec: LayerSpec) -> None:
        super().__init__(spec)
        self.avg_num_neighbors = spec.avg_num_neighbors
        self.skip_tp = ElementLinear(irreps_of_skip(spec), spec.n_elements)

    @classmethod
    def count_weights(cls, spec: LayerSpec) -> int:
        """The number of weights of the block, without building it."""
        by_element = element_linear_size(irreps_of_skip(spec), spec.n_elements)
        return super().count_weights(spec) + by_element

    def forward(self, x: Tensor, edges: EdgeFeatures, index: BatchIndex) -> tuple[Tensor, Tensor]:
        """See ``InteractionBlock``."""
        message = self.summed_messages(x, edges, index) / self.avg_num_neighbors
        return message, self.skip_tp(x, index.groups)
