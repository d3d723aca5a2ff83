"""Convolution over edges: messages from senders, summed at receivers.

    out[n, (l3 m3), p, k] = sum_{edges e to n} R[e, p, k] sum_{m1} M_p[e, m1, m3] x[s(e), l1 m1, k]
    M_p[e, m1, m3]        = sum_{m2} CG(l3; l1, l2)[m3, m1, m2] Y[e, l2 m2]

for the paths p = (l1, l2, l3) of ``convolution_paths`` (arXiv 2206.07697, eq. 8). M_p does not
depend on the channel, so the sum over the edges of a receiver is a matrix product over (e, m1).
Receivers have different numbers of edges; we cut each one's edges into blocks of EDGES_PER_BLOCK
and pad the last block with edges of zero weight. One batched product per path then does both
the coupling and most of the sum, and only block results are scattered: less than half of
the memory traffic of one message per edge.
Cost per edge and channel: sum_p (2 l1 + 1)(1 + (2 l3 + 1)) multiplications. All this is the
reference; fused, one kernel of ``ops.convolution`` does the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mace_train.irreps import FeatureIrreps, irreps_string
from mace_train.model.activation_checkpointing import checkpointed
from mace_train.model.batch_index import BatchIndex, EdgeBlocks
from mace_train.model.constant import ConstantTensor
from mace_train.model.coupling import clebsch_gordan, convolution_paths
from mace_train.model.linear import StackedDegrees, split_degrees
from mace_train.model.radial import PathNetwork
from mace_train.ops import convolution
from mace_train.ops.codegen.convolution_program import ChannelwiseProduct, Path
from mace_train.ops.convolution import EdgeIndex

CHANNELS_AT_A_TIME = 32


@dataclass(frozen=True)
class EdgeFeatures:
    """What all layers need of the edges; rows are edges, or slots of blocks for the reference."""

    harmonics: Tensor  # [n_rows, (l_edges + 1)^2]
    radial: Tensor  # [n_pairs, n_basis]
    cutoff: Tensor | None  # [n_pairs, 1] where the radial basis is free of it


class Convolution:
    """The sum above for senders with degrees up to l_nodes and harmonics up to l_edges."""

    def __init__(self, l_nodes: int, l_edges: int) -> None:
        self.l_nodes = l_nodes
        self.l_edges = l_edges
        self.paths = convolution_paths(l_nodes, l_edges)
        self.key = convolution.register(product_of(self.paths, l_nodes, l_edges))
        self._tables = [
            ConstantTensor(clebsch_gordan(l3, l1, l2).transpose(2, 1, 0).reshape(2 * l2 + 1, -1))
            for l1, l2, l3 in self.paths
        ]

    def __repr__(self) -> str:
        """Irreps per channel, and the number of paths."""
        nodes, edges = FeatureIrreps(1, self.l_nodes), FeatureIrreps(1, self.l_edges)
        outputs = irreps_string([self.paths_to(degree) for degree in edges.degrees])
        return f"Convolution({nodes} x {edges} -> {outputs} | {len(self.paths)} paths)"

    def paths_to(self, degree: int) -> int:
        """Number of paths to a degree."""
        return sum(l3 == degree for _, _, l3 in self.paths)

    def __call__(
        self,
        x: Tensor,
        harmonics: Tensor,
        index: BatchIndex,
        network: PathNetwork,
        factors: Tensor | tuple[Tensor, Tensor],
        *,
        checkpointing: bool = False,
    ) -> Sequence[Tensor]:
        """Degrees [n_atoms, 2 l3 + 1, n_paths_to_l3 * n_channels] of the summed messages.

        Takes x [n_atoms, (l_nodes + 1)^2, n_channels] and both ``factors`` of the paths' weights
        of every pair, which the network has made and multiplies; or their product, fused and
        without ``checkpointing``. With it only
        CHANNELS_AT_A_TIME channels of what is made per edge exist at any time: channels do not mix
        here, so nothing is computed for more than one of these parts but the network's narrow
        layers.
        """

        def part(x: Tensor, harmonics: Tensor, hidden: Tensor, last: Tensor) -> tuple[Tensor, ...]:
            if index.edges is not None:
                weights = network.stacked(hidden, last)
                return tuple(self._fused(x, harmonics, weights, index.edges))
            assert index.blocks is not None
            # one row more, of zeros, for the empty slots
            hidden = torch.nn.functional.pad(hidden, (0, 0, 0, 1))
            of_paths = network.by_path(hidden, last)
            return tuple(self._reference(x, harmonics, of_paths, index.blocks))

        if isinstance(factors, Tensor):
            assert index.edges is not None
            return self._fused(x, harmonics, factors, index.edges)
        hidden, last = factors
        if not checkpointing:
            return list(part(x, harmonics, hidden, last))
        # copies, since a view would keep all channels
        parts = [
            checkpointed(part, some.contiguous(), harmonics, hidden, columns.contiguous())
            for some, columns in zip(
                *(torch.split(tensor, CHANNELS_AT_A_TIME, 2) for tensor in (x, last)), strict=True
            )
        ]
        return [
            torch.cat([t.unflatten(2, (self.paths_to(degree), -1)) for t in of_parts], 3).flatten(2)
            for degree, of_parts in enumerate(zip(*parts, strict=True))
        ]

    def _fused(
        self, x: Tensor, harmonics: Tensor, weights: Tensor, edges: EdgeIndex
    ) -> StackedDegrees:
        """Harmonics are per edge, weights [n_pairs, n_paths, n_channels] per pair."""
        summed = convolution.stacked(x, harmonics, weights, edges, self.key)
        n_channels = [self.paths_to(degree) * x.shape[2] for degree in range(self.l_edges + 1)]
        return StackedDegrees(summed, x.shape[0], n_channels)

    def _reference(
        self, x: Tensor, harmonics: Tensor, weights: Sequence[Tensor], blocks: EdgeBlocks
    ) -> list[Tensor]:
        """Harmonics are per slot, weights [n_pairs + 1, n_channels] of each path per pair."""
        of_degree = torch.split(
            harmonics, [2 * degree + 1 for degree in range(self.l_edges + 1)], 1
        )
        sent = split_degrees(x.index_select(0, blocks.senders))
        n_channels = x.shape[2]
        messages: list[list[Tensor]] = [[] for _ in range(self.l_edges + 1)]
        for (l1, l2, l3), table, weight in zip(self.paths, self._tables, weights, strict=True):
            rows = blocks.size * (2 * l1 + 1)
            coupling = (of_degree[l2] @ table.like(x)).view(-1, rows, 2 * l3 + 1)
            of_slots = weight.index_select(0, blocks.pairs).unsqueeze(1)
            weighted = (sent[l1] * of_slots).view(-1, rows, n_channels)
            messages[l3].append(torch.bmm(coupling.transpose(1, 2), weighted))
        joined = (torch.cat(to_degree, dim=2) for to_degree in messages)
        return [blocks.sum_to_receivers(to_degree, x.shape[0]) for to_degree in joined]


def product_of(
    paths: Sequence[tuple[int, int, int]], l_nodes: int, l_edges: int
) -> ChannelwiseProduct:
    """The convolution's product; rows of each output degree are (m3, path to that degree)."""
    n_paths_to = [sum(l3 == degree for _, _, l3 in paths) for degree in range(l_edges + 1)]
    number_of = [0] * (l_edges + 1)
    stated = []
    for weight, (l1, l2, l3) in enumerate(paths):
        rows = tuple(m3 * n_paths_to[l3] + number_of[l3] for m3 in range(2 * l3 + 1))
        table = clebsch_gordan(l3, l1, l2)
        stated.append(Path(l1 * l1, l2 * l2, weight, l3, rows, table))
        number_of[l3] += 1
    n_rows = tuple((2 * degree + 1) * n for degree, n in enumerate(n_paths_to))
    return ChannelwiseProduct(
        (l_nodes + 1) ** 2, (l_edges + 1) ** 2, len(paths), n_rows, tuple(stated)
    )
