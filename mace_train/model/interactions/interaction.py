"""What interaction blocks share: the linear map of senders, the convolution, its weights."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from mace_train.irreps import FeatureIrreps
from mace_train.model.batch_index import BatchIndex, SharedWeights
from mace_train.model.convolution import Convolution, EdgeFeatures
from mace_train.model.coupling import convolution_paths
from mace_train.model.layer_spec import LayerSpec
from mace_train.model.linear import (
    DegreeLinear,
    ElementLinear,
    degree_linear_size,
    element_linear_size,
)
from mace_train.model.radial import PathNetwork, RadialNetwork, radial_network_size


class InteractionBlock(nn.Module, ABC):
    """Messages from neighbours, and the term that skips the product."""

    needs_edge_ends: ClassVar[bool] = False
    """Whether ``forward`` reads ``index.ends``."""
    shared_weights: ClassVar[SharedWeights] = SharedWeights.OF_PAIRS
    """Which edges have the weights of their reverse."""

    def __init__(self, spec: LayerSpec) -> None:
        super().__init__()
        self.checkpointing = False  # of what the convolution makes per edge
        self._convolution = Convolution(spec.edge_irreps.l_max, spec.edge_attrs_irreps.l_max)
        self.linear_up = DegreeLinear(_up_fan_in(spec), spec.edge_irreps.mul)

    @classmethod
    def count_weights(cls, spec: LayerSpec) -> int:
        """The number of weights of the block, without building it."""
        return degree_linear_size(_up_fan_in(spec), spec.edge_irreps.mul)

    def extra_repr(self) -> str:
        """What has no module of its own."""
        return repr(self._convolution)

    @abstractmethod
    def forward(
        self, x: Tensor, edges: EdgeFeatures, index: BatchIndex
    ) -> tuple[Tensor, Tensor | None]:
        """Message [n_atoms, (l_edges + 1)^2, n_channels], and the skipping term or None.

        Takes features x [n_atoms, (l_nodes + 1)^2, n_channels].
        """

    def sent(self, x: Tensor, index: BatchIndex) -> Tensor:
        """What atoms send [n_atoms, (l + 1)^2, n_edge_channels]; edges may have fewer degrees."""
        features: Tensor = self.linear_up(x, index.backend)
        return features

    def convolved(
        self,
        sent: Tensor,
        edges: EdgeFeatures,
        index: BatchIndex,
        network: PathNetwork,
        weights: Tensor | tuple[Tensor, Tensor],
    ) -> Sequence[Tensor]:
        """Degrees [n_atoms, 2l + 1, fan_in_of_message(l)] of the sums over edges."""
        return self._convolution(
            sent, edges.harmonics, index, network, weights, checkpointing=self.checkpointing
        )


class RadialInteractionBlock(InteractionBlock):
    """Its weights depend on the distance alone, by a network without biases."""

    def __init__(self, spec: LayerSpec) -> None:
        super().__init__(spec)
        self.conv_tp_weights = RadialNetwork(*_network_sizes(spec))
        self.linear = DegreeLinear(message_fan_in(spec), spec.target_irreps.mul)

    @classmethod
    def count_weights(cls, spec: LayerSpec) -> int:
        """The number of weights of the block, without building it."""
        mixing = degree_linear_size(message_fan_in(spec), spec.target_irreps.mul)
        return super().count_weights(spec) + radial_network_size(*_network_sizes(spec)) + mixing

    @abstractmethod
    def message(self, x: Tensor, edges: EdgeFeatures, index: BatchIndex) -> Tensor:
        """``summed_messages``, divided by what the kind of block divides by."""

    def summed_messages(self, x: Tensor, edges: EdgeFeatures, index: BatchIndex) -> Tensor:
        """Sums [n_atoms, (l_edges + 1)^2, n_channels] over edges, mixed and not normalised."""
        network = self.conv_tp_weights
        at_once = index.edges is not None and not self.checkpointing
        weights = (network.product if at_once else network.hidden)(edges.radial, edges.cutoff)
        sums = self.convolved(self.sent(x, index), edges, index, network, weights)
        mixed: Tensor = self.linear(sums, index.backend)
        return mixed


class MapOfMessage(RadialInteractionBlock):
    """The message goes through a map of each element; nothing skips the product."""

    def __init__(self, spec: LayerSpec) -> None:
        super().__init__(spec)
        self.skip_tp = ElementLinear(spec.target_irreps, spec.n_elements)

    @classmethod
    def count_weights(cls, spec: LayerSpec) -> int:
        """The number of weights of the block, without building it."""
        by_element = element_linear_size(spec.target_irreps, spec.n_elements)
        return super().count_weights(spec) + by_element

    def forward(self, x: Tensor, edges: EdgeFeatures, index: BatchIndex) -> tuple[Tensor, None]:
        """See ``InteractionBlock``."""
        return self.skip_tp(self.message(x, edges, index), index.groups, index.backend), None


class SkipOfFeatures(RadialInteractionBlock):
    """The features that enter skip the product, through a map of each element."""

    def __init__(self, spec: LayerSpec) -> None:
        super().__init__(spec)
        self.skip_tp = ElementLinear(irreps_of_skip(spec), spec.n_elements)

    @classmethod
    def count_weights(cls, spec: LayerSpec) -> int:
        """The number of weights of the block, without building it."""
        by_element = element_linear_size(irreps_of_skip(spec), spec.n_elements)
        return super().count_weights(spec) + by_element

    def forward(self, x: Tensor, edges: EdgeFeatures, index: BatchIndex) -> tuple[Tensor, Tensor]:
        """See ``InteractionBlock``."""
        return self.message(x, edges, index), self.skip_tp(x, index.groups, index.backend)


def message_fan_in(spec: LayerSpec) -> list[int]:
    """Channels of every degree that the convolution gives."""
    found = convolution_paths(spec.edge_irreps.l_max, spec.edge_attrs_irreps.l_max)
    n_paths_to = [sum(l3 == degree for _, _, l3 in found) for degree in spec.target_irreps.degrees]
    return [n * spec.edge_irreps.mul for n in n_paths_to]


def n_paths(spec: LayerSpec) -> int:
    """Of the convolution."""
    return len(convolution_paths(spec.edge_irreps.l_max, spec.edge_attrs_irreps.l_max))


def irreps_of_skip(spec: LayerSpec) -> FeatureIrreps:
    """The features that both enter and leave the layer, which skip the product."""
    degree = min(spec.node_feats_irreps.l_max, spec.hidden_irreps.l_max)
    return FeatureIrreps(spec.node_feats_irreps.mul, degree)


def skip_fan_in(spec: LayerSpec) -> list[int]:
    """Channels of every degree of ``irreps_of_skip``."""
    irreps = irreps_of_skip(spec)
    return [irreps.mul] * (irreps.l_max + 1)


def _up_fan_in(spec: LayerSpec) -> list[int]:
    return [spec.node_feats_irreps.mul] * (spec.edge_irreps.l_max + 1)


def _network_sizes(spec: LayerSpec) -> tuple[int, list[int], int, int]:
    return spec.n_basis, spec.radial_widths, n_paths(spec), spec.edge_irreps.mul
