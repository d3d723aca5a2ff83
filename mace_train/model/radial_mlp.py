"""Networks of directed edges: of the radial basis, and of what their two atoms are.

    z_0 = [radial basis, sender's values, receiver's values]
    z_i = silu(layer norm(W_i z_(i-1) + b_i)),    then a last map with bias

(eSEN, arXiv 2502.12147, as in mace-torch.) An edge and its reverse have different values, and
biases make those at r_max other than zero: the cutoff multiplies what comes out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from mace_train.model.batch_index import BatchIndex
from mace_train.model.matmul_precision import MatmulModule, matmul
from mace_train.model.radial import PathNetwork
from mace_train.ops.hidden_layers import hidden_layers

_ALIGNED = 8  # a GPU multiplies matrices of such multiples faster


@dataclass(frozen=True)
class EdgeInputs:
    """The columns z_0 of all edges, kept apart: an atom has many edges, and a pair two."""

    of_edges: Tensor  # [n_edges, n_0]
    of_senders: Tensor  # [n_atoms, n_1]
    of_receivers: Tensor  # [n_atoms, n_2]
    index: BatchIndex

    def times(self, matrix: Tensor, dtype: torch.dtype | None) -> Tensor:
        """z_0 @ matrix [n_edges, width], for a matrix [n_0 + n_1 + n_2, width]."""
        ends, backend = self.index.ends, self.index.backend
        assert ends is not None
        parts = (self.of_edges, self.of_senders, self.of_receivers)
        of_edges, of_senders, of_receivers = (
            matmul(part, rows, dtype)
            for part, rows in zip(
                parts, torch.split(matrix, [part.shape[1] for part in parts]), strict=True
            )
        )
        return (
            of_edges
            + backend.take_rows(of_senders, ends.senders)
            + backend.take_rows(of_receivers, ends.receivers)
        )


class RadialMLP(MatmulModule):
    """The network above; ``widths`` are those of z_0, z_1, ... and of what comes out."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        maps = [nn.Linear(width_in, width_out) for width_in, width_out in pairwise(widths)]
        layers: list[nn.Module] = []
        for each in maps:
            layers += [each, nn.LayerNorm(each.out_features), nn.SiLU()]
        self.net = nn.Sequential(*layers[:-2])

    def inner(self, inputs: EdgeInputs) -> Tensor:
        """What the last map takes [n_edges, width]."""
        first, *others = list(self.net)[:-1]
        assert isinstance(first, nn.Linear)
        hidden = inputs.times(first.weight.T, self.matmul_dtype) + first.bias
        if inputs.index.backend.fused:
            parameters = [
                tensor
                for layer in others
                if isinstance(layer, (nn.Linear, nn.LayerNorm))
                for tensor in (layer.weight, layer.bias)
            ]
            return hidden_layers(hidden, parameters, self.matmul_dtype)
        for layer in others:
            if isinstance(layer, nn.Linear):
                hidden = self.matmul(hidden, layer.weight.T) + layer.bias
            else:
                hidden = layer(hidden)
        return hidden

    def _map(self, place: int) -> nn.Linear:
        layer = self.net[place]
        assert isinstance(layer, nn.Linear)
        return layer

    def forward(self, inputs: EdgeInputs) -> Tensor:
        """Values [n_edges, widths[-1]]."""
        last = self._map(-1)
        return self.matmul(self.inner(inputs), last.weight.T) + last.bias


class PathMLP(RadialMLP, PathNetwork):
    """Such a network to the weights of the convolution's paths."""

    def __init__(self, n_inputs: int, hidden: list[int], n_paths: int, n_channels: int) -> None:
        super().__init__([n_inputs, *hidden, n_paths * n_channels])
        self.n_paths = n_paths

    def hidden(self, inputs: EdgeInputs, cutoff: Tensor | None) -> tuple[Tensor, Tensor]:
        """Factors of the weights of paths, [n_edges, n] and [n, n_paths, n_channels].

        The last bias is a row of the second, and the cutoff [n_edges, 1] multiplies the first:
        what the last map gives is too large to go through it again.
        """
        last, hidden = self._map(-1), self.inner(inputs)
        n_more = _ALIGNED - hidden.shape[1] % _ALIGNED  # one for the bias; the others are zero
        bias = torch.nn.functional.pad(last.bias.unsqueeze(0), (0, 0, 0, n_more - 1))
        matrix = torch.cat((last.weight.T, bias))
        hidden = torch.nn.functional.pad(hidden, (0, n_more), value=1.0)
        hidden = hidden if cutoff is None else hidden * cutoff
        return hidden, matrix.view(matrix.shape[0], self.n_paths, -1)


def radial_mlp_size(widths: Sequence[int]) -> int:
    """The number of weights of a ``RadialMLP``."""
    maps = sum((a + 1) * b for a, b in pairwise(widths))
    return maps + 2 * sum(widths[1:-1])
