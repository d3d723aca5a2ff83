"""Low-rank adaptation of linear layers (LoRA, arXiv 2106.09685).

    W = W_0 + (alpha / r) A B        A [rows, r] normal, B [r, n_out] zero at first

W_0 is fixed, A and B are trained, in every matrix that mixes channels: linear layers of each
degree (whose matrices share B, gates too), skip products, radial networks, embeddings, readouts.
Each such matrix acts on channels alone, so the model stays equivariant. The contraction's weights
are fixed.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mace_train.model.linear import DegreeLinear, ElementLinear
from mace_train.model.radial import RadialLayer

_ORIGINAL, _A, _B = (f".parametrizations.weight.{name}" for name in ("original", "0.A", "0.B"))


class LowRank(nn.Module):
    """The change of one weight, whose last axis is ``n_out``."""

    def __init__(self, weight: Tensor, n_out: int, rank: int, scale: float) -> None:
        super().__init__()
        n_rows = weight.numel() // n_out
        self.scale = scale
        self.A = nn.Parameter(torch.randn(n_rows, rank).to(weight))
        self.B = nn.Parameter(weight.new_zeros(rank, n_out))

    def forward(self, weight: Tensor) -> Tensor:
        """The changed weight."""
        return _changed(weight, self.A, self.B, self.scale)


def add_low_rank(model: nn.Module, rank: int, alpha: float) -> None:
    """Train low-rank changes of the model's linear layers, and nothing else, from now on."""
    model.requires_grad_(False)
    for module in list(model.modules()):
        if isinstance(module, (DegreeLinear, ElementLinear, RadialLayer, nn.Linear)):
            change = LowRank(module.weight, _n_out(module), rank, alpha / rank)
            parametrize.register_parametrization(module, "weight", change)


def _n_out(module: DegreeLinear | ElementLinear | RadialLayer | nn.Linear) -> int:
    if isinstance(module, DegreeLinear):
        return module.n_out
    return module.shape[-1] if isinstance(module, ElementLinear) else module.weight.shape[-1]


def merged(weights: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Weights by the names of a plain model; those of one without changes are returned as given."""
    found = {name: tensor for name, tensor in weights.items() if ".parametrizations." not in name}
    for name, original in weights.items():
        if name.endswith(_ORIGINAL):
            layer = name.removesuffix(_ORIGINAL)
            found[f"{layer}.weight"] = _changed(
                original, weights[layer + _A], weights[layer + _B], scale
            )
    return found


def _changed(weight: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
    return weight + scale * (A @ B).view(weight.shape)
