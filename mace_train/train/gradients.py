"""Gradients in one flat buffer, summed over ranks while the backward pass still runs.

    flat = [ bucket 0 | bucket 1 | ... | last bucket | health ]

Every parameter's gradient is a view of ``flat``. Buckets hold parameters in the order in which the
backward pass usually finishes them, last layer first; a bucket is sent as soon as it and those
before it are complete. The last one waits for ``finish`` and holds one more number, the health: 0,
or NaN from a rank that could not finish its backward pass. So a rank that fails during its backward
pass does not leave the others waiting, and every rank sees from the norm, which it needs anyway,
that the step is void. That is why this is not torch's DistributedDataParallel (arXiv 2006.15704),
which overlaps in the same way, but has no such signal and no norm of a rank's own gradient.
"""

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mace_train.distributed.world import World

BUCKET_BYTES = 1 << 18  # some ten buckets for the usual MACE


class Gradients:
    """The gradients of ``parameters``, all of one type and on one device."""

    def __init__(
        self, parameters: list[nn.Parameter], world: World, bucket_bytes: int = BUCKET_BYTES
    ) -> None:
        assert parameters, "nothing to train: every parameter is frozen"
        self._world = world
        self._parameters = list(reversed(parameters))
        n_values = sum(parameter.numel() for parameter in parameters)
        self.flat = self._parameters[0].new_zeros(n_values + 1)
        self._buckets = self._make_buckets(bucket_bytes)
        sizes = [parameter.numel() for parameter in self._parameters]
        slices = zip(self._parameters, torch.split(self.flat[:-1], sizes), strict=True)
        self.views = [values.view_as(parameter) for parameter, values in slices][::-1]
        """The gradients of ``parameters``, in their order."""
        self._sending = False
        self._works: list[Any] = []
        self._own_squares: list[Tensor] | None = None
        if world.size > 1:
            for parameter in parameters:
                hooks: Any = parameter
                hooks.register_post_accumulate_grad_hook(self._done)

    def _make_buckets(self, bucket_bytes: int) -> list[slice]:
        """Slices of the flat buffer; gradients become views of it."""
        limit = max(1, bucket_bytes // self.flat.element_size())
        self._bucket_of: dict[int, int] = {}
        buckets, first, last = [], 0, 0
        for parameter in self._parameters:
            if last > first and last - first + parameter.numel() > limit:
                buckets.append(slice(first, last))
                first = last
            self._bucket_of[id(parameter)] = len(buckets)
            last += parameter.numel()
        return [*buckets, slice(first, last + 1)]

    def begin(self, *, own_norm: bool = False) -> None:
        """Set all gradients to zero; ``own_norm`` also measures this rank's own gradient."""
        self.flat.zero_()
        for parameter, view in zip(reversed(self._parameters), self.views, strict=True):
            parameter.grad = view  # in every step: others may have set it to None
        self._works, self._sending = [], False
        self._own_squares = [] if own_norm else None

    def send_when_done(self) -> None:
        """Send buckets as they become complete in the next backward pass, the last of this step."""
        self._sending = self._world.size > 1
        self._n_missing = [0] * len(self._buckets)
        for bucket in self._bucket_of.values():
            self._n_missing[bucket] += 1

    def _done(self, parameter: nn.Parameter) -> None:
        """A gradient is complete (called by autograd)."""
        if not self._sending:
            return
        self._n_missing[self._bucket_of[id(parameter)]] -= 1
        while len(self._works) < len(self._buckets) - 1 and self._n_missing[len(self._works)] <= 0:
            self._send()

    def _send(self) -> None:
        bucket = self.flat[self._buckets[len(self._works)]]
        if self._own_squares is not None:
            self._own_squares.append(bucket.square().sum())
        self._works.append(dist.all_reduce(bucket, async_op=True) if self._world.size > 1 else None)

    def finish(self, *, failed: bool = False) -> None:
        """Send the rest and wait for the sums; ``failed`` makes the step void on all ranks."""
        self._sending = False
        if failed:
            self.flat[-1] = math.nan
        while len(self._works) < len(self._buckets):
            self._send()
        for work in self._works:
            if work is not None:
                work.wait()

    def own_square(self) -> Tensor:
        """|g|^2 of this rank's own gradient, before it was summed over ranks."""
        assert self._own_squares is not None
        return torch.stack(self._own_squares).sum()

    def norm(self) -> float:
        """The norm of the summed gradient; not finite if the step is void. Equal on all ranks."""
        return float(torch.linalg.vector_norm(self.flat))

    def clip(self, norm: float, limit: float | None) -> None:
        """Shorten the gradient to ``limit`` if its ``norm`` is above it."""
        if limit is not None and (share := limit / (norm + 1e-6)) < 1.0:
            self.flat.mul_(share)  # as torch's clip_grad_norm_ does


class NoiseScale:
    """The gradient noise scale of an epoch: the structures per step beyond which more hardly help.

    With S the trace of the covariance of one structure's gradient and G the true gradient, a mean
    over b structures has E|g_b|^2 = |G|^2 + S / b. Every step measures this for two b, a rank's own
    bin and the bins of all ranks together, which gives S and |G|^2 without bias; B = S / |G|^2 is
    the simple noise scale (McCandlish et al., arXiv 1812.06162, appendix A). One ratio of means.
    """

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
