"""The gradient noise scale: structures per step beyond which larger steps hardly help.

With S the trace of the covariance of one structure's gradient and G the true gradient, a mean over
b structures has E|g_b|^2 = |G|^2 + S / b. Every step measures this for two b, a rank's own bin and
the bins of all ranks together, which gives S and |G|^2 without bias; B = S / |G|^2 is the simple
noise scale (McCandlish et al., arXiv 1812.06162, appendix A). One ratio of means per epoch.
"""

import torch

from mace_train.distributed.world import World


class NoiseScale:
    """Sums over the steps of an epoch."""

    def __init__(self) -> None:
        self._rows: list[tuple[float, float, float, float]] = []

    def add(self, own_square: float, n_own: int, square: float, n_all: int) -> None:
        """Add a step: |g|^2 of this rank's share of the mean gradient and of all; structures."""
        share = n_own / n_all
        mean_square = own_square / share**2 if n_own else 0.0
        self._rows.append((mean_square, 1.0 / n_own if n_own else 0.0, square, 1.0 / n_all))

    def result(self, world: World) -> float | None:
        """Structures; None where it is unknown (one rank, no step, |G|^2 estimated below 0)."""
        rows = torch.tensor(self._rows, dtype=torch.float64).reshape(-1, 4)
        present = (rows[:, 1] > 0).double()
        own = world.all_reduce_async(torch.stack((rows[:, 0], rows[:, 1], present)))()
        if world.size == 1 or not len(rows):
            return None
        small, one_over_small = own[0] / own[2], own[1] / own[2]
        big, one_over_big = rows[:, 2], rows[:, 3]
        spread = ((small - big) / (one_over_small - one_over_big)).mean()
        gradient = big.mean() - spread * one_over_big.mean()
        return float(spread / gradient) if spread > 0 and gradient > 0 else None
