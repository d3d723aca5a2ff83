"""Linear maps that act on the channels of each degree alone.

    y[n, lm, v] = (fan_in_l)^(-1/2) sum_u x[n, lm, u] W_l[u, v]

Features are stored as [n_atoms, (l_max + 1)^2, n_channels] with channels contiguous (e3nn's
"ir_mul"), so each degree is one matrix product. Weights are flat as in e3nn: degree after degree,
[channels in, channels out] row-major, normal with unit variance.
"""

from collections.abc import Iterator, Sequence
from math import prod
from typing import overload

import torch
from torch import Tensor, nn

from mace_train.irreps import FeatureIrreps, irreps_string
from mace_train.model.batch_index import ElementGroups, ElementSlots
from mace_train.model.linear_forms import FeatureRows, LinearMaps
from mace_train.model.matmul_precision import MatmulModule
from mace_train.ops.backends import Backend
from mace_train.ops.torch_library import is_eager


def split_degrees(features: Tensor) -> list[Tensor]:
    """Degrees [n_atoms, 2l + 1, n_channels] of features [n_atoms, (l_max + 1)^2, n_channels]."""
    sizes: list[int] = []
    while sum(sizes) < features.shape[1]:
        sizes.append(2 * len(sizes) + 1)
    return list(torch.split(features, sizes, 1))


class StackedDegrees(Sequence[Tensor]):
    """Degrees [n_atoms, 2l + 1, n_channels of l], one after the other in one tensor."""

    def __init__(self, flat: Tensor, n_atoms: int, n_channels: Sequence[int]) -> None:
        self.flat = flat
        self.n_atoms = n_atoms
        self._n_channels = n_channels

    def __len__(self) -> int:
        return len(self._n_channels)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        return self._split()[index]

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self._split())

    def _split(self) -> list[Tensor]:
        shapes = [(self.n_atoms, 2 * degree + 1, n) for degree, n in enumerate(self._n_channels)]
        parts = torch.split(self.flat.flatten(), [prod(shape) for shape in shapes])
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


class DegreeLinear(MatmulModule):
    """One matrix per degree, shared by all elements.

    With gates the scalars that come out are (1 + n_gates) * n_out, all other degrees n_out.
    """

    def __init__(self, fan_in: Sequence[int], n_out: int, n_gates: int = 0) -> None:
        super().__init__()
        self.fan_in = tuple(fan_in)
        self.n_out = n_out
        self.fan_out = (n_out * (1 + n_gates), *[n_out] * (len(self.fan_in) - 1))
        n_weights = degree_linear_size(fan_in, n_out, n_gates)
        self.weight = nn.Parameter(torch.randn(n_weights))

    def extra_repr(self) -> str:
        """Irreps and number of weights."""
        inputs, outputs = irreps_string(self.fan_in), irreps_string(self.fan_out)
        return f"{inputs} -> {outputs} | {self.weight.numel()} weights"

    def forward(
        self, features: Tensor | Sequence[Tensor], backend: Backend | None = None
    ) -> Tensor:
        """Features [n_atoms, (l_max + 1)^2, n_out].

        Takes features [n_atoms, n_components, fan_in], of which those of the degrees of this map
        count, or degrees [n_atoms, 2l + 1, fan_in[l]].
        """
        x = features.flat if isinstance(features, StackedDegrees) else features
        if isinstance(x, Tensor) and self.matmul_dtype is None and is_eager(x):
            n_atoms = features.n_atoms if isinstance(features, StackedDegrees) else x.shape[0]
            out = torch.Size((n_atoms, len(self.fan_in) ** 2, self.n_out))
            maps = LinearMaps(
                FeatureRows(x.shape, n_atoms, self.fan_in),
                FeatureRows(out, n_atoms, self.fan_out),
                None,
                n_elements=1,
                compiled=backend is not None and backend.has_small_products,
            )
            return maps(x, self.weight)
        if isinstance(features, Tensor):
            features = split_degrees(features)[: len(self.fan_in)]
        return torch.cat(self.by_degree(features), dim=1)

    def by_degree(self, degrees: Sequence[Tensor]) -> list[Tensor]:
        """Degrees [n_atoms, 2l + 1, fan_out[l]] from degrees [n_atoms, 2l + 1, fan_in[l]]."""
        sizes = [rows * columns for rows, columns in zip(self.fan_in, self.fan_out, strict=True)]
        blocks = torch.split(self.weight, sizes)
        return [
            self.matmul(degree, block.view(rows, -1) * rows**-0.5)
            for degree, block, rows in zip(degrees, blocks, self.fan_in, strict=True)
        ]


def degree_linear_size(fan_in: Sequence[int], n_out: int, n_gates: int = 0) -> int:
    """The number of weights of a ``DegreeLinear``."""
    return sum(fan_in) * n_out + fan_in[0] * n_out * n_gates


class ElementEmbedding(DegreeLinear):
    """Scalars that depend on the element alone."""

    def __init__(self, n_elements: int, n_channels: int) -> None:
        super().__init__([n_elements], n_channels)

    def table(self) -> Tensor:
        """The scalars [n_elements, n_channels] of every element."""
        n_elements = self.fan_in[0]
        return self.weight.view(n_elements, -1) * n_elements**-0.5


class ElementLinear(MatmulModule):
    """One matrix per degree and element: y = x W_(l, z) / sqrt(n_channels * n_elements)."""

    def __init__(self, irreps: FeatureIrreps, n_elements: int) -> None:
        super().__init__()
        self.irreps = irreps
        self.shape = (irreps.l_max + 1, irreps.mul, n_elements, irreps.mul)
        self.weight = nn.Parameter(torch.randn(element_linear_size(irreps, n_elements)))

    def extra_repr(self) -> str:
        """Irreps and number of weights."""
        n_elements, n_weights = self.shape[2], self.weight.numel()
        return f"{self.irreps} x {n_elements}x0e -> {self.irreps} | {n_weights} weights"

    def forward(
        self,
        features: Tensor,
        groups: ElementGroups | ElementSlots,
        backend: Backend | None = None,
    ) -> Tensor:
        """Features [n_atoms, n_degrees^2, n_channels] from features of at least these degrees."""
        n_degrees, n_channels, n_elements, _ = self.shape
        if self.matmul_dtype is None and is_eager(features) and isinstance(groups, ElementGroups):
            n_atoms, of_degrees = features.shape[0], (n_channels,) * n_degrees
            out = torch.Size((n_atoms, n_degrees**2, n_channels))
            maps = LinearMaps(
                FeatureRows(features.shape, n_atoms, of_degrees),
                FeatureRows(out, n_atoms, of_degrees),
                groups,
                n_elements,
                compiled=backend is not None and backend.has_small_products,
            )
            return maps(features, self.weight)
        norm = (n_channels * n_elements) ** -0.5
        matrices = (norm * self.weight.view(self.shape)).transpose(1, 2).unbind(0)
        rows = groups.sort(features[:, : n_degrees**2])
        outputs = [
            groups.matmul(degree, of_degree, self.matmul_dtype)
            for degree, of_degree in zip(split_degrees(rows), matrices, strict=True)
        ]
        return groups.unsort(torch.cat(outputs, dim=1))


def element_linear_size(irreps: FeatureIrreps, n_elements: int) -> int:
    """The number of weights of an ``ElementLinear``."""
    return (irreps.l_max + 1) * irreps.mul**2 * n_elements
