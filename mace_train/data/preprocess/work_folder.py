"""The folder in which preprocess works, and from which it continues after it was killed.

Everything is written to the hidden sibling ``.NAME.partial`` of the output, each file under its
name only when it is complete. Names of finished parts hold a hash of what they were made from, so
the next run keeps those that are still valid and makes the others again. At the end ``result`` in
it is renamed to the output and the rest removed.
"""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mace_train.data.structure import LOGGER
from mace_train.errors import InputError, system_error
from mace_train.folders import lock_folder

RESULT, BLOCKS, UNPACKED = "result", "blocks", "unpacked"
_REPLACED = "replaced"


@contextmanager
def work_folder(output: Path, expected: frozenset[str], *, overwrite: bool) -> Iterator[Path]:
    """The work folder; its ``result`` becomes ``output`` when the block ends without an error.

    After an error or an interrupt the folder stays for the next run if it holds finished parts.

    Args:
        output: The folder to make; its parents are made too.
        expected: Names that it may hold; an existing folder with others is never replaced.
        overwrite: Replace an existing folder.

    Raises:
        InputError: ``output`` exists and may not be replaced, cannot be written, or another
            process writes it.
    """
    output = Path(os.path.realpath(output))  # a link stays, what it leads to is replaced
    _check_replaceable(output, expected, overwrite)
    folder = output.with_name(f".{output.name}.partial")
    _make(folder, output)
    lock = lock_folder("output", folder)
    try:
        _restore(folder, output)
        _check_replaceable(output, expected, overwrite)
        yield folder
        _check_replaceable(output, expected, overwrite)
        _install(folder, output)
        shutil.rmtree(folder, ignore_errors=True)
    except BaseException:
        if _n_finished(folder):
            LOGGER.info(
                "finished parts (%d) are kept in %s; preprocess continues from there when it runs "
                "again with this output",
                _n_finished(folder),
                folder,
            )
        else:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        lock.close()


def _n_finished(folder: Path) -> int:
    return sum(1 for _ in (folder / BLOCKS).glob("*.json"))


def _make(folder: Path, output: Path) -> None:
    try:
        for name in (BLOCKS, UNPACKED):
            (folder / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        kind = type(system_error(error) or InputError())
        raise kind(
            f"output={output}: cannot write there ({error.strerror}); choose another folder"
        ) from error
    n_finished = _n_finished(folder)
    if n_finished:
        LOGGER.info("continuing in %s; finished parts there: %d", folder, n_finished)


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


def _install(folder: Path, output: Path) -> None:
    """Rename the result to ``output``; what was there is removed afterwards."""
    result, old = folder / RESULT, folder / _REPLACED
    if output.exists():
        os.rename(output, old)
    try:
        os.rename(result, output)
    except BaseException:
        if old.exists():
            os.rename(old, output)
        raise


def _restore(folder: Path, output: Path) -> None:
    """Put back what a killed process had moved away to replace it."""
    old = folder / _REPLACED
    if old.exists() and not output.exists():
        LOGGER.info("restoring %s, which an interrupted preprocess had moved away", output)
        os.rename(old, output)
    shutil.rmtree(old, ignore_errors=True)


def fingerprint(*parts: Any) -> str:
    """A name for what was made from ``parts``, which are plain values."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def checksum_of(numbers: NDArray[np.int64]) -> str:
    """The same text for the same numbers [n]."""
    return hashlib.sha256(numbers.astype("<i8").tobytes()).hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Write a file that is whole or not there."""
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    partial.write_text(json.dumps(content, allow_nan=False))
    os.replace(partial, path)


def cached_json(path: Path, make: Callable[[], Any]) -> Any:
    """The JSON content of ``path``, made and written first if it is not there."""
    if not path.exists():
        write_json(path, make())
    return json.loads(path.read_text())
