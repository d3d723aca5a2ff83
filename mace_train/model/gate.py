"""Gates: the equivariant nonlinearity, of scalars by silu, of other degrees by scalars.

    y_0 = silu(x_0),     y_l = sigmoid(g_l) x_l

Both functions are scaled to unit second moment for normal input, as e3nn does.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mace_train.model.radial import scaled_silu

SIGMOID_GAIN = 1.8467055342154763
"""1 / rms of sigmoid(z) for normal z, as e3nn samples it (10^6 points, seed 0)."""


def gated(degrees: Sequence[Tensor]) -> list[Tensor]:
    """Degrees [n_atoms, 2l + 1, n], all of n channels.

    Takes the same, but with n gates of every other degree behind the n scalars, in their order.
    """
    scalars, *gates = torch.chunk(degrees[0], len(degrees), 2)
    gates = [torch.sigmoid(gate) * SIGMOID_GAIN for gate in gates]
    others = [gate * degree for gate, degree in zip(gates, degrees[1:], strict=True)]
    return [scaled_silu(scalars), *others]
