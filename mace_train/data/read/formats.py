"""The format of a file, its ranges of structures, and how a range is read.

Extended XYZ, trajectories and databases are split, so that several processes share one file; every
other format of ASE is read from its beginning to its end by one process.
"""

import os
import sqlite3
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from lzma import LZMAError
from pathlib import Path

import ase.io
from ase.io import ParseError
from ase.io.formats import UnknownFileTypeError, filetype

from mace_train.data.raw_structure import ParseFn, already_parsed
from mace_train.data.read import databases, extxyz
from mace_train.data.read.extxyz_errors import FrameError
from mace_train.data.read.file_range import ChunkLimit, FileRange
from mace_train.errors import InputError, StorageError, system_error

# what readers raise on files that are damaged or of another format than they look
_READ_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,  # a damaged length asks for more than there is
    NotImplementedError,
    OSError,
    ParseError,
    RecursionError,
    RuntimeError,
    StopIteration,
    SyntaxError,
    TypeError,
    UnknownFileTypeError,
    ValueError,
    struct.error,
    zlib.error,
    LZMAError,
    sqlite3.Error,
)


@dataclass(frozen=True)
class Format:
    """How to split and read files of one format."""

    file_ranges: Callable[[str, str, ChunkLimit], list[FileRange]]
    parse_fns: Callable[[str, FileRange], Iterator[ParseFn]]


def _counted(count: Callable[[str], int]) -> Callable[[str, str, ChunkLimit], list[FileRange]]:
    def file_ranges(path: str, shown: str, limit: ChunkLimit) -> list[FileRange]:
        return databases.equal_ranges(count(path), limit, os.path.getsize(path))

    return file_ranges


FORMATS: dict[str, Format] = {
    "extxyz": Format(extxyz.file_ranges, extxyz.frames),
    "traj": Format(_counted(databases.count_trajectory), databases.trajectory),
    "db": Format(_counted(databases.count_database), databases.database),
    "lmdb": Format(_counted(databases.count_lmdb), databases.lmdb),
    "mace_hdf5": Format(_counted(databases.count_mace_hdf5), databases.mace_hdf5),
}
_PICKLES = (".pckl", ".pkl", ".pickle", ".npy", ".npz", ".pt", ".pth", ".model")
_OLD_TRAJECTORY = b"PickleTrajectory"  # of ASE before 3.9, at the beginning of the file
CALLS = {
    "ase.io.pickletrajectory": "unpickles; reached by PickleTrajectory alone, which is not used",
    "ase.io.formats": "imports the module of the format's name, and formats of installed packages",
    "ase.io.gamess_us": "runs GAMESS in get_userscr, which only a calculator calls",
    "ase.io.pov": "runs POV-Ray; written only",
    "ase.calculators.calculator": "imports calculators by name and runs them; not for reading",
    "ase.calculators.castep": "runs the program castep, if it is installed, for its keywords",
    "ase.calculators.names": "imports calculators by name; not for reading",
    "ase.eos": "unpickles in a command of its own",
    "ase.gui.defaults": "runs the user's own settings of ase gui",
    "ase.gui.graphs": "unpickles what ase gui sends itself",
    "ase.gui.gui": "starts ase gui again",
    "ase.gui.images": "evaluates what is typed into ase gui",
    "ase.parallel": "unpickles what other MPI ranks send; we read with parallel=False",
    "ase.visualize.viewers": "starts viewers",
    "ase.vibrations.vibrations": "np.load of its own cache, without pickles",
}
"""Modules of ASE in reach of its readers that unpickle, evaluate, import by name or start programs,
and why a file that is read here does not make them; tests/data/read/test_foreign.py looks for new
ones in the ASE that is installed."""
_BY_SUFFIX = {".lmdb": "lmdb", ".aselmdb": "lmdb", ".h5": "mace_hdf5", ".hdf5": "mace_hdf5"}
_ASE_BY_SUFFIX = {  # ASE looks at the name's beginning first: POSCAR_set.xyz, mysql_set.xyz
    ".xyz": "extxyz",
    ".extxyz": "extxyz",
    ".traj": "traj",
    ".db": "db",
    ".json": "db",
    ".cif": "cif",
    ".xsf": "xsf",
    ".pdb": "proteindatabank",
    ".cube": "cube",
    ".vasp": "vasp",
}


def format_of(path: str) -> str:
    """Name of the format, ours or ASE's, by suffix, name and content."""
    suffix = Path(path).suffix
    known = _BY_SUFFIX.get(suffix)
    if known is not None:
        return known
    _refuse_programs(path, suffix)
    # a folder is a trajectory of its own; an empty file, as of a damaged archive, is refused below
    if suffix in _ASE_BY_SUFFIX and os.path.isfile(path) and os.path.getsize(path) > 0:
        return _ASE_BY_SUFFIX[suffix]
    name: str = filetype(path)
    return "db" if name == "json" else name


def _refuse_programs(path: str, suffix: str) -> None:
    """InputError for what would run code if it were read."""
    with open(path, "rb") if os.path.isfile(path) else nullcontext() as file:
        is_old = file is not None and file.read(len(_OLD_TRAJECTORY)) == _OLD_TRAJECTORY
    if suffix == ".py" or suffix in _PICKLES or is_old:
        what = "a program" if suffix == ".py" else "a pickle"
        how = "python -m ase.io.trajectory FILE" if is_old else "ase.io.write of extended XYZ"
        raise InputError(
            f"{path} is {what}: reading it would run what is in it, and is refused; if you trust "
            f"its author, convert it yourself first ({how})"
        )


def split_file(path: str, shown: str, limit: ChunkLimit) -> tuple[str, list[FileRange]]:
    """The format of a file, and its ranges in order.

    Raises:
        InputError: the file cannot be read, or is not whole.
    """
    with read_errors(shown, 0):
        name = format_of(path)
        if name in FORMATS:
            return name, FORMATS[name].file_ranges(path, shown, limit)
        return name, [FileRange(size=_size(path))]


def parse_fns_of(path: str, shown: str, name: str, file_range: FileRange) -> Iterator[ParseFn]:
    """Functions that parse the structures of a range, in order; errors name the structure."""
    index = file_range.first
    with read_errors(shown, index):
        parse_fns = (
            FORMATS[name].parse_fns(path, file_range) if name in FORMATS else _by_ase(path, name)
        )
    while True:
        with read_errors(shown, index):
            parse = next(parse_fns, None)
        if parse is None:
            return
        yield parse
        index += 1


def _by_ase(path: str, name: str) -> Iterator[ParseFn]:
    # parallel=False: under MPI, ASE would otherwise broadcast what rank 0 reads
    for atoms in ase.io.iread(
        path, index=":", format=name, parallel=False, do_not_split_by_at_sign=True
    ):
        yield already_parsed(atoms)


def _size(path: str) -> int:
    return os.path.getsize(path)


@contextmanager
def read_errors(shown: str, index: int) -> Iterator[None]:
    """Turn what readers raise into an InputError that names the structure."""
    try:
        yield
    except InputError:
        raise
    except FrameError as error:
        raise InputError(f"{shown}, structure {index}: {error}") from error
    except _READ_ERRORS as error:
        explained = system_error(error)
        if isinstance(explained, StorageError):
            raise explained from error  # not the file: the disk on which it is unpacked, or limits
        raise InputError(
            f"{shown}, structure {index}: cannot be read ({type(error).__name__}: {error}); check "
            "that the file is complete and that its name ends in what ASE calls its format"
        ) from error
