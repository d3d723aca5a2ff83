"""The checkpoints of one training: written in the background, pruned, read back with a fallback.

    step-N.safetensors    all that a resumed run needs, after N steps; the newest few are kept
    best-N.safetensors    the weights to use that were best after N steps, as long as a kept
                          checkpoint refers to them
    epoch-E.safetensors   never pruned, written where checkpoints.keep_every is set
    last, best, best_of_stage_one: other names of the newest of each

A checkpoint is copied to the host's memory at once and written by a thread (tensors, fsync, atomic
rename) while training continues; the next one waits for it, and raises its errors.

A kill at any place leaves what can be continued: names that are of a newer or an older checkpoint,
a missing JSON and files that were being written are put right by ``tidy`` when the run is resumed.
Files of other names are left alone.
"""

import logging
import os
import re
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from mace_train.atomic_files import remove_leftovers, replaced, sync_folder, temporary_name
from mace_train.errors import InputError, system_error
from mace_train.train import checkpoint

LOGGER = logging.getLogger("mace_train")


class CheckpointManager:
    """Checkpoints in ``folder``; only rank 0 uses it."""

    def __init__(self, folder: Path, keep: int = 2, keep_every: int | None = None) -> None:
        self.folder, self.keep, self.keep_every = folder, keep, keep_every
        self._writer: ThreadPoolExecutor | None = None
        self._pending: Future[None] | None = None
        self._resumed: Path | None = None
        self._damaged: dict[Path, str] = {}  # with what is wrong
        self._best_again: tuple[dict[str, Tensor], dict[str, Any]] | None = None

    def path(self, name: str) -> Path:
        """The file of that name (last, best, step-0000000012, ...)."""
        return self.folder / f"{name}.safetensors"

    def steps(self) -> list[Path]:
        """Checkpoints to resume from, newest first."""
        return self._numbered("step")

    def _numbered(self, kind: str) -> list[Path]:
        """The files ``kind-NUMBER.safetensors``, those with the highest numbers first."""
        found = [path for path in self.folder.glob(f"{kind}-*.safetensors") if path.is_file()]
        ours = [path for path in found if re.fullmatch(rf"{kind}-\d+", path.stem, re.ASCII)]
        return sorted(ours, key=_number, reverse=True)

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
        sync_folder(self.folder)
        self._prune()

    def wait(self) -> None:
        """Return when everything is on the disk.

        Raises:
            InputError: It could not be written; ``StorageError`` where the disk is full or fails.
                The checkpoints before are whole.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
        except (InputError, OSError, SafetensorError) as error:
            explained = system_error(error, self.folder) or InputError(str(error))
            raise type(explained)(
                f"output: cannot write a checkpoint: {explained}; restart_latest=true continues "
                "from the last one that was written"
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
        kept = steps[: self.keep]
        try:
            progress = [checkpoint.read_header(path)["progress"] for path in kept]
        except (InputError, KeyError):
            return  # nobody knows what it refers to
        if not progress:
            return
        oldest = min(p["step"] for p in progress)
        referred = {p["best_step"] for p in progress}
        for path in self._numbered("best"):
            if _number(path) < oldest and _number(path) not in referred:
                _remove(path)

    def newest(self) -> tuple[dict[str, Tensor], dict[str, Any], Path]:
        """(tensors, header, path) of the newest checkpoint that is whole; changes no file.

        A damaged one is named in the log, and the one before is read. Where the best weights are
        damaged, those of this checkpoint take their place until the next validation. Raises
        ``InputError`` if none is whole.
        """
        for path in [*self.steps(), *self._numbered("epoch")]:
            try:
                tensors, header = checkpoint.read(path)
            except checkpoint.DamagedError as error:
                self._found_damaged(path, error)
                continue
            with checkpoint.reading(path):
                header["progress"] = self._with_best(path, tensors, header)
                step = int(header["progress"]["step"])
            if self._damaged and self._resumed is None:
                LOGGER.error("resuming from the previous checkpoint %s, step %d", path, step)
            self._resumed = path
            return tensors, header, path
        raise InputError(
            f"no checkpoint in {self.folder} is whole ({'; '.join(self._damaged.values())}); "
            "choose another output and train again"
        )

    def _with_best(
        self, path: Path, tensors: dict[str, Tensor], header: dict[str, Any]
    ) -> dict[str, Any]:
        """The progress of a checkpoint, which refers to best weights that are whole."""
        progress = dict(header["progress"])
        if progress["best_step"] < 0:
            return progress
        best = self._best_path(progress)
        try:
            checkpoint.read(best)
            return progress
        except InputError as error:
            if not isinstance(error, checkpoint.DamagedError) and best.exists():
                raise  # not ours, or no permission
            self._found_damaged(best, error)
        LOGGER.error("the weights of %s are the best ones until the next validation", path)
        prefix = "average." if any(name.startswith("average.") for name in tensors) else "model."
        weights = {
            f"model.{name.removeprefix(prefix)}": tensor
            for name, tensor in tensors.items()
            if name.startswith(prefix)
        }
        forgotten = {"best_loss": None, "bad_validations": 0}
        as_best = {"best_step": progress["step"], "best_epoch": progress["epoch"]}
        progress |= forgotten | as_best
        self._best_again = weights, {**header, "progress": progress}
        return progress

    def _best_path(self, progress: dict[str, Any]) -> Path:
        return self.path(f"best-{progress['best_step']:010d}")

    def _found_damaged(self, path: Path, error: InputError) -> None:
        if path not in self._damaged:
            LOGGER.error("%s", error)
        self._damaged[path] = str(error)

    def tidy(self, progress: dict[str, Any]) -> None:
        """Make the folder that of a run with ``progress``; its lock must be held.

        Damaged files get the name ``*.damaged``; ``last`` and ``best`` are those of the state that
        is resumed, JSON files are written where they are missing, and what was half-written or is
        of a later state that is lost is removed.
        """
        remove_leftovers(self.folder, locked=True)
        for path in self._damaged:
            if path.exists():
                os.replace(path, path.with_suffix(".damaged"))
        if self._resumed is None:
            return
        if self._best_again is not None:
            checkpoint.save(self._best_path(progress), *self._best_again)
            self._best_again = None
        for newer in self._numbered("best"):
            if _number(newer) > progress["step"]:
                _remove(newer)
        for path in [path for kind in ("step", "best", "epoch") for path in self._numbered(kind)]:
            checkpoint.write_readable(path)
        for readable in self.folder.glob("*-*.json"):
            ours = re.fullmatch(r"(step|best|epoch)-\d+", readable.stem, re.ASCII)
            if ours and not readable.with_suffix(".safetensors").exists():
                readable.unlink()
        also_called(self._resumed, self.path("last"))
        best = self._best_path(progress)
        if best.exists():
            also_called(best, self.path("best"))


def _number(path: Path) -> int:
    return int(path.stem.rpartition("-")[2])


def also_called(path: Path, name: Path) -> None:
    """Make ``name`` a hard link to the file ``path``, and to its JSON; or a copy, without links."""
    if not path.with_suffix(".json").exists():
        checkpoint.write_readable(path)
    for one, other in ((path, name), (path.with_suffix(".json"), name.with_suffix(".json"))):
        temporary = other.with_name(temporary_name(other.name))
        temporary.unlink(missing_ok=True)
        try:
            os.link(one, temporary)
        except OSError:  # a file system without hard links
            with replaced(other) as copy:
                shutil.copyfile(one, copy)
            continue
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
    path.with_suffix(".json").unlink(missing_ok=True)  # first: it can be made from the other
    path.unlink(missing_ok=True)
