"""The block of MACE-MH-0, MH-1 and OMOL: gated messages whose weights know both elements.

    m_n = linear_2(gate( linear_1(sum_{edges e to n} R_e Y_e (x) u_s(e)) / (beta rho_n + alpha)
                         + linear_res(u_n) ))
    u   = linear_up(x),      rho_n = sum_{edges e to n} tanh(d_e^2)

R_e and d_e are networks of the radial basis and of an embedding each of the sender's and the
receiver's element (``radial_mlp``), times the cutoff. u may have fewer channels than x
(``edge_irreps``).
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from mace_train.model.batch_index import BatchIndex, SharedWeights
from mace_train.model.convolution import EdgeFeatures
from mace_train.model.gate import gated
from mace_train.model.interactions.interaction import (
    InteractionBlock,
    message_fan_in,
    n_paths,
    skip_fan_in,
)
from mace_train.model.layer_spec import LayerSpec
from mace_train.model.linear import (
    DegreeLinear,
    ElementEmbedding,
    degree_linear_size,
    split_degrees,
)
from mace_train.model.radial_mlp import EdgeInputs, PathMLP, RadialMLP, radial_mlp_size

_DENSITY_WIDTH = 64
_EMBEDDING_RANGE = 0.001  # of the elements' embeddings before training
_ALPHA, _BETA = 20.0, 0.0  # before training


class RealAgnosticResidualNonLinearInteractionBlock(InteractionBlock):
    """The features that enter skip the product, through a map of all elements."""

    needs_edge_ends: ClassVar[bool] = True
    shared_weights: ClassVar[SharedWeights] = SharedWeights.OF_ELEMENTS

    def __init__(self, spec: LayerSpec) -> None:
        super().__init__(spec)
        n_channels, n_gates = spec.target_irreps.mul, spec.target_irreps.l_max
        self.source_embedding, self.target_embedding = (
            ElementEmbedding(spec.n_elements, spec.node_feats_irreps.mul) for _ in range(2)
        )
        for embedding in (self.source_embedding, self.target_embedding):
            nn.init.uniform_(embedding.weight, -_EMBEDDING_RANGE, _EMBEDDING_RANGE)
        self.conv_tp_weights = PathMLP(
            _n_inputs(spec), spec.radial_widths, n_paths(spec), spec.edge_irreps.mul
        )
        self.skip_tp = DegreeLinear(skip_fan_in(spec), spec.node_feats_irreps.mul)
        self.linear_res = DegreeLinear(_residual_fan_in(spec), n_channels, n_gates)
        self.linear_1 = DegreeLinear(message_fan_in(spec), n_channels, n_gates)
        self.linear_2 = DegreeLinear([n_channels] * (n_gates + 1), n_channels)
        self.density_fn = RadialMLP([_n_inputs(spec), _DENSITY_WIDTH, 1])
        self.alpha, self.beta = (nn.Parameter(torch.tensor(value)) for value in (_ALPHA, _BETA))

    @classmethod
    def count_weights(cls, spec: LayerSpec) -> int:
        """The number of weights of the block, without building it."""
        n_channels, n_gates = spec.target_irreps.mul, spec.target_irreps.l_max
        n_inputs, n_weights = _n_inputs(spec), n_paths(spec) * spec.edge_irreps.mul
        return (
            super().count_weights(spec)
            + 2 * spec.n_elements * spec.node_feats_irreps.mul
            + radial_mlp_size([n_inputs, *spec.radial_widths, n_weights])
            + radial_mlp_size([n_inputs, _DENSITY_WIDTH, 1])
            + degree_linear_size(skip_fan_in(spec), spec.node_feats_irreps.mul)
            + degree_linear_size(_residual_fan_in(spec), n_channels, n_gates)
            + degree_linear_size(message_fan_in(spec), n_channels, n_gates)
            + degree_linear_size([n_channels] * (n_gates + 1), n_channels)
            + 2
        )

    def forward(self, x: Tensor, edges: EdgeFeatures, index: BatchIndex) -> tuple[Tensor, Tensor]:
        """See ``InteractionBlock``."""
        sent, inputs = self.sent(x, index), self._inputs(edges, index)
        factors = self.conv_tp_weights.hidden(inputs, edges.cutoff)
        summed = self.linear_1.by_degree(
            self.convolved(sent, edges, index, self.conv_tp_weights, factors)
        )
        density = self._density(inputs, edges, index) * self.beta + self.alpha
        # not a quotient, whose derivatives keep several tensors of the size of the messages
        factor = density.reciprocal().unsqueeze(2)
        message = [degree * factor for degree in summed]
        own = self.linear_res.by_degree(split_degrees(sent))
        message[: len(own)] = [a + b for a, b in zip(message, own, strict=False)]
        skip = self.skip_tp(split_degrees(x)[: len(self.skip_tp.fan_in)])
        return self.linear_2(gated(message)), skip

    def _inputs(self, edges: EdgeFeatures, index: BatchIndex) -> EdgeInputs:
        """What both networks take."""
        of_senders, of_receivers = (
            index.backend.take_rows(embedding.table(), index.elements)
            for embedding in (self.source_embedding, self.target_embedding)
        )
        return EdgeInputs(edges.radial, of_senders, of_receivers, index)

    def _density(self, inputs: EdgeInputs, edges: EdgeFeatures, index: BatchIndex) -> Tensor:
        """rho above [n_atoms, 1]."""
        of_pairs = torch.tanh(self.density_fn(inputs).square())
        of_pairs = of_pairs if edges.cutoff is None else of_pairs * edges.cutoff
        return index.sum_to_receivers(of_pairs)


def _n_inputs(spec: LayerSpec) -> int:
    return spec.n_basis + 2 * spec.node_feats_irreps.mul


def _residual_fan_in(spec: LayerSpec) -> list[int]:
    return [spec.edge_irreps.mul] * (spec.edge_irreps.l_max + 1)
