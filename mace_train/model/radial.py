"""Radial functions of the edge length r: basis, smooth cutoff, and the radial network.

    e_n(r) = sqrt(2 / r_max) sin(n pi r / r_max) / r * f(r / r_max),     n = 1..n_basis
    f(u)   = 1 - u^p [(p+1)(p+2)/2 - p (p+2) u + p (p+1)/2 u^2]  for u < 1, else exactly 0

(arXiv 2003.03123, eqs. 7, 8; Gaussians may take the place of the Bessel functions). A network
without biases maps them to one weight per path and channel, so an edge at r_max has all weights
exactly zero. With ``apply_cutoff=False`` the basis is free of f, and what the network makes of it
is multiplied instead. The network is the largest matrix product of MACE: about
2 n_edges * width * n_paths * n_channels floating point operations.
"""

from collections.abc import Callable
from itertools import pairwise
from math import pi, sqrt

import torch
from torch import Tensor, nn

from mace_train.model.matmul_precision import MatmulModule
from mace_train.ops.perceptron import perceptron
from mace_train.ops.torch_library import is_eager

SILU_GAIN = 1.6791767923989418
"""1 / rms of silu(z) for normal z, as e3nn samples it (10^6 points, seed 0)."""


def scaled_silu(x: Tensor) -> Tensor:
    """Silu with unit second moment for normal input."""
    return torch.nn.functional.silu(x) * SILU_GAIN


def envelope(u: Tensor, exponent: int) -> Tensor:
    """The polynomial cutoff f(u) above, 1 at 0 and exactly 0 from 1 on."""
    p = float(exponent)
    polynomial = (p + 1) * (p + 2) / 2 - u * (p * (p + 2) - u * (p * (p + 1) / 2))
    inside = (u < 1).to(u.dtype)
    return inside * (1 - u**exponent * polynomial)


def bessel_functions(r: Tensor, r_max: float, n_basis: int) -> Tensor:
    """The e_n(r) above without f [n_edges, n_basis], of lengths r [n_edges, 1] > 0."""
    n = torch.arange(1, n_basis + 1, dtype=r.dtype, device=r.device)
    return sqrt(2.0 / r_max) * torch.sin(n * (pi / r_max) * r) / r


def gaussian_functions(r: Tensor, r_max: float, n_basis: int) -> Tensor:
    """Gaussians [n_edges, n_basis] of lengths r [n_edges, 1], with as many centres from 0 to r_max.

    Their standard deviation is the distance of two centres.
    """
    distance = r_max / (n_basis - 1)
    centres = torch.arange(n_basis, dtype=r.dtype, device=r.device) * distance
    return torch.exp(-0.5 * ((r - centres) / distance).square())


RADIAL_FUNCTIONS: dict[str, Callable[[Tensor, float, int], Tensor]] = {
    "bessel": bessel_functions,
    "gaussian": gaussian_functions,
}


class RadialBasis:
    """Radial functions times the cutoff, or both apart."""

    def __init__(
        self,
        r_max: float,
        n_basis: int,
        exponent: int,
        kind: str = "bessel",
        *,
        apply_cutoff: bool = True,
    ) -> None:
        self.r_max = r_max
        self.n_basis = n_basis
        self.exponent = exponent
        self.apply_cutoff = apply_cutoff
        self._functions = RADIAL_FUNCTIONS[kind]

    def __call__(
        self, lengths: Tensor, transformed: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Values [n_edges, n_basis] at lengths [n_edges] > 0, Å; the cutoff if not among them.

        The functions are taken at the transformed lengths, if there are any. The cutoff is
        [n_edges, 1].
        """
        r = (lengths if transformed is None else transformed).unsqueeze(1)
        functions = self._functions(r, self.r_max, self.n_basis)
        cutoff = envelope(lengths.unsqueeze(1) / self.r_max, self.exponent)
        return (functions * cutoff, None) if self.apply_cutoff else (functions, cutoff)


class RadialLayer(nn.Module):
    """A matrix [width_in, width_out] without bias, scaled by 1 / sqrt(width_in)."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width_in, width_out))

    def extra_repr(self) -> str:
        """Irreps and number of weights."""
        width_in, width_out = self.weight.shape
        return f"{width_in}x0e -> {width_out}x0e | {self.weight.numel()} weights"

    def scaled(self) -> Tensor:
        """The matrix as it multiplies: normal inputs give outputs of unit variance."""
        return self.weight * self.weight.shape[0] ** -0.5


class PathNetwork(MatmulModule):
    """A network to the weights of the convolution paths of every edge.

    The last product, by far the largest, is apart, so that a caller may take it in parts:

        R[e, p, k] = sum_h hidden[e, h] last[h, p, k]
    """

    def stacked(self, hidden: Tensor, last: Tensor) -> Tensor:
        """The last product as one tensor [n_edges, n_paths, n_channels]."""
        product = self.matmul(hidden, last.flatten(1))
        return product.view(hidden.shape[0], *last.shape[1:])

    def by_path(self, hidden: Tensor, last: Tensor) -> list[Tensor]:
        """The last product as one tensor [n_edges, n_channels] per path."""
        # one product per path: no [n_edges, n_paths, n_channels] tensor to take apart again
        return [self.matmul(hidden, columns) for columns in last.unbind(1)]


class RadialNetwork(PathNetwork):
    """Perceptron without biases, from the radial basis."""

    def __init__(self, n_basis: int, hidden: list[int], n_paths: int, n_channels: int) -> None:
        super().__init__()
        self.n_channels = n_channels
        widths = [n_basis, *hidden, n_paths * n_channels]
        self.n_layers = len(widths) - 1
        for i in range(self.n_layers):
            self.add_module(f"layer{i}", RadialLayer(widths[i], widths[i + 1]))

    def hidden(self, basis: Tensor, cutoff: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What the last matrix multiplies [n_edges, width], and it [width, n_paths, n_channels].

        A cutoff [n_edges, 1] multiplies the weights of each edge.
        """
        first, *others = self.matrices()
        return self.behind(self.matmul(basis, first), others, cutoff)

    def product(self, basis: Tensor, cutoff: Tensor | None = None) -> Tensor:
        """``stacked`` of ``hidden``."""
        if cutoff is not None or self.matmul_dtype is not None or not is_eager(basis):
            return self.stacked(*self.hidden(basis, cutoff))
        weights = [layer.weight for layer in self.children() if isinstance(layer, RadialLayer)]
        gains = [1.0, *[SILU_GAIN] * (self.n_layers - 1)]
        scales = [gain * w.shape[0] ** -0.5 for gain, w in zip(gains, weights, strict=True)]
        found = perceptron(basis, weights, tuple(scales))
        return found.view(basis.shape[0], found.shape[1] // self.n_channels, self.n_channels)

    def matrices(self) -> list[Tensor]:
        """All matrices as they multiply."""
        return [layer.scaled() for layer in self.children() if isinstance(layer, RadialLayer)]

    def behind(
        self, product: Tensor, matrices: list[Tensor], cutoff: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """As ``hidden``, from the first product and the matrices behind it."""
        hidden = scaled_silu(product)
        for matrix in matrices[:-1]:
            hidden = scaled_silu(self.matmul(hidden, matrix))
        hidden = hidden if cutoff is None else hidden * cutoff
        return hidden, matrices[-1].view(hidden.shape[1], -1, self.n_channels)


def radial_network_size(n_basis: int, hidden: list[int], n_paths: int, n_channels: int) -> int:
    """The number of weights of a ``RadialNetwork``."""
    return sum(a * b for a, b in pairwise([n_basis, *hidden, n_paths * n_channels]))
