"""The exponential moving average of the weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """Exponential moving average of the weights, with a short memory in the first steps.

    shadow += (1 - d) (weight - shadow) with d = min(decay, (1 + n) / (10 + n)) after n updates.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.n_updates = 0
        self.shadow = {name: value.detach().clone() for name, value in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Average the weights after an optimizer step."""
        self.n_updates += 1
        decay = min(self.decay, (1 + self.n_updates) / (10 + self.n_updates))
        weights = [value.detach() for value in model.parameters()]
        torch._foreach_lerp_(list(self.shadow.values()), weights, 1.0 - decay)

    @torch.no_grad()
    def move(self, model: nn.Module, share: Tensor) -> None:
        """shadow += share (weight - shadow); ``share`` is one number, on their device."""
        shadow = list(self.shadow.values())
        difference = torch._foreach_sub([value.detach() for value in model.parameters()], shadow)
        torch._foreach_mul_(difference, share)
        torch._foreach_add_(shadow, difference)


@contextmanager
def holding(model: nn.Module, values: dict[str, Tensor] | None) -> Iterator[None]:
    """Within the block the weights of ``model`` are ``values`` by name, if any; then its own."""
    if values is None:
        yield
        return
    own = {name: value.detach().clone() for name, value in model.named_parameters()}
    fill(model, values)
    try:
        yield
    finally:
        fill(model, own)


@torch.no_grad()
def fill(model: nn.Module, values: dict[str, Tensor]) -> None:
    """Copy ``values`` by name into the parameters; KeyError if one is missing."""
    for name, parameter in model.named_parameters():
        parameter.copy_(values[name])
