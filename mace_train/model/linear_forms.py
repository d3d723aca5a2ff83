"""The maps of linear.py as one node of PyTorch's graph each (``ops.trilinear``).

Each is sum_l <g_l, a_l x_l W_l> over degrees, for features in one of two arrangements,

    interleaved    [n_atoms, n_components, n_channels]; components of higher degrees may follow,
                   which do not count
    stacked        degree after degree, each [n_atoms * (2l + 1), n_channels of l], in one tensor
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from mace_train.model.batch_index import ElementGroups
from mace_train.model.coupling import degree_slice
from mace_train.ops.trilinear import Trilinear, scaled_product


@dataclass(frozen=True)
class ByDegree(Trilinear):
    """One matrix [fan_in of l, n_out] per degree, times fan_in^(-1/2); g is interleaved."""

    fan_in: tuple[int, ...]
    n_out: int
    shape: torch.Size  # of x
    n_atoms: int

    def value(self, x: Tensor, w: Tensor) -> Tensor:
        """Features [n_atoms, (l_max + 1)^2, n_out]."""
        degrees = [
            scaled_product(rows, matrix, n**-0.5).view(self.n_atoms, -1, self.n_out)
            for rows, matrix, n in zip(self._rows(x), self._matrices(w), self.fan_in, strict=True)
        ]
        return degrees[0] if len(degrees) == 1 else torch.cat(degrees, dim=1)

    def of_x(self, w: Tensor, g: Tensor) -> Tensor:
        """Gradient in the features, zero for those that do not count."""
        of_degrees = zip(_rows(g, self.fan_in), self._matrices(w), self.fan_in, strict=True)
        if not self._is_interleaved:
            out = g.new_empty(self.shape)
            for target, (rows, matrix, n) in zip(self._rows(out), of_degrees, strict=True):
                scaled_product(rows, matrix.T, n**-0.5, target)
            return out
        n_channels = self.shape[2]
        degrees = [
            scaled_product(rows, matrix.T, n**-0.5).view(self.n_atoms, -1, n_channels)
            for rows, matrix, n in of_degrees
        ]
        return joined(degrees, self.shape)

    def of_w(self, x: Tensor, g: Tensor) -> Tensor:
        """Gradient in the weights [n_weights]."""
        out = g.new_empty(sum(self.fan_in) * self.n_out)
        of_degrees = zip(self._rows(x), _rows(g, self.fan_in), self.fan_in, strict=True)
        for target, (rows, of_g, n) in zip(self._matrices(out), of_degrees, strict=True):
            scaled_product(rows.T, of_g, n**-0.5, target)
        return out

    @property
    def _is_interleaved(self) -> bool:
        return len(self.shape) == 3

    def _rows(self, x: Tensor) -> list[Tensor]:
        """Degrees [n_atoms * (2l + 1), fan_in of l]; views, if x is stacked."""
        if self._is_interleaved:
            return _rows(x, self.fan_in)
        sizes = [self.n_atoms * (2 * degree + 1) * n for degree, n in enumerate(self.fan_in)]
        parts = torch.split(x.view(-1), sizes)
        return [part.view(-1, n) for part, n in zip(parts, self.fan_in, strict=True)]

    def _matrices(self, w: Tensor) -> list[Tensor]:
        parts = torch.split(w, [n * self.n_out for n in self.fan_in])
        return [part.view(-1, self.n_out) for part in parts]


@dataclass(frozen=True)
class ByElement(Trilinear):
    """One matrix per degree and element; x and g are interleaved, of equally many channels."""

    sizes: tuple[int, int, int, int]  # n_degrees, n_channels, n_elements, n_channels
    shape: torch.Size  # of x
    groups: ElementGroups

    def value(self, x: Tensor, w: Tensor) -> Tensor:
        """Features [n_atoms, n_degrees^2, n_channels]."""
        return self._mapped(x, w.view(self.sizes))

    def of_x(self, w: Tensor, g: Tensor) -> Tensor:
        """Gradient in the features, zero for those that do not count."""
        mapped = self._mapped(g, w.view(self.sizes).transpose(1, 3))
        return joined([mapped], self.shape)

    def of_w(self, x: Tensor, g: Tensor) -> Tensor:
        """Gradient in the weights [n_weights]."""
        out = g.new_zeros(self.sizes)
        pairs = zip(self._sorted(x), self._sorted(g), strict=True)
        for matrices, (rows, of_g) in zip(out.unbind(0), pairs, strict=True):
            for element, part in self._parts:
                target = matrices[:, element]
                scaled_product(_flat(rows[part]).T, _flat(of_g[part]), self._scale, target)
        return out.view(-1)

    def _mapped(self, features: Tensor, w: Tensor) -> Tensor:
        degrees = []
        for rows, matrices in zip(self._sorted(features), w.unbind(0), strict=True):
            out = torch.empty_like(rows)
            for element, part in self._parts:
                matrix = matrices[:, element]
                scaled_product(_flat(rows[part]), matrix, self._scale, _flat(out[part]))
            degrees.append(out)
        together = degrees[0] if len(degrees) == 1 else torch.cat(degrees, dim=1)
        return self.groups.unsort(together)

    def _sorted(self, features: Tensor) -> list[Tensor]:
        """Degrees [n_atoms, 2l + 1, n_channels], atoms by element."""
        degrees = range(self.sizes[0])
        return [self.groups.sort(features[:, degree_slice(degree)]) for degree in degrees]

    @cached_property
    def _parts(self) -> list[tuple[int, slice]]:
        """Elements that have atoms, and which."""
        bounds = pairwise(self.groups.first.tolist())
        return [(element, slice(lo, hi)) for element, (lo, hi) in enumerate(bounds) if lo < hi]

    @property
    def _scale(self) -> float:
        return float((self.sizes[1] * self.sizes[2]) ** -0.5)


def joined(degrees: Sequence[Tensor], shape: torch.Size) -> Tensor:
    """Degrees [n_atoms, 2l + 1, n_channels] as features of a shape; zero where none are left."""
    n_missing = shape[1] - sum(degree.shape[1] for degree in degrees)
    if n_missing:
        degrees = [*degrees, degrees[0].new_zeros(shape[0], n_missing, shape[2])]
    return degrees[0] if len(degrees) == 1 else torch.cat(degrees, dim=1)


def _rows(features: Tensor, degrees: Sequence[int]) -> list[Tensor]:
    """Degrees [n_atoms * (2l + 1), n_channels] of interleaved features."""
    if features.shape[1] == len(degrees) == 1:
        return [_flat(features)]
    return [_flat(features[:, degree_slice(degree)]) for degree in range(len(degrees))]


def _flat(rows: Tensor) -> Tensor:
    return rows.reshape(-1, rows.shape[2])
