"""A folder that appears whole or not at all.

Everything is written to a hidden sibling ``.NAME.partial-HOST-PID`` and renamed at the end; after
an error or an interrupt the sibling is removed. What a killed process of this host left is removed
by the next one.
"""

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mace_train.data.structure import LOGGER
from mace_train.errors import InputError

_REPLACED = "-replaced"


@contextmanager
def staged_folder(output: Path, expected: frozenset[str], *, overwrite: bool) -> Iterator[Path]:
    """A temporary folder that becomes ``output`` when the block ends without an error.

    Args:
        output: The folder to make; its parents are made too.
        expected: Names that it may hold; an existing folder with others is never replaced.
        overwrite: Replace an existing folder.

    Raises:
        InputError: ``output`` exists and may not be replaced, or cannot be written.
    """
    output = Path(os.path.realpath(output))  # a link stays, what it leads to is replaced
    _remove_leftovers(output)
    _check_replaceable(output, expected, overwrite)
    partial = output.with_name(f"{_prefix(output)}{socket.gethostname()}-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise InputError(
            f"output={output}: cannot write there ({error.strerror}); choose another folder"
        ) from error
    try:
        yield partial
        _check_replaceable(output, expected, overwrite)
        _install(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _prefix(output: Path) -> str:
    return f".{output.name}.partial-"


def _check_replaceable(output: Path, expected: frozenset[str], overwrite: bool) -> None:
    if not output.exists():
        return
    if not output.is_dir():
        raise InputError(f"output={output} is a file; name a folder")
    found = {path.name for path in output.iterdir()}
    if found - expected:
        raise InputError(
            f"output={output} holds other files ({', '.join(sorted(found - expected)[:3])}); "
            "choose a new folder"
        )
    if found and not overwrite:
        raise InputError(
            f"output={output} already holds data; set overwrite=true to replace it, or choose "
            "another folder"
        )


def _install(partial: Path, output: Path) -> None:
    """Rename ``partial`` to ``output``; what was there is removed afterwards."""
    if not output.exists():
        os.rename(partial, output)
        return
    old = partial.with_name(f"{partial.name}{_REPLACED}")
    os.rename(output, old)
    try:
        os.rename(partial, output)
    except BaseException:
        os.rename(old, output)
        raise
    shutil.rmtree(old)


def _remove_leftovers(output: Path) -> None:
    """Clear away what processes of this host left behind that no longer run."""
    if not output.parent.is_dir():
        return
    prefix = f"{_prefix(output)}{socket.gethostname()}-"
    for path in output.parent.iterdir():
        pid = path.name.removeprefix(prefix).removesuffix(_REPLACED)
        if not path.name.startswith(prefix) or not pid.isdigit() or _is_running(int(pid)):
            continue
        if path.name.endswith(_REPLACED) and not output.exists():
            LOGGER.info("restoring %s, which an interrupted preprocess had moved away", output)
            os.rename(path, output)
        else:
            LOGGER.info("removing %s, left by an interrupted preprocess", path)
            shutil.rmtree(path, ignore_errors=True)


def _is_running(pid: int) -> bool:
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
