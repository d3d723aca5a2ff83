"""Errors that a user can fix; the command line prints one message, without a traceback."""

import errno
import os
import re
import sys
from pathlib import Path
from typing import ClassVar


class InputError(ValueError):
    """Bad input: the message says what is wrong, where, what was found and the remedy."""

    exit_code: ClassVar[int] = 2


class LostRankError(InputError):
    """A rank, its host or the network failed: the same command may succeed when tried again."""

    exit_code: ClassVar[int] = os.EX_UNAVAILABLE  # 69


class StorageError(InputError):
    """A file system is full or fails: the same command may succeed when tried again."""

    exit_code: ClassVar[int] = os.EX_IOERR  # 74


def with_exit_code(message: str, exit_code: int) -> InputError:
    """The error of another process, of which its message and exit code are known."""
    kinds = {kind.exit_code: kind for kind in (LostRankError, StorageError)}
    return kinds.get(exit_code, InputError)(message)


class InvalidStructureError(InputError):
    """One structure cannot be used, the others can; ``skip_invalid=true`` leaves it out."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind  # category of the error, such as "no energy", to count by

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.kind, str(self))


_AGAIN = "and give the same command again (a training: with restart_latest=true)"
_SPACE = f"free space there, or choose another place, {_AGAIN}"
_FAILS = f"check this file system and the machine's log, {_AGAIN}"
_HANDLES = f"raise the limit (ulimit -n), {_AGAIN}"
_RIGHTS = "change its permissions, or choose another place"
_NAME = "choose another name or place"
# what a user can do about an error of the system, and whether the same command may then succeed
_REMEDIES = {
    errno.ENOSPC: (_SPACE, True),
    errno.EDQUOT: (_SPACE, True),
    errno.EFBIG: (f"raise the limit on the size of files (ulimit -f), {_AGAIN}", True),
    errno.EIO: (_FAILS, True),
    errno.ESTALE: (_FAILS, True),
    errno.ENOLCK: (_FAILS, True),
    errno.EMFILE: (_HANDLES, True),
    errno.ENFILE: (_HANDLES, True),
    errno.EACCES: (_RIGHTS, False),
    errno.EPERM: (_RIGHTS, False),
    errno.EROFS: ("choose another place", False),
    errno.ENOENT: ("it, or the folder it should be in, is not there or was removed", False),
    errno.EEXIST: (_NAME, False),
    errno.ENOTDIR: (_NAME, False),
    errno.EISDIR: (_NAME, False),
    errno.ENAMETOOLONG: (_NAME, False),
    errno.ELOOP: (_NAME, False),
}
# HDF5, Python, Rust
_NUMBER = re.compile(r"\berrno = (\d+)|\[Errno (\d+)\]|\(os error (\d+)\)")
_FILE = re.compile(r"filename = '([^']+)'|name = '([^']+)'")


def system_error(error: BaseException, path: Path | None = None) -> InputError | None:
    """The message for an error of the operating system; None for errors of another sort.

    Libraries written in C and Rust raise errors of their own, whose text names the system's.

    Args:
        error: What was raised; an ``InputError`` is returned as it is.
        path: The file or folder that was to be written or read, where the error does not say.

    >>> print(system_error(OSError(28, "No space left on device"), Path("runs/a/metrics.jsonl")))
    runs/a/metrics.jsonl: no space left on device; free space there, or choose another place, \
and give the same command again (a training: with restart_latest=true)
    """
    if isinstance(error, InputError):
        return error
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (found := _NUMBER.search(str(error))):
        number = int(next(filter(None, found.groups())))
    if number not in _REMEDIES:
        return None
    named = path or getattr(error, "filename", None)
    if named is None and (found := _FILE.search(str(error))):
        named = next(filter(None, found.groups()))
    remedy, may_succeed_later = _REMEDIES[number]
    what = os.strerror(number)
    message = f"{named or _unnamed()}: {what[0].lower()}{what[1:]}; {remedy}"
    return (StorageError if may_succeed_later else InputError)(message)


def _unnamed() -> str:
    """What an error of the system is about that names no file."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):  # as before
        return "the standard output"
    return "a file, or the standard output"
