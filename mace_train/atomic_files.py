"""Files that are whole or not there, also after a kill, a full disk or a loss of power.

Files are written in a hidden folder beside their place, synced and renamed; then the folder they
are in is synced. What a process that was killed has left is removed by the next one.
"""

import errno
import hashlib
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import NoReturn

from mace_train import interrupts
from mace_train.errors import system_error

# of this process: .NAME.PLACE-PID.tmp; earlier versions wrote no PLACE
_TEMPORARY = re.compile(r"\.(?:.+\.)?(?:([0-9a-f]{8})-)?(\d+)\.tmp")
_FOREIGN_AGE = 24 * 3600  # seconds after which what processes elsewhere have not changed is left
_CANNOT_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EACCES, errno.EBADF)


@contextmanager
def replaced(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """A path to write to, which becomes ``path`` when the block ends without an error.

    It has the same name in a folder of its own, where libraries may put files of theirs.
    ``durable`` waits until it is on the disk, so that it is whole after a loss of power, too.

    Raises:
        InputError: It cannot be written; ``StorageError`` where the same may succeed later. What
            was at ``path`` is there as before.
    """
    try:
        with _temporary_folder(path.parent, temporary_name(path.name)) as folder:
            yield folder / path.name
            _install(folder, [path.name], durable)
    except Exception as error:
        _raise(error, path)


@contextmanager
def written_together(folder: Path) -> Iterator[Path]:
    """A folder to write files to, which get into ``folder`` when all of them are written.

    Raises as ``replaced``; the files that ``folder`` held are there as before.
    """
    try:
        with _temporary_folder(folder, temporary_name()) as temporary:
            yield temporary
            _install(temporary, sorted(os.listdir(temporary)), durable=True)
    except Exception as error:
        _raise(error, folder)


def temporary_name(name: str = "") -> str:
    """The hidden name, beside the file ``name``, of what only this process writes."""
    return f".{name}{'.' if name else ''}{_place()}-{os.getpid()}.tmp"


@cache
def _place() -> str:
    """8 digits for the host and, in containers, the space of numbers that processes have here."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    text = f"{socket.gethostname()} {namespace}"
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


@contextmanager
def _temporary_folder(parent: Path, name: str) -> Iterator[Path]:
    remove_leftovers(parent)
    temporary = parent / name
    try:
        shutil.rmtree(temporary, ignore_errors=True)  # of a process that had this number
        with interrupts.unfinished(temporary):
            temporary.mkdir()
            yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def scratch_folder(parent: Path | None = None) -> Iterator[Path]:
    """A new folder that is removed at the end, however that comes; in the system's place for such.

    With a ``parent`` it is hidden in that folder.
    """
    prefix = "mace-train-" if parent is None else ".mace-train-"
    with (
        tempfile.TemporaryDirectory(prefix=prefix, dir=parent) as name,
        interrupts.unfinished(name),
    ):
        yield Path(name)


def _install(temporary: Path, names: list[str], durable: bool) -> None:
    if durable:
        for name in names:
            _sync(temporary / name)
    for name in names:
        os.replace(temporary / name, temporary.parent / name)
    if durable:
        sync_folder(temporary.parent)


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Replace the content of ``path``; see ``replaced``."""
    with replaced(path, durable=durable) as temporary:
        temporary.write_text(text, encoding="utf-8")


def append_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Append to ``path``; where that fails it ends as before, not in half a line."""
    try:
        with open(path, "ab", buffering=0) as handle:
            size = handle.seek(0, os.SEEK_END)
            try:
                data = text.encode()
                while data:
                    data = data[handle.write(data) :]
                if durable:
                    os.fsync(handle.fileno())
            except OSError:
                with suppress(OSError):  # such as a device
                    handle.truncate(size)
                raise
    except OSError as error:
        _raise(error, path)


def remove_leftovers(folder: Path, *, locked: bool = False) -> None:
    """Remove what processes have left that were killed while they wrote to ``folder``.

    ``locked`` says that this process alone may write there; else those of processes that run stay.
    Whether one on another host or in another container runs is not known here: what it has written
    stays for a day.
    """
    for path in folder.glob(".*.tmp"):
        found = _TEMPORARY.fullmatch(path.name)
        if found is None or not (locked or _is_left(path, found[1], int(found[2]))):
            continue
        with suppress(OSError):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()  # of an earlier version


def _is_left(path: Path, place: str | None, process: int) -> bool:
    if place in (None, _place()):
        return _has_ended(process)
    try:
        changed = [entry.stat().st_mtime for entry in (path, *path.glob("*"))]
    except OSError:  # gone, or being written
        return False
    return time.time() - max(changed) > _FOREIGN_AGE


def _has_ended(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        pass
    return False


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk, where the file system can do that."""
    try:
        _sync(path)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise


def _raise(error: Exception, path: Path) -> NoReturn:
    """Raise ``error``, in words for the user where it is one of the system."""
    explained = system_error(error, path)
    if explained is None or explained is error:
        raise error
    raise explained from error
