"""Generated sources and compiled kernels on disk.

A file is named by the SHA-256 of all that determines it, so that different machines can share
a home. It is written under another name, synced and renamed, under a lock: of several processes
that want a file one makes it, and the others wait for it. Its last line is a checksum of the rest;
a file that is damaged, such as one that a full disk cut short, is made again. The sources are kept
by the recipe they were generated from, since generating a large one takes longer than loading what
was compiled from it.

The files here are run. So a folder is used only if it, all above it and the file belong to this
user or to root and nobody else can write them; a folder of this user is made so, and where that
cannot be, kernels are kept in a private folder. A folder that root has filled may be shared by many
users who can only read it.
"""

import fcntl
import grp
import hashlib
import logging
import os
import pwd
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from mace_train import environment_variables
from mace_train._paths import KERNELS
from mace_train.interrupts import unfinished

LOGGER = logging.getLogger("mace_train")
_LAST_LINE = b"\nmace-train sha256 "
_LENGTH = len(_LAST_LINE) + 64
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def cache_folder() -> Path:
    """Where compiled kernels are kept."""
    base = environment_variables.folder("XDG_CACHE_HOME") or environment_variables.home() / ".cache"
    return base / "mace-train" / "kernels"


def built(identity: str, suffix: str, folder: Path, make: Callable[[Path], None]) -> Path:
    """The file that ``identity`` determines; ``make`` writes it to a path, if it is missing."""
    digest = hashlib.sha256(f"{identity}\0sealed".encode()).hexdigest()
    name = f"{digest[:32]}{suffix}"
    own = _own_folder(folder)
    for place in dict.fromkeys((folder, own)):
        if not _problem_of(place) and _is_usable(place / name):
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
    return status.st_uid in _trusted_owners() and not _others_write(status)


def _others_write(status: os.stat_result) -> bool:
    """Whether its mode lets somebody else write it; the group that only this user has is no one."""
    if status.st_mode & stat.S_IWOTH:
        return True
    return bool(status.st_mode & stat.S_IWGRP) and status.st_gid != _own_group()


@cache
def _own_group() -> int | None:
    """The group that has this user's name and no other members, as many systems make it."""
    with suppress(KeyError):
        name = pwd.getpwuid(os.getuid()).pw_name
        group = grp.getgrgid(os.getgid())
        if os.getuid() and group.gr_name == name and set(group.gr_mem) <= {name}:
            return group.gr_gid
    return None


@cache
def _trusted_owners() -> frozenset[int]:
    """This user and root, who in a container without root's number is shown as nobody."""
    owners = {0, os.getuid()}
    with suppress(OSError, ValueError, IndexError):
        mapped = Path("/proc/self/uid_map").read_text().splitlines()
        if not any(int(line.split()[1]) == 0 for line in mapped):
            owners.add(int(Path("/proc/sys/kernel/overflowuid").read_text()))
    return frozenset(owners)


def _problem_of(folder: Path) -> str:
    """Why somebody else could change what lies in the folder, or put another in its place."""
    if not _is_trusted(folder):
        return "others can write there, or it is not yours"
    for above in sorted(_ways_to(folder) - {folder}):
        owners = {above.lstat().st_uid, above.stat().st_uid}
        status = above.stat()
        # in a sticky folder only the owner of a file can replace it
        if owners - _trusted_owners() or (
            _others_write(status) and not status.st_mode & stat.S_ISVTX
        ):
            return f"others can write {above}, or it is not yours"
    return ""


def _ways_to(folder: Path) -> set[Path]:
    """The folder and all above it, also those that symbolic links lead through."""
    found: set[Path] = set()
    todo = [folder.absolute()]
    while todo:
        path = todo.pop()
        if path not in found:
            found.add(path)
            todo.append(path.parent)
            if path.is_symlink():
                todo.append(path.parent / path.readlink())
    return found


@cache
def _own_folder(folder: Path) -> Path:
    """``folder`` if this process can write there and nobody else, or a private one."""
    try:
        _make(folder)
        status = folder.stat()
        if status.st_uid == os.getuid() and status.st_mode & OTHERS_WRITE:
            # made under umask 002; a file that somebody else wrote there is still refused
            folder.chmod(stat.S_IMODE(status.st_mode) & ~OTHERS_WRITE)
        problem = _problem_of(folder)
        if not problem and os.access(folder, os.W_OK):
            return folder
    except OSError as error:
        problem = str(error)
    private = _private_folder()
    if problem:
        LOGGER.warning("kernels are not kept in %s (%s) but in %s", folder, problem, private)
    return private


def _make(folder: Path) -> None:
    """Make it and what is missing above it, whatever the umask is."""
    for missing in reversed([above for above in folder.parents if not above.exists()]):
        missing.mkdir(mode=0o755, exist_ok=True)
        if missing.stat().st_uid == os.getuid():
            missing.chmod(0o755)
    folder.mkdir(mode=0o700, exist_ok=True)


def _private_folder() -> Path:
    """A folder for temporary files that this user alone can write."""
    base = Path(tempfile.gettempdir())
    private = base / f"mace-train-{os.getuid()}"
    with suppress(OSError):  # a file of that name: not trusted
        private.mkdir(mode=0o700, exist_ok=True)
    is_own = private.is_dir() and not private.is_symlink()
    if is_own and private.stat().st_uid == os.getuid() and not _problem_of(private):
        return private
    return Path(tempfile.mkdtemp(prefix="mace-train-"))


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
