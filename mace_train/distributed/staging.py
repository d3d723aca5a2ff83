"""Shards on the node's own disk: copied once per node before the first step, removed at the end.

A shared file system serves hundreds of nodes badly when each reads small blocks at random; a copy
is one stream per node. The copy is named after the job and the data, so a job that is requeued on
the same node finds its earlier copy.
"""

import errno
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mace_train import environment_variables, interrupts
from mace_train.distributed.world import World
from mace_train.errors import InputError, system_error, with_exit_code
from mace_train.folders import existing_folder

LOGGER = logging.getLogger("mace_train")


@contextmanager
def staged(folder: Path, to: str | None, world: World) -> Iterator[Path]:
    """``folder``, or its copy below ``to`` on this node.

    Raises ``InputError`` on every rank if one node has no room for it or cannot write it.
    """
    if to is None:
        yield folder
        return
    existing_folder("data_dir", str(folder))
    failure: InputError | None = None
    copy = Path(to)
    try:
        copy = Path(to) / _name(folder)
        if world.local_rank == 0:
            _copy(folder, copy)
    except (OSError, ValueError) as error:
        explained = system_error(error)
        what = error.args[0][0][2] if isinstance(error, shutil.Error) else error
        failure = with_exit_code(
            f"cluster.stage_to={to}: {os.uname().nodename} cannot copy {folder} there ({what}); "
            "choose another folder, or leave stage_to out",
            InputError.exit_code if explained is None else explained.exit_code,
        )
    world.raise_on_all_ranks(failure)
    try:
        yield copy
    finally:
        if world.local_rank == 0:
            shutil.rmtree(copy, ignore_errors=True)


def _name(folder: Path) -> str:
    """A name that is the same for all processes of a job on a node, and for its next start."""
    data = hashlib.sha256((folder / "statistics.json").read_bytes()).hexdigest()
    job = environment_variables.job()
    number = str(os.getppid()) if job is None else job[1]
    return f"mace-train-{number}-{data[:16]}"


def _copy(folder: Path, copy: Path) -> None:
    """Copy everything; under another name until it is complete."""
    if copy.is_dir():
        if copy.lstat().st_uid != os.getuid():  # in a folder that others can write
            raise OSError(f"{copy} is there and belongs to another user")
        LOGGER.info("%s is already there", copy)
        return
    start = time.monotonic()
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    copy.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(copy.parent).free
    if size > free:
        needed = f"{size / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB free"
        raise OSError(errno.ENOSPC, needed, str(copy.parent))
    incomplete = copy.with_name(f"{copy.name}.incomplete")
    shutil.rmtree(incomplete, ignore_errors=True)
    try:
        with interrupts.unfinished(incomplete):
            shutil.copytree(folder, incomplete)
        os.replace(incomplete, copy)
    except BaseException:
        shutil.rmtree(incomplete, ignore_errors=True)
        raise
    seconds = time.monotonic() - start
    LOGGER.info("copied %.3g GB to %s, %.3g MB/s", size / 1e9, copy, size / 1e6 / seconds)
