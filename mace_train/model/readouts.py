"""Readouts: energies of atoms from the scalars of a layer, one for each head.

All layers have linear ones but the last, which has a perceptron if there is more than one layer;
with ``use_last_readout_only`` there is no other. Names are those of mace-torch's state dict.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mace_train.model.linear import DegreeLinear
from mace_train.model.radial import scaled_silu
from mace_train.ops.backends import Backend
from mace_train.settings import ModelSettings

TANH_GAIN = 1.5937334472592695
ABS_GAIN = 1.001110600838467
"""1 / rms of f(z) for normal z, as e3nn samples it (10^6 points, seed 0)."""

GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": scaled_silu,
    "tanh": lambda x: torch.tanh(x) * TANH_GAIN,
    "abs": lambda x: torch.abs(x) * ABS_GAIN,
    "None": lambda x: x,
}


class Readout(nn.Module, ABC):
    """Energies of one layer."""

    @classmethod
    @abstractmethod
    def count_weights(cls, n_channels: int, n_hidden: int, n_heads: int) -> int:
        """The number of weights, without building it; ``n_hidden`` are those of one head."""

    @abstractmethod
    def forward(
        self, x: Tensor, head: Tensor | None = None, backend: Backend | None = None
    ) -> Tensor:
        """Energies [n_atoms] from features x [n_atoms, (l_max + 1)^2, n_channels].

        ``head`` [n_atoms, n_heads] is 1 at the head of each atom.
        """


class LinearReadout(Readout):
    """A linear function of the scalars."""

    def __init__(self, n_channels: int, n_heads: int = 1) -> None:
        super().__init__()
        self.linear = DegreeLinear([n_channels], n_heads)

    @classmethod
    def count_weights(cls, n_channels: int, n_hidden: int, n_heads: int) -> int:
        """See ``Readout``."""
        return n_channels * n_heads

    def forward(
        self, x: Tensor, head: Tensor | None = None, backend: Backend | None = None
    ) -> Tensor:
        """See ``Readout``."""
        return _of_head(self.linear(x, backend), head)


class NonLinearReadout(Readout):
    """A two-layer perceptron of the scalars; each head has hidden values of its own.

    The hidden values of one head are contiguous, head after head, as in mace-torch.
    """

    def __init__(
        self, n_channels: int, n_hidden: int, n_heads: int = 1, gate: str = "silu"
    ) -> None:
        super().__init__()
        self._gate = GATES[gate]
        self.linear_1 = DegreeLinear([n_channels], n_hidden * n_heads)
        self.linear_2 = DegreeLinear([n_hidden * n_heads], n_heads)

    @classmethod
    def count_weights(cls, n_channels: int, n_hidden: int, n_heads: int) -> int:
        """See ``Readout``."""
        return (n_channels + n_heads) * n_hidden * n_heads

    def forward(
        self, x: Tensor, head: Tensor | None = None, backend: Backend | None = None
    ) -> Tensor:
        """See ``Readout``."""
        hidden = self.gated(self.linear_1(x, backend), head)
        return _of_head(self.linear_2(hidden, backend), head)

    def gated(self, hidden: Tensor, head: Tensor | None) -> Tensor:
        """Hidden values [n_atoms, 1, n_heads * n_hidden] behind the gate, zero for other heads."""
        hidden = self._gate(hidden)
        if head is None:
            return hidden
        of_heads = hidden.view(hidden.shape[0], 1, head.shape[1], -1)
        return (of_heads * head[:, None, :, None]).flatten(2)


class NonLinearBiasReadout(NonLinearReadout):
    """A three-layer perceptron of the scalars, the last two with biases."""

    def __init__(
        self, n_channels: int, n_hidden: int, n_heads: int = 1, gate: str = "silu"
    ) -> None:
        super().__init__(n_channels, n_hidden, n_heads, gate)
        self.linear_mid = BiasedLinear(n_hidden * n_heads, n_hidden * n_heads)
        self.linear_2 = BiasedLinear(n_hidden * n_heads, n_heads)

    @classmethod
    def count_weights(cls, n_channels: int, n_hidden: int, n_heads: int) -> int:
        """See ``Readout``."""
        n_all = n_hidden * n_heads
        more = n_all * (n_all + 1) + n_heads
        return super().count_weights(n_channels, n_hidden, n_heads) + more

    def forward(
        self, x: Tensor, head: Tensor | None = None, backend: Backend | None = None
    ) -> Tensor:
        """See ``Readout``."""
        hidden = self.gated(self.linear_1(x, backend), head)
        hidden = self.gated(self.linear_mid(hidden, backend), head)
        return _of_head(self.linear_2(hidden, backend), head)


class BiasedLinear(DegreeLinear):
    """A linear map of scalars with a bias, which is zero at first."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__([n_in], n_out)
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(
        self, features: Tensor | Sequence[Tensor], backend: Backend | None = None
    ) -> Tensor:
        """See ``DegreeLinear``."""
        return super().forward(features, backend) + self.bias


NONLINEAR_READOUTS: dict[str, type[NonLinearReadout]] = {
    "NonLinearReadoutBlock": NonLinearReadout,
    "NonLinearBiasReadoutBlock": NonLinearBiasReadout,
}


def readout_kinds(settings: ModelSettings) -> list[type[Readout]]:
    """Of the last layers, one each; the layers before have none."""
    n_layers = settings.num_interactions
    if n_layers == 1:
        return [LinearReadout]
    n_linear = 0 if settings.use_last_readout_only else n_layers - 1
    return [LinearReadout] * n_linear + [NONLINEAR_READOUTS[settings.readout_cls]]


def make_readouts(settings: ModelSettings, n_heads: int) -> nn.ModuleList:
    """The readouts of a model."""
    n_channels, n_hidden, gate = settings.num_channels, settings.mlp_width(), settings.gate
    return nn.ModuleList(
        kind(n_channels, n_hidden, n_heads, gate)
        if issubclass(kind, NonLinearReadout)
        else LinearReadout(n_channels, n_heads)
        for kind in readout_kinds(settings)
    )


def _of_head(energies: Tensor, head: Tensor | None) -> Tensor:
    """Those of each atom's head [n_atoms] from those of all [n_atoms, 1, n_heads]."""
    return energies.flatten() if head is None else (energies.squeeze(1) * head).sum(1)
