"""From the summed gradient to new weights on the GPU alone: norm, clipping, optimizer, average.

Outside of a recording the host looks at the norm before it lets the optimizer go on. Here the GPU
decides: a step whose norm is not finite changes nothing, and the host reads the norm when the next
step is on its way. If a rank ran out of memory (the health of ``Gradients`` is NaN), later steps
change nothing either, until the host has planned the rest anew and calls ``go_on``.
"""

import torch
from torch import Tensor, nn

from mace_train.train.average import Average
from mace_train.train.captured import Capture, Replay
from mace_train.train.gradients import Gradients


class CapturedUpdate:
    """The update of all weights by Adam or AdamW, made by ``make_optimizer(on_device=True)``."""

    def __init__(
        self,
        model: nn.Module,
        gradients: Gradients,
        average: Average | None,
        clip_grad: float | None,
        capture: Capture,
    ) -> None:
        flat = gradients.flat
        self._model = model
        self._flat = flat
        self._average = average
        self._clip_grad = clip_grad
        self._capture = capture
        self._halted = torch.zeros((), dtype=torch.bool, device=flat.device)
        n_updates = 0 if average is None else average.n_updates
        self._n_updates = torch.tensor(n_updates, dtype=torch.float64, device=flat.device)
        self._optimizer: torch.optim.Optimizer | None = None
        self._replay: Replay | None = None
        self._norm = flat.new_zeros(())

    @torch.no_grad()
    def step(self, optimizer: torch.optim.Optimizer) -> Tensor:
        """One step with the learning rates of the groups; its norm, not finite if it was void."""
        if optimizer is not self._optimizer:
            self._record(optimizer)
        assert self._replay is not None
        self._replay()
        return self._norm.clone()

    def go_on(self) -> None:
        """Let steps change the weights again."""
        self._halted.zero_()

    def _record(self, optimizer: torch.optim.Optimizer) -> None:
        halted, gradient = self._halted.clone(), self._flat.clone()
        self._halted.fill_(True)  # the runs before the capture make the state, and move nothing
        self._replay, (self._norm,) = self._capture(
            lambda: (self._update(optimizer),), gradient.device
        )
        self._halted.copy_(halted)
        self._flat.copy_(gradient)
        self._optimizer = optimizer

    def _update(self, optimizer: torch.optim.Optimizer) -> Tensor:
        norm = torch.linalg.vector_norm(self._flat)
        self._halted.logical_or_(self._flat[-1].isnan())
        void = self._halted | ~norm.isfinite()
        if self._clip_grad is not None:  # as torch's clip_grad_norm_ does
            self._flat.mul_((self._clip_grad / (norm + 1e-6)).clamp(max=1.0))
        optimizer.found_inf = void.to(torch.float32)  # type: ignore[attr-defined]  # of GradScaler
        optimizer.step()
        if self._average is not None:
            self._n_updates.add_(~void)
            decay = (1.0 + self._n_updates) / (10.0 + self._n_updates)
            share = torch.where(void, 0.0, 1.0 - decay.clamp(max=self._average.decay))
            self._average.move(self._model, share.to(norm.dtype))
        return norm
