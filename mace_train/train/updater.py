"""From the gradients of bins to new weights: sum over ranks, clipping, optimizer, EMA.

    zero_gradients -> backward of every bin (step.py) -> gradients.finish -> update

``update`` launches the change of the weights and returns a function that waits for the norm of the
gradient. On the host the norm is known before the weights change; with a captured update
(cuda_graphs.py) the GPU decides, and ``starts_ahead`` is true: the next step may be launched before
the norm of this one is read. Where the norm is not finite, the weights stay as they are.
"""

import logging
import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from mace_train.distributed.world import World
from mace_train.model.mace import MACE
from mace_train.settings import TrainSettings
from mace_train.train.checkpoint import with_prefix
from mace_train.train.cuda_graphs import Capture, GraphedGradient, GraphedUpdate, item_later
from mace_train.train.ema import EMA
from mace_train.train.gradients import Gradients
from mace_train.train.lr_schedule import Schedule, schedule_of
from mace_train.train.optim import (
    evaluation_weights,
    is_schedule_free,
    load_optimizer_state,
    make_optimizer,
    optimizer_state,
    set_lr,
)
from mace_train.train.timing import StepTimer

LOGGER = logging.getLogger("mace_train")
# what has an EMA, can be captured, and can continue with the other's state
ADAM = ("adam", "adamw")


class Updater:
    """The gradients, optimizer, schedule and EMA of one model on one rank.

    ``optimizer_name`` is that of the stage; ``parameters`` are the weights that are not frozen.
    """

    def __init__(
        self, model: MACE, settings: TrainSettings, optimizer_name: str, world: World
    ) -> None:
        self.model = model
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.gradients = Gradients(self.parameters, world)
        self.schedule: Schedule = schedule_of(settings)
        self.ema = EMA(model, settings.ema_decay) if settings.ema else None
        self.graphed_gradient: GraphedGradient | None = None  # with cluster.cuda_graphs
        self.graphed_update: GraphedUpdate | None = None
        self._settings = settings
        self.start_optimizer(optimizer_name)

    def start_optimizer(self, name: str) -> None:
        """Make the optimizer ``name``, without a state, over the parameters that are trained."""
        self.optimizer_name = name
        self.optimizer = make_optimizer(
            self.model,
            self._settings.optimizer,
            name,
            on_device=self._settings.cluster.cuda_graphs,
        )
        if is_schedule_free(self.optimizer):
            self.optimizer.train()  # type: ignore[attr-defined]

    def capture_graphs(self, capture: Capture) -> None:
        """From now on capture the gradient of a bin and the update, and replay them."""
        self.graphed_gradient = GraphedGradient(
            self.model, self.parameters, self.gradients, capture
        )
        self.graphed_update = GraphedUpdate(
            self.model, self.gradients, self.ema, self._settings.clip_grad, capture
        )

    @property
    def starts_ahead(self) -> bool:
        """True if the device decides about updates, so a step may start before the last is done."""
        return self.graphed_update is not None and self.optimizer_name in ADAM

    def zero_gradients(self) -> None:
        """Set all gradients to zero, before the first bin of a step."""
        self.gradients.begin(own_norm=self._settings.logger.noise_scale)

    def update(self, lr: float, timer: StepTimer) -> Callable[[], float]:
        """Change the weights by the summed gradient, unless its norm is not finite.

        Returns a function that waits for the norm.
        """
        set_lr(self.optimizer, lr)
        if self.starts_ahead:
            assert self.graphed_update is not None
            with timer("optimizer"):
                return item_later(self.graphed_update.step(self.optimizer))
        with timer("compute"):
            norm = self.gradients.norm()
        if math.isfinite(norm):
            with timer("optimizer"):
                self.gradients.clip(norm, self._settings.clip_grad)
                self.optimizer.step()
                if self.ema is not None:
                    self.ema.update(self.model)
        else:
            self.gradients.begin()
        return lambda: norm

    def count_update(self) -> None:
        """Count an update whose norm was finite, where the host did not make it itself."""
        if self.starts_ahead and self.ema is not None:
            self.ema.n_updates += 1

    def free_memory(self) -> None:
        """Give the memory of the captured gradient back, after this rank had too little."""
        if self.graphed_gradient is not None:
            self.graphed_gradient.forget()

    def resume_updates(self) -> None:
        """Let updates change the weights again, after all ranks know about a failed step."""
        if self.graphed_update is not None:
            self.graphed_update.resume_updates()

    def weights_to_use(self) -> dict[str, Tensor] | None:
        """The weights to validate and to keep, by name; None where they are the model's own."""
        if self.ema is not None and self.optimizer_name in ADAM:
            return self.ema.shadow
        return evaluation_weights(self.optimizer, self.model)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors, entries of the header) of a checkpoint; files call the EMA "average"."""
        shadow = self.ema.shadow if self.ema is not None else None
        shadow = shadow or evaluation_weights(self.optimizer, self.model)
        tensors = {} if shadow is None else with_prefix("average.", shadow)
        optimizer_tensors, numbers = optimizer_state(self.optimizer, self.model)
        tensors |= with_prefix("optimizer.", optimizer_tensors)
        return tensors, {
            "schedule": self.schedule.state_dict(),
            "average_updates": self.ema.n_updates if self.ema is not None else 0,
            "optimizer": {"kind": self.optimizer_name, **numbers},
        }

    def load_state(
        self, tensors: dict[str, Tensor], header: dict[str, Any], optimizer_name: str
    ) -> None:
        """Continue from a checkpoint, whose weights the model holds, with that optimizer."""
        self._load_ema(tensors, header["average_updates"])
        self.schedule.load_state_dict(header["schedule"])
        self.start_optimizer(optimizer_name)
        before = header["optimizer"]["kind"]
        if optimizer_name != before and not {optimizer_name, before} <= set(ADAM):
            LOGGER.warning(
                "the optimizer was %s and is %s now: its state starts from zero",
                before,
                optimizer_name,
            )
            return
        prefix = "optimizer."
        state = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        load_optimizer_state(self.optimizer, self.model, state, header["optimizer"])

    def _load_ema(self, tensors: dict[str, Tensor], n_updates: int) -> None:
        """The EMA of the checkpoint, or one that starts from its weights."""
        if self.ema is None:
            return
        prefix = "average." if n_updates else "model."
        device = self.gradients.flat.device
        self.ema.shadow = {
            name: tensors[prefix + name].detach().clone().to(device) for name in self.ema.shadow
        }
        self.ema.n_updates = n_updates
