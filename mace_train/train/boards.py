"""Programs that show a run's numbers elsewhere: Weights & Biases (wandb), TensorBoard.

They are copies of metrics.jsonl. Where one fails during a training, such as on a full disk, one
line says so and the training goes on without it; where one cannot be started, nothing is trained.
"""

import logging
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from mace_train.atomic_files import write_text
from mace_train.errors import InputError, system_error, with_exit_code
from mace_train.settings import LoggerSettings

LOGGER = logging.getLogger("mace_train")


class Board:
    """Takes numbers until one attempt fails."""

    def __init__(
        self, folder: Path, write: Callable[[dict[str, Any]], None], close: Callable[[int], None]
    ) -> None:
        self._folder, self._write, self._close = folder, write, close
        self._has_failed = False

    def write(self, numbers: dict[str, Any]) -> None:
        """Show the numbers of one epoch, ``step`` among them."""
        if not self._has_failed:
            self._attempt(lambda: self._write(numbers))

    def close(self, exit_code: int) -> None:
        """Finish; a non-zero ``exit_code`` marks a run of wandb as failed."""
        self._attempt(lambda: self._close(exit_code))

    def _attempt(self, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # of any sort: the training does not depend on it
            if not self._has_failed:
                what = f"{self._folder}: {type(error).__name__}: {error}"
                LOGGER.warning("no more numbers: %s", system_error(error, self._folder) or what)
            self._has_failed = True


def start_wandb(settings: LoggerSettings, output: Path, name: str, config: dict[str, Any]) -> Board:
    """A run of wandb; a resumed training continues the same."""
    try:
        import wandb
    except ImportError:
        raise InputError(
            "logger.wandb=true but wandb is not installed; pip install wandb"
        ) from None
    logging.raiseExceptions = False  # wandb's own log on a full disk would print traces
    remembered = output / "wandb_id"
    if not remembered.exists():
        write_text(remembered, secrets.token_hex(4))
    try:
        run = wandb.init(
            project=settings.wandb_project,
            entity=settings.wandb_entity,
            name=settings.wandb_name or name,
            id=remembered.read_text().strip(),
            resume="allow",
            dir=str(output),
            mode=cast(Any, settings.wandb_mode),
            config=config,
        )
        run.define_metric("step")  # not wandb's own count, which a resumed run could not repeat
        run.define_metric("*", step_metric="step")
    except wandb.Error as error:
        explained = system_error(error)
        raise with_exit_code(
            f"logger.wandb_mode={settings.wandb_mode}: wandb cannot start ({error}); run "
            "`wandb login`, or use logger.wandb_mode=offline and `wandb sync` later",
            InputError.exit_code if explained is None else explained.exit_code,
        ) from None
    return Board(output / "wandb", run.log, lambda exit_code: run.finish(exit_code=exit_code))


def start_tensorboard(output: Path, purge_step: int) -> Board:
    """Files of TensorBoard, which hides what earlier ones have from ``purge_step`` on."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError(
            "logger.tensorboard=true but tensorboard is not installed; "
            "pip install 'mace-train[loggers]'"
        ) from None
    folder = output / "tensorboard"
    writer = SummaryWriter(str(folder), purge_step=purge_step)

    def write(numbers: dict[str, Any]) -> None:
        for key, value in numbers.items():
            writer.add_scalar(key, value, numbers["step"])
        writer.flush()

    return Board(folder, write, lambda _: writer.close())
