"""The maps of linear.py as one node of PyTorch's graph each (``ops.trilinear``).

Each is sum_l <g_l, a_l x_l W_l> over degrees, for features in one of two arrangements,

    interleaved    [n_atoms, n_components, n_channels]; components of higher degrees may follow,
                   which do not count
    stacked        degree after degree, each [n_atoms * (2l + 1), n_channels of l], in one tensor

Products of few numbers are taken by compiled kernels where the backend has any (on a CPU:
``ops.cpp.small_products``), in one call for all degrees and elements; else by PyTorch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import prod

import torch
from torch import Tensor

from mace_train.model.batch_index import ElementGroups
from mace_train.model.coupling import degree_slice
from mace_train.ops.cpp import small_products
from mace_train.ops.trilinear import Trilinear, scaled_product


@dataclass(frozen=True)
class FeatureRows:
    """Where the rows of the degrees of a tensor lie."""

    shape: torch.Size
    n_atoms: int
    n_channels: tuple[int, ...]  # of every degree that counts

    @property
    def is_interleaved(self) -> bool:
        """As the module's docstring says."""
        return len(self.shape) == 3

    @property
    def has_more(self) -> bool:
        """Whether there are components that do not count."""
        return self.is_interleaved and self.shape[1] > len(self.n_channels) ** 2

    def rows(self) -> Iterator[tuple[int, int, int]]:
        """Of every degree: its first number, and the steps from atom to atom and row to row."""
        first = 0
        for degree, n in enumerate(self.n_channels):
            if self.is_interleaved:
                yield degree**2 * n, self.shape[1] * n, n
            else:
                n_rows = 2 * degree + 1
                yield first, n_rows * n, n
                first += self.n_atoms * n_rows * n

    def split(self, tensor: Tensor) -> list[Tensor]:
        """Degrees [n_atoms, 2l + 1, n_channels of l]; views."""
        if self.is_interleaved:
            return [tensor[:, degree_slice(degree)] for degree in range(len(self.n_channels))]
        shapes = [(self.n_atoms, 2 * degree + 1, n) for degree, n in enumerate(self.n_channels)]
        parts = torch.split(tensor.view(-1), [prod(shape) for shape in shapes])
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

    def joined(self, degrees: Sequence[Tensor]) -> Tensor:
        """The tensor from degrees [n_atoms, 2l + 1, n_channels of l]; what does not count is 0."""
        if not self.is_interleaved:
            return torch.cat([degree.reshape(-1) for degree in degrees]).view(self.shape)
        if self.has_more:
            missing = self.shape[1] - len(degrees) ** 2
            degrees = [*degrees, degrees[0].new_zeros(self.n_atoms, missing, self.shape[2])]
        return degrees[0] if len(degrees) == 1 else torch.cat(list(degrees), dim=1)

    def empty(self, like: Tensor) -> Tensor:
        """A tensor to write all that counts to."""
        return like.new_zeros(self.shape) if self.has_more else like.new_empty(self.shape)


@dataclass(frozen=True)
class LinearMaps(Trilinear):
    """A matrix per degree, and per element where there are groups; g is interleaved."""

    x: FeatureRows
    g: FeatureRows
    groups: ElementGroups | None
    n_elements: int  # 1 without groups
    compiled: bool

    def value(self, x: Tensor, w: Tensor) -> Tensor:
        """Features [n_atoms, (l_max + 1)^2, n_out]."""
        return self._rows(x, w, self.x, self.g, transposed=False)

    def of_x(self, w: Tensor, g: Tensor) -> Tensor:
        """Gradient in the features, zero for those that do not count."""
        return self._rows(g, w, self.g, self.x, transposed=True)

    def of_w(self, x: Tensor, g: Tensor) -> Tensor:
        """Gradient in the weights [n_weights]."""
        out = g.new_zeros(self._n_weights) if self.groups else g.new_empty(self._n_weights)
        if self._use_kernel(g):
            products = self._products(self.x, self.g, None)
            small_products.run(
                "weights", products, self._scales, self._order, x.contiguous(), g.contiguous(), out
            )
            return out
        degrees = zip(self.x.split(x), self.g.split(g), self._matrices(out), strict=True)
        for (of_x, of_g, matrices), scale in zip(degrees, self._scale_of_degree, strict=True):
            of_x, of_g = self._sorted(of_x), self._sorted(of_g)
            for element, lo, hi in self._parts:
                scaled_product(
                    _flat(of_x[lo:hi]).T, _flat(of_g[lo:hi]), scale, matrices[:, element]
                )
        return out

    def _rows(
        self, a: Tensor, w: Tensor, of_a: FeatureRows, of_out: FeatureRows, *, transposed: bool
    ) -> Tensor:
        """The rows of a times the matrices, or times the transposed ones."""
        if self._use_kernel(a):
            out = of_out.empty(a)
            products = self._products(of_a, of_out, transposed)
            small_products.run(
                "rows", products, self._scales, self._order, a.contiguous(), w.contiguous(), out
            )
            return out
        degrees = []
        maps = zip(of_a.split(a), self._matrices(w), self._scale_of_degree, strict=True)
        for n_out, (rows, matrices, scale) in zip(of_out.n_channels, maps, strict=True):
            rows = self._sorted(rows)
            out = rows.new_empty(*rows.shape[:2], n_out)
            for element, lo, hi in self._parts:
                matrix = matrices[:, element].T if transposed else matrices[:, element]
                scaled_product(_flat(rows[lo:hi]), matrix, scale, _flat(out[lo:hi]))
            degrees.append(out if self.groups is None else self.groups.unsort(out))
        return of_out.joined(degrees)

    def _sorted(self, rows: Tensor) -> Tensor:
        return rows if self.groups is None else self.groups.sort(rows)

    def _matrices(self, w: Tensor) -> list[Tensor]:
        """[fan_in, n_elements, n_out] of every degree."""
        shapes = [
            (n_in, self.n_elements, n_out)
            for n_in, n_out in zip(self.x.n_channels, self.g.n_channels, strict=True)
        ]
        parts = torch.split(w.view(-1), [n_in * n * n_out for n_in, n, n_out in shapes])
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

    def _use_kernel(self, tensor: Tensor) -> bool:
        n_multiplications = self._n_weights * self.x.n_atoms * len(self.x.n_channels)
        return self.compiled and small_products.can_run(tensor.dtype, n_multiplications)

    def _products(
        self, of_a: FeatureRows, of_b: FeatureRows, transposed: bool | None
    ) -> Iterator[small_products.Product]:
        """For ``small_products.run``: of rows a and out or, with ``transposed`` None, of both."""
        first = 0
        degrees = zip(of_a.rows(), of_b.rows(), self.x.n_channels, self.g.n_channels, strict=True)
        for degree, (rows_a, rows_b, n_in, n_out) in enumerate(degrees):
            line = self.n_elements * n_out
            for element, lo, hi in self._parts:
                begin, n_m = first + element * n_out, 2 * degree + 1
                if transposed is None:
                    yield lo, hi, n_m, n_in, n_out, *rows_a, *rows_b, begin, line, 1
                elif transposed:
                    yield lo, hi, n_m, n_out, n_in, *rows_a, begin, 1, line, *rows_b
                else:
                    yield lo, hi, n_m, n_in, n_out, *rows_a, begin, line, 1, *rows_b
            first += n_in * line

    @cached_property
    def _parts(self) -> list[tuple[int, int, int]]:
        """Elements that have atoms, and which, in the order of the groups."""
        if self.groups is None:
            return [(0, 0, self.x.n_atoms)]
        bounds = pairwise(self.groups.first.tolist())
        return [(element, lo, hi) for element, (lo, hi) in enumerate(bounds) if lo < hi]

    @property
    def _order(self) -> Tensor | None:
        return None if self.groups is None else self.groups.order

    @cached_property
    def _scale_of_degree(self) -> list[float]:
        return [float((n * self.n_elements) ** -0.5) for n in self.x.n_channels]

    @property
    def _scales(self) -> list[float]:
        """Of every product."""
        return [scale for scale in self._scale_of_degree for _ in self._parts]

    @cached_property
    def _n_weights(self) -> int:
        pairs = zip(self.x.n_channels, self.g.n_channels, strict=True)
        return self.n_elements * sum(n_in * n_out for n_in, n_out in pairs)


def _flat(rows: Tensor) -> Tensor:
    return rows.reshape(-1, rows.shape[2])
