"""Reading structures, one at a time, from any file that ASE reads.

ASE stops reading an extended XYZ file at a blank line and pads nothing, so a file with a hole or a
torn end would lose structures without a word; such files are walked once beforehand (lines only,
no parsing, about a hundredth of ASE's time). Compressed files are unpacked to a temporary file,
because ASE seeks backwards, which is slow in a compressed stream.
"""

import bz2
import glob
import gzip
import itertools
import lzma
import shutil
import sqlite3
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import ase.io
from ase import Atoms
from ase.io import ParseError
from ase.io.bundletrajectory import BundleTrajectory
from ase.io.formats import UnknownFileTypeError, filetype

from mace_train.data.labels import LabelReport
from mace_train.data.structure import (
    LOGGER,
    LabelKeys,
    Notes,
    Structure,
    structure_from_atoms,
)
from mace_train.errors import InputError

_DECOMPRESSORS: dict[str, Callable[..., Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
}

# what ASE's readers raise on files that are damaged or of another format than they look
_READ_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    NotImplementedError,
    OSError,
    ParseError,
    RuntimeError,
    StopIteration,
    TypeError,
    UnknownFileTypeError,
    ValueError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
    sqlite3.Error,
)


def read_structures(
    files: list[str],
    keys: LabelKeys,
    *,
    require_energy: bool = True,
    labels: LabelReport | None = None,
) -> Iterator[Structure]:
    """Every structure of ``files``, in order; ``source`` counts from 0 in each file.

    Args:
        files: Paths or patterns, see ``check_files``.
        keys: Names of the labels.
        require_energy: Refuse structures without energy; else their energy is None.
        labels: Takes up what every structure has.

    Raises:
        InputError: a file that is missing, empty, damaged or of unknown format, or a structure
            that ``structure_from_atoms`` refuses; the message names file and structure.
    """
    notes = Notes()
    for file in check_files(files):
        index = -1
        for index, atoms in enumerate(_read_file(file)):
            source = f"{file}, structure {index}"
            structure = structure_from_atoms(
                atoms, keys, source, notes, require_energy=require_energy
            )
            if labels is not None:
                labels.add(atoms, structure)
            yield structure
        if index < 0:
            raise InputError(f"{file} holds no structures; give a file that does")


def check_files(files: list[str]) -> list[str]:
    """``files``, with every pattern such as ``folder/*.xyz`` replaced by the files it matches.

    Raises:
        InputError: one is not there, empty or a folder, or a pattern that matches nothing.
    """
    expanded = [path for file in files for path in _expanded(file)]
    for file in expanded:
        path = Path(file)
        if not path.exists():
            raise InputError(f"{file}: no such file; correct its path (from {Path.cwd()})")
        if path.is_file() and path.stat().st_size == 0:
            raise InputError(f"{file} is empty; give a file with structures")
        if path.is_dir() and not BundleTrajectory.is_bundle(file):
            raise InputError(
                f"{file} is a folder; give files, such as [{path / 'a.xyz'},{path / 'b.xyz'}] or "
                f"{path / '*.xyz'}"
            )
    return expanded


def _expanded(file: str) -> list[str]:
    """The files that a pattern matches, sorted; a name that is no pattern, or a file, alone."""
    if not set(file) & set("*?") or Path(file).exists():
        return [file]
    matched = sorted(glob.glob(file, recursive=True))
    if not matched:
        raise InputError(f"{file}: no file matches this pattern (from {Path.cwd()}); correct it")
    LOGGER.info("%s matches %d files", file, len(matched))
    return matched


def _read_file(file: str) -> Iterator[Atoms]:
    """ASE's structures of one file; whatever ASE raises becomes an InputError."""
    with ExitStack() as stack:
        with _read_errors(file, 0):
            frames = _frames(stack.enter_context(_plain(file)), file)
        for index in itertools.count():
            with _read_errors(file, index):
                atoms = next(frames, None)
            if atoms is None:
                return
            yield atoms


def _frames(path: str, file: str) -> Iterator[Atoms]:
    """The structures of the uncompressed ``path``, which messages call ``file``."""
    format_name = filetype(path)
    if format_name == "extxyz":
        _check_frames(path, file)
    # parallel=False: under MPI, ASE would otherwise broadcast what rank 0 reads
    return ase.io.iread(
        path, index=":", format=format_name, parallel=False, do_not_split_by_at_sign=True
    )


@contextmanager
def _read_errors(file: str, index: int) -> Iterator[None]:
    """Turn what ASE and the decompressors raise into an InputError that names the structure."""
    try:
        yield
    except InputError:
        raise
    except _READ_ERRORS as error:
        raise InputError(
            f"{file}, structure {index}: cannot be read ({type(error).__name__}: {error}); check "
            "that the file is complete and that its name ends in what ASE calls its format"
        ) from error


@contextmanager
def _plain(file: str) -> Iterator[str]:
    """Path of ``file``, or of a temporary uncompressed copy without the last suffix."""
    path = Path(file)
    decompress = _DECOMPRESSORS.get(path.suffix)
    if decompress is None:
        yield file
        return
    with tempfile.TemporaryDirectory(prefix="mace-train-") as folder:
        copy = Path(folder) / path.stem
        with decompress(path, "rb") as packed, copy.open("wb") as plain:
            shutil.copyfileobj(packed, plain, length=1 << 22)
        yield str(copy)


def _check_frames(path: str, file: str) -> None:
    """InputError unless the extended XYZ file is whole frames from beginning to end."""
    with open(path, "rb") as lines:
        line_number = 1
        for index in itertools.count():
            header = lines.readline()
            if not header.strip():
                _check_nothing_follows(lines, file, index, line_number)
                return
            n_atoms = _n_atoms(header, file, index, line_number)
            n_lines = sum(1 for _ in itertools.islice(lines, n_atoms + 1))
            if n_lines < n_atoms + 1:
                raise InputError(
                    f"{file}, structure {index}: the file ends after {max(n_lines - 1, 0)} of "
                    f"{n_atoms} atoms; it is torn, copy it again or remove this structure"
                )
            line_number += n_atoms + 2


def _n_atoms(header: bytes, file: str, index: int, line_number: int) -> int:
    text = header.strip()
    if not text.isdigit():
        raise InputError(
            f"{file}, structure {index}: line {line_number} is {text[:40]!r} where a number of "
            "atoms should stand; correct the number of atoms of the structure before it"
        )
    return int(text)


def _check_nothing_follows(lines: IO[bytes], file: str, index: int, line_number: int) -> None:
    """ASE stops at a blank line: InputError if structures follow it."""
    for offset, line in enumerate(lines, start=1):
        if line.strip():
            raise InputError(
                f"{file}: line {line_number} is blank, but more follows in line "
                f"{line_number + offset}; ASE would stop there, after {index} structures; "
                "remove the blank line"
            )
