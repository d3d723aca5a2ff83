"""The checkpoints of one training: written in the background, pruned, read back with a fallback.

    step-N.safetensors    all that a resumed run needs, after N steps; the newest few are kept
    best-N.safetensors    the weights to use that were best after N steps, as long as a kept
                          checkpoint refers to them
    epoch-E.safetensors   never pruned, written where checkpoints.keep_every is set
    last, best, best_of_stage_one: other names of the newest of each

A checkpoint is copied to the host's memory at once and written by a thread (tensors, fsync, atomic
rename) while training continues; the next one waits for it, and raises its errors.
"""

import json
import logging
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from mace_train.errors import InputError
from mace_train.train import checkpoint

LOGGER = logging.getLogger("mace_train")


class CheckpointManager:
    """Checkpoints in ``folder``; only rank 0 uses it."""

    def __init__(self, folder: Path, keep: int = 2, keep_every: int | None = None) -> None:
        self.folder, self.keep, self.keep_every = folder, keep, keep_every
        self._writer: ThreadPoolExecutor | None = None
        self._pending: Future[None] | None = None

    def path(self, name: str) -> Path:
        """The file of that name (last, best, step-0000000012, ...)."""
        return self.folder / f"{name}.safetensors"

    def steps(self) -> list[Path]:
        """Checkpoints to resume from, newest first."""
        return sorted(self.folder.glob("step-*.safetensors"), reverse=True)

    def save(self, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
        """Write the state of a run; returns when it is copied."""
        progress = header["progress"]
        path = self.path(f"step-{progress['step']:010d}")
        names = ["last"]
        at_end = progress["part_step"] == 0  # of an epoch; see Progress.to_header
        if self.keep_every and at_end and (progress["epoch"] + 1) % self.keep_every == 0:
            names.append(f"epoch-{progress['epoch'] + 1:05d}")
        self._submit(path, _copies(tensors), header, names)

    def save_best(
        self, tensors: dict[str, Tensor], header: dict[str, Any], names: list[str]
    ) -> None:
        """Write weights that are better than all before, also under ``names``."""
        path = self.path(f"best-{header['progress']['step']:010d}")
        self._submit(path, _copies(tensors), header, names)

    def _submit(
        self, path: Path, tensors: dict[str, Tensor], header: dict[str, Any], names: list[str]
    ) -> None:
        self.wait()
        if self._writer is None:
            self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending = self._writer.submit(self._write, path, tensors, header, names)

    def _write(
        self, path: Path, tensors: dict[str, Tensor], header: dict[str, Any], names: list[str]
    ) -> None:
        checkpoint.save(path, tensors, header)
        for name in names:
            also_called(path, self.path(name))
        self._prune()

    def wait(self) -> None:
        """Return when everything is on the disk; ``InputError`` if it could not be written."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"output: cannot write a checkpoint to {self.folder} ({error}); free space there "
                "or choose another output, then continue with restart_latest=true"
            ) from None

    def close(self) -> None:
        """Wait, and end the thread."""
        try:
            self.wait()
        finally:
            if self._writer is not None:
                self._writer.shutdown()
                self._writer = None

    def _prune(self) -> None:
        """Remove checkpoints beyond the newest ``keep``, and best weights that none refers to."""
        steps = self.steps()
        for path in steps[self.keep :]:
            _remove(path)
        kept = [path.with_suffix(".json") for path in steps[: self.keep]]
        if not kept or not all(path.exists() for path in kept):
            return
        progress = [json.loads(path.read_text())["progress"] for path in kept]
        oldest = min(p["step"] for p in progress)
        referred = {p["best_step"] for p in progress}
        for path in self.folder.glob("best-*.safetensors"):
            step = int(path.stem.removeprefix("best-"))
            if step < oldest and step not in referred:
                _remove(path)

    def newest(self) -> tuple[dict[str, Tensor], dict[str, Any], Path]:
        """(tensors, header, path) of the newest checkpoint that is whole.

        A damaged one is renamed to ``*.damaged``, with an error in the log, and the one before is
        read. Raises ``InputError`` if none is whole.
        """
        milestones = sorted(self.folder.glob("epoch-*.safetensors"), reverse=True)
        messages, damaged = [], []
        for path in [*self.steps(), *milestones]:
            try:
                tensors, header = checkpoint.read(path)
            except checkpoint.DamagedError as error:
                messages.append(str(error))
                damaged.append(path)
                continue
            for message, other in zip(messages, damaged, strict=True):
                LOGGER.error("%s", message)
                os.replace(other, other.with_suffix(".damaged"))
            if damaged:
                LOGGER.error(
                    "resuming from the previous checkpoint %s, step %d",
                    path,
                    header["progress"]["step"],
                )
            self._set_names(path, header["progress"])
            return tensors, header, path
        raise InputError(
            f"no checkpoint in {self.folder} is whole ({'; '.join(messages)}); choose another "
            "output and train again"
        )

    def _set_names(self, path: Path, progress: dict[str, Any]) -> None:
        """Point ``last`` and ``best`` to the resumed state; they may be of a newer, damaged one."""
        also_called(path, self.path("last"))
        best = self.path(f"best-{progress['best_step']:010d}")
        if best.exists():
            also_called(best, self.path("best"))
        for newer in self.folder.glob("best-*.safetensors"):
            if int(newer.stem.removeprefix("best-")) > progress["step"]:
                _remove(newer)


def also_called(path: Path, name: Path) -> None:
    """Make ``name`` a hard link to the file ``path``, and to its JSON; or a copy, without links."""
    for one, other in ((path, name), (path.with_suffix(".json"), name.with_suffix(".json"))):
        temporary = other.with_name(f".{other.name}.{os.getpid()}.tmp")
        temporary.unlink(missing_ok=True)
        try:
            os.link(one, temporary)
        except OSError:  # a file system without hard links
            shutil.copyfile(one, temporary)
        os.replace(temporary, other)
        temporary.unlink(missing_ok=True)  # both names were one file already: nothing was renamed


def _copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies in the host's memory that the next step does not change."""
    copies = {}
    for name, tensor in tensors.items():
        copies[name] = torch.empty_like(tensor, device="cpu", memory_format=torch.contiguous_format)
        copies[name].copy_(tensor.detach())
    return copies


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.with_suffix(".json").unlink(missing_ok=True)
