"""mace_run_train in this process, from given weights and with given batches.

Everything else is its own: it reads the files, fits E0s, scale and shift, builds the model, the
loss, the optimizer, the schedule, stage two and the EMA, and trains.
"""

import importlib
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.model.mace_torch import codegen

Order = Callable[[int], list[list[int]]]
"""From an epoch to its batches: indices of training structures, in the order of the file."""


class _DoneError(Exception):
    """Ends mace_run_train after the last epoch: what follows are tables and compiled files."""


def train_theirs(
    config: Path, initial: dict[str, Tensor], order: Order, monkeypatch: Any
) -> dict[str, Any]:
    """What mace_run_train has at the end: model, ema, optimizer, lr_scheduler, checkpoint_handler.

    ``config`` is its file of options, ``initial`` a state dict of all tensors that carry
    information, in mace-torch's layout; what mace_run_train finds itself (E0s, scale, shift) must
    agree with it.
    """
    from mace import tools
    from mace.cli import run_train

    training = importlib.import_module("mace.tools.train")  # mace.tools.train is a function of it
    args = tools.build_default_arg_parser().parse_args([f"--config={config}"])
    found: dict[str, Any] = {}

    def configure_model(*arguments: Any, **named: Any) -> Any:
        model, outputs = configure(*arguments, **named)
        own = model.state_dict()
        for name, tensor in initial.items():
            if not name.startswith(("node_embedding", "interactions", "products", "readouts")):
                theirs = own[name].reshape(tensor.shape)  # of one head, maybe without its axis
                torch.testing.assert_close(tensor, theirs, rtol=1e-12, atol=1e-12)
        assert not model.load_state_dict(initial, strict=False).unexpected_keys
        return model, outputs

    def train_one_epoch(*, data_loader: Any, epoch: int, **named: Any) -> None:
        batches = order(epoch)
        sizes = {len(batch) for batch in batches}
        assert len(sizes) == 1
        loader = type(data_loader)(
            data_loader.dataset,
            batch_size=sizes.pop(),
            sampler=[i for batch in batches for i in batch],
            drop_last=data_loader.drop_last,
        )
        one_epoch(data_loader=loader, epoch=epoch, **named)

    def train(**named: Any) -> None:
        found.update(named)
        whole(**named)
        raise _DoneError

    configure, one_epoch, whole = run_train.configure_model, training.train_one_epoch, tools.train
    with monkeypatch.context() as patched, warnings.catch_warnings(), codegen(scripted=False):
        warnings.simplefilter("ignore")
        patched.setattr(run_train, "configure_model", configure_model)
        patched.setattr(training, "train_one_epoch", train_one_epoch)
        patched.setattr(tools, "train", train)
        patched.setattr(tools, "setup_logger", lambda **_: None)
        patched.setattr(logging.getLogger(), "disabled", True)
        try:
            run_train.run(args)
        except _DoneError:
            return found
    raise AssertionError("mace_run_train did not train")


def best_of_theirs(found: dict[str, Any]) -> tuple[int, dict[str, Tensor]]:
    """(epoch, weights) of the checkpoint that mace_run_train would make its model of."""
    io = found["checkpoint_handler"].io
    checkpoint, epoch = io.load(Path(io.old_path).as_posix())
    return epoch, checkpoint["model"]
