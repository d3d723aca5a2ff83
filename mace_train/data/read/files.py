"""The files that a setting names: paths, patterns and folders, in a fixed order."""

import glob
import logging
import os
from pathlib import Path, PurePath

from ase.io.bundletrajectory import BundleTrajectory

from mace_train.data.structure import LOGGER
from mace_train.errors import InputError

_SUFFIXES = {".xyz", ".extxyz", ".traj", ".db", ".aselmdb", ".lmdb", ".h5", ".hdf5", ".cif"}
_STEMS = ("OUTCAR", "vasprun", "XDATCAR")
_PACKED = {".gz", ".bz2", ".xz", ".zst"}
_ARCHIVES = {".tar", ".tgz", ".tbz2", ".txz", ".zip"}


def check_files(files: list[str], *, log: bool = True) -> list[str]:
    """``files``, with patterns such as ``folder/*.xyz`` and folders replaced by what they hold.

    What patterns and folders hold is logged, if that is not to be done later (``log``).

    Raises:
        InputError: one is not there or empty, a pattern that matches nothing, or a folder without
            structures.
    """
    level = logging.INFO if log else logging.DEBUG
    expanded = [
        path
        for file in files
        for found in _expanded(file, level)
        for path in _in_folder(found, level)
    ]
    for file in expanded:
        path = Path(file)
        if not path.exists():
            raise InputError(f"{file}: no such file; correct its path (from {Path.cwd()})")
        if path.is_file() and path.stat().st_size == 0:
            raise InputError(f"{file} is empty; give a file with structures")
    return expanded


def _expanded(file: str, level: int) -> list[str]:
    """The files that a pattern matches, sorted; a name that is no pattern, or a file, alone."""
    if not set(file) & set("*?") or Path(file).exists():
        return [file]
    matched = sorted(glob.glob(file, recursive=True))
    if not matched:
        raise InputError(f"{file}: no file matches this pattern (from {Path.cwd()}); correct it")
    LOGGER.log(level, "%s matches %d files", file, len(matched))
    return matched


def _in_folder(path: str, level: int) -> list[str]:
    """The structure files in and below a folder, sorted; anything else alone."""
    if not os.path.isdir(path) or BundleTrajectory.is_bundle(path):
        return [path]
    taken: list[str] = []
    others: list[str] = []
    for folder, folders, names in os.walk(path):
        folders.sort()
        for name in sorted(names):
            (taken if is_structure_file(name) else others).append(os.path.join(folder, name))
        _check_one_of_a_kind(folder, names)
    if not taken:
        raise InputError(
            f"{path} is a folder without files that are known to hold structures; name them with a "
            f"pattern, such as {Path(path) / '*.out'}"
        )
    counts = len(taken), len(others)
    LOGGER.log(level, "%s holds %d files with structures and %d others", path, *counts)
    return taken


def _check_one_of_a_kind(folder: str, names: list[str]) -> None:
    """One VASP run writes the same structures to several files."""
    found = sorted({s for s in ("OUTCAR", "XDATCAR", "vasprun") for n in names if n.startswith(s)})
    if len(found) > 1:
        raise InputError(
            f"{folder} holds {' and '.join(found)}, which describe the same structures; name one "
            f"kind with a pattern, such as {Path(folder) / found[-1]}*"
        )


def is_structure_file(name: str) -> bool:
    """Whether the name is one that structures are kept under.

    >>> [is_structure_file(name) for name in ("a/b.xyz.gz", "OUTCAR.3", "README.md", ".a.xyz")]
    [True, True, False, False]
    """
    path = PurePath(name)
    if path.name.startswith("."):
        return False
    stem = path.with_suffix("") if path.suffix in _PACKED else path
    return (
        stem.suffix in _SUFFIXES | _ARCHIVES
        or path.suffix in _ARCHIVES
        or stem.name.startswith(_STEMS)
    )
