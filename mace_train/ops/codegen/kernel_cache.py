"""Generated sources and compiled kernels on disk.

A file is named by the SHA-256 of all that determines it, so that different machines can share
a home. It is written under another name, synced and renamed, under a lock: of several processes
that want a file one makes it, and the others wait for it. Its last line is a checksum of the rest;
a file that is damaged, such as one that a full disk cut short, is made again. The sources are kept
by the recipe they were generated from, since generating a large one takes longer than loading what
was compiled from it.

The files here are run. So a folder is used only if it and the file belong to this user or to root
and nobody else can write them; a folder of this user is made so, and where that cannot be, kernels
are kept in a private folder. A folder that root has filled may be shared by many users who can only
read it.
"""

import fcntl
import hashlib
import logging
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from mace_train._paths import KERNELS
from mace_train.interrupts import unfinished

LOGGER = logging.getLogger("mace_train")
_LAST_LINE = b"\nmace-train sha256 "
_LENGTH = len(_LAST_LINE) + 64
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def cache_folder() -> Path:
    """Where compiled kernels are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mace-train" / "kernels"


def built(identity: str, suffix: str, folder: Path, make: Callable[[Path], None]) -> Path:
    """The file that ``identity`` determines; ``make`` writes it to a path, if it is missing."""
    digest = hashlib.sha256(f"{identity}\0sealed".encode()).hexdigest()
    name = f"{digest[:32]}{suffix}"
    own = _own_folder(folder)
    for place in dict.fromkeys((folder, own)):
        if _is_trusted(place) and _is_usable(place / name):
            return place / name
    path = own / name
    with _locked(path.with_suffix(".lock")):
        if _is_usable(path):
            return path
        if path.exists():
            problem = "is damaged" if _is_trusted(path) else "is not yours alone to write"
            LOGGER.warning("%s %s and is compiled again", path, problem)
            path.unlink()
        temporary = path.with_suffix(f".{os.getpid()}.part")
        try:
            with unfinished(temporary):
                make(temporary)
                _seal(temporary)
                os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    return path


def content(path: Path) -> bytes:
    """What was made, without its checksum."""
    return path.read_bytes()[:-_LENGTH]


def source_of(recipe: str, suffix: str, generate: Callable[[], str], folder: Path) -> str:
    """The source that a recipe gives, from the cache if it is there."""
    identity = f"{recipe}\0{_generator()}"
    path = built(identity, suffix, folder, lambda path: _write(path, generate()))
    return content(path).decode()


def _write(path: Path, text: str) -> None:
    path.write_text(text)


def _checksum(data: bytes) -> bytes:
    return _LAST_LINE + hashlib.sha256(data).hexdigest().encode()


def _seal(path: Path) -> None:
    """Append the checksum, which loaders of libraries ignore, and sync the file."""
    checksum = _checksum(path.read_bytes())
    with path.open("ab") as file:
        file.write(checksum)
        file.flush()
        os.fchmod(file.fileno(), stat.S_IMODE(os.fstat(file.fileno()).st_mode) & ~OTHERS_WRITE)
        os.fsync(file.fileno())


def _is_usable(path: Path) -> bool:
    """Whether the file is there, complete, and nobody else's."""
    if not _is_trusted(path):
        return False
    try:
        data = path.read_bytes()
    except OSError:
        return False
    return len(data) > _LENGTH and _checksum(data[:-_LENGTH]) == data[-_LENGTH:]


def _is_trusted(path: Path) -> bool:
    """Whether this user or root owns it and nobody else can write it."""
    try:
        status = path.stat()
    except OSError:
        return False
    return status.st_uid in (0, os.getuid()) and not status.st_mode & OTHERS_WRITE


@cache
def _own_folder(folder: Path) -> Path:
    """``folder`` if this process can write there and nobody else, or a private one."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
        if status.st_uid == os.getuid() and status.st_mode & OTHERS_WRITE:
            # made under umask 002; a file that somebody else wrote there is still refused
            folder.chmod(stat.S_IMODE(status.st_mode) & ~OTHERS_WRITE)
        problem = "" if _is_trusted(folder) else "others can write there, or it is not yours"
        if not problem and os.access(folder, os.W_OK):
            return folder
    except OSError as error:
        problem = str(error)
    private = Path(tempfile.gettempdir()) / f"mace-train-{os.getuid()}"
    with suppress(OSError):  # a file of that name: not trusted
        private.mkdir(mode=0o700, exist_ok=True)
    if not (private.is_dir() and not private.is_symlink() and _is_private(private)):
        private = Path(tempfile.mkdtemp(prefix="mace-train-"))
    if problem:
        LOGGER.warning("kernels are not kept in %s (%s) but in %s", folder, problem, private)
    return private


def _is_private(folder: Path) -> bool:
    return folder.stat().st_uid == os.getuid() and _is_trusted(folder)


@cache
def _generator() -> str:
    """A digest of ops/ and the skeletons, which make the sources."""
    digest = hashlib.sha256()
    for folder, pattern in ((Path(__file__).parents[1], "*.py"), (KERNELS, "*.cu*")):
        for path in sorted(folder.rglob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
