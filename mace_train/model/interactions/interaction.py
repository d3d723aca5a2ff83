"""What all interaction blocks share: the linear map of senders, the convolution, its weights."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from mace_train.irreps import FeatureIrreps
from mace_train.model.batch_index import BatchIndex
from mace_train.model.convolution import Convolution, EdgeFeatures
from mace_train.model.layer_spec import LayerSpec
from mace_train.model.linear import DegreeLinear, ElementLinear, split_degrees
from mace_train.model.radial import RadialNetwork


class InteractionBlock(nn.Module, ABC):
    """Messages from neighbours, and the term that skips the product."""

    needs_edge_ends: ClassVar[bool] = False
    """Whether ``forward`` reads ``index.ends``."""

    def __init__(self, spec: LayerSpec) -> None:
        super().__init__()
        self.checkpointing = False  # of what the convolution makes per edge
        n_channels, l_in = spec.node_feats_irreps.mul, spec.node_feats_irreps.l_max
        self._convolution = Convolution(l_in, spec.edge_attrs_irreps.l_max)
        n_paths = len(self._convolution.paths)
        fan_in = [
            self._convolution.paths_to(degree) * n_channels for degree in spec.target_irreps.degrees
        ]
        self.linear_up = DegreeLinear([n_channels] * (l_in + 1), n_channels)
        self.conv_tp_weights = RadialNetwork(spec.n_basis, spec.radial_widths, n_paths, n_channels)
        self.linear = DegreeLinear(fan_in, spec.target_irreps.mul)

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

    def summed_messages(self, x: Tensor, edges: EdgeFeatures, index: BatchIndex) -> Tensor:
        """Sums [n_atoms, (l_edges + 1)^2, n_channels] over edges, mixed and not normalised."""
        up = self.linear_up(split_degrees(x))
        summed = self._convolution(
            up, edges, index, self.conv_tp_weights, checkpointing=self.checkpointing
        )
        mixed: Tensor = self.linear(summed)
        return mixed


def skip_of_features(spec: LayerSpec) -> ElementLinear:
    """The map of a residual block: features that enter to features that leave, by element."""
    n_channels, l_in = spec.node_feats_irreps.mul, spec.node_feats_irreps.l_max
    skipped = FeatureIrreps(n_channels, min(l_in, spec.hidden_irreps.l_max))
    return ElementLinear(skipped, spec.n_elements)


def map_of_message(spec: LayerSpec) -> ElementLinear:
    """The map of a block without residual: the message to itself, by element."""
    return ElementLinear(spec.target_irreps, spec.n_elements)
