"""Extended XYZ: an index of its structures, and a parser with ASE's results at a tenth of its time.

ASE stops reading at a blank line, so a file with a blank line or a truncated end would lose
structures without a message; ``file_ranges`` therefore walks all lines once (about 0.1 µs each)
and notes where each range begins, so that several processes can share one file. ``frames`` parses
headers of plain ``key=value`` and ``key="values"`` and columns of numbers and symbols by itself.
Whatever else the format allows (nested brackets, JSON, logical columns, constraints) goes through
ASE, so the result is ASE's, but for what ASE reads other than it was written: a byte order mark is
skipped here, a ``pbc`` that is neither T nor F and ``Properties`` without positions are refused,
and a ``stress`` that is not symmetric keeps all its numbers, to be refused as a label.
"""

import itertools
from codecs import BOM_UTF8
from collections.abc import Iterator
from functools import lru_cache, partial
from io import StringIO
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from ase import Atoms
from ase.calculators.calculator import all_properties
from ase.data import atomic_numbers
from ase.io.extxyz import per_config_properties, read_xyz
from numpy.typing import NDArray

from mace_train.data.found_labels import is_asymmetric
from mace_train.data.raw_structure import ParseFn, RawStructure, Results
from mace_train.data.read.extxyz_errors import (
    DEFAULT_PROPERTIES,
    MOST_ATOMS,
    FrameError,
    explain,
    fault_of_count,
    has_lone_return,
    has_underscored_number,
    properties_fault,
)
from mace_train.data.read.extxyz_header import read_header
from mace_train.data.read.file_range import ChunkLimit, FileRange
from mace_train.errors import InputError

# what conversions and ASE raise for a frame that cannot be read
PARSE_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    OSError,
    RecursionError,
    StopIteration,
    TypeError,
    ValueError,
)
_LONGEST_COUNT = 1 << 16  # bytes of the line with the number of atoms
_VOIGT = ((0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1))
_SCALARS = {"energy", "free_energy", "magmom"}
_SPECIAL = {"move_mask", "initial_charges"}  # ASE makes more of these than an array
_PER_CONFIG = frozenset(per_config_properties)
_PROPERTIES = frozenset(all_properties)


def file_ranges(path: str, shown: str, limit: ChunkLimit) -> list[FileRange]:
    """Ranges of at most ``limit`` structures; InputError unless the file is whole frames."""
    ranges: list[FileRange] = []
    first, begin, offset, line_number, first_line = 0, 0, 0, 1, 1
    with open(path, "rb") as lines:
        if lines.read(len(BOM_UTF8)) == BOM_UTF8:  # as editors of Windows write it
            begin = offset = len(BOM_UTF8)
        lines.seek(offset)
        for index in itertools.count():
            if index > first and (
                index - first >= limit.structures or offset - begin >= limit.size
            ):
                ranges.append(FileRange(first, index - first, begin, offset - begin, first_line))
                first, begin, first_line = index, offset, line_number
            header = lines.readline(_LONGEST_COUNT)
            if not header.strip():
                _check_nothing_follows(lines, shown, index, line_number)
                break
            n_atoms = _n_atoms(header, shown, index, line_number)
            lengths = list(map(len, itertools.islice(lines, n_atoms + 1)))
            if len(lengths) < n_atoms + 1:
                raise InputError(
                    f"{shown}, structure {index}: the file ends after {max(len(lengths) - 1, 0)} "
                    f"of {n_atoms} atoms; it is truncated, copy it again or remove this structure"
                )
            offset += len(header) + sum(lengths)
            line_number += n_atoms + 2
    if index > first:
        ranges.append(FileRange(first, index - first, begin, offset - begin, first_line))
    return ranges


def frames(path: str, file_range: FileRange) -> Iterator[ParseFn]:
    """The structures of one of the ``file_ranges``."""
    line_number = file_range.line
    with open(path, "rb") as file:
        file.seek(file_range.offset)
        for _ in range(file_range.count or 0):
            lines = _lines(file)
            yield partial(parse, lines, line_number)
            line_number += len(lines)


def _lines(file: BinaryIO) -> list[bytes]:
    header = file.readline()
    return [header, *itertools.islice(file, int(header) + 1)]


def parse(lines: list[bytes], first: int = 1) -> RawStructure:
    """One structure from its lines: number of atoms, header, atoms.

    Args:
        lines: Unchanged, with their ends.
        first: Number of the first line, for messages.

    Raises:
        FrameError: they cannot be read; the message says which line and column, and the remedy.
    """
    try:
        return _parse(lines)
    except PARSE_ERRORS as error:
        raise explain(lines, first, error) from error


def _parse(lines: list[bytes]) -> RawStructure:
    if has_lone_return(lines):
        raise ValueError("a carriage return inside a line, where ASE begins another")
    info, remarks = read_header(lines[1].decode().strip())
    properties = str(info.pop("Properties", DEFAULT_PROPERTIES))
    if has_underscored_number(lines[2:], properties):
        raise ValueError("an underscore in a number")
    columns = _columns(properties)
    if columns is None:
        fault = properties_fault(properties)
        if fault is not None:
            raise FrameError(fault)
        return _by_ase(lines, info, remarks)
    rows = [line.split() for line in lines[2:]]
    widths = set(map(len, rows))
    if widths != {columns.width}:
        if not widths or min(widths) < columns.width:
            return _by_ase(lines, info, remarks)
        remarks.append(_unnamed_columns(columns.width, max(widths)))
    cells = list(zip(*rows, strict=False))[: columns.width]
    return _raw_structure(info, remarks, columns, cells) or _by_ase(lines, info, remarks)


def _unnamed_columns(named: int, found: int) -> tuple[str, str]:
    """A remark, as ASE leaves such columns out without a word."""
    return (
        "columns without a name",
        f"atoms have {found} columns, of which the first {named} are read: name the others in "
        "Properties if they are labels",
    )


def text_of(parse_fn: ParseFn) -> str | None:
    """The lines that a failing ``parse`` had, for a report; None for another kind of reader."""
    if isinstance(parse_fn, partial) and parse_fn.func is parse:
        return b"".join(parse_fn.args[0]).decode(errors="backslashreplace")
    return None


def _by_ase(
    lines: list[bytes], info: dict[str, Any], remarks: list[tuple[str, str]]
) -> RawStructure:
    """What ASE reads; ``info`` is that of the header."""
    atoms: Atoms = next(read_xyz(StringIO(b"".join(lines).decode()), index=0))
    raw = RawStructure(
        numbers=atoms.numbers,
        positions=atoms.positions,
        cell=atoms.cell.array,
        pbc=atoms.pbc,
        info=atoms.info,
        arrays={k: v for k, v in atoms.arrays.items() if k not in ("numbers", "positions")},
        calc=Results(dict(getattr(atoms.calc, "results", {}))),
        remarks=tuple(remarks),
    )
    return _with_whole_stress(raw, info.get("stress"))


def _with_whole_stress(raw: RawStructure, stress: Any) -> RawStructure:
    """With all of a stress that is not symmetric, of which ASE keeps one half, to be refused."""
    if np.shape(stress) == (3, 3) and is_asymmetric(stress):
        raw.calc = Results({**raw.calc.results, "stress": np.array(stress, dtype=np.float64)})
    return raw


class _Column(NamedTuple):
    name: str
    kind: str
    first: int
    width: int


class _Columns(NamedTuple):
    columns: tuple[_Column, ...]
    width: int


@lru_cache(maxsize=256)
def _columns(properties: str) -> _Columns | None:
    """Name, type and position of every column; None for what only ASE reads."""
    fields = properties.split(":")
    names = {"pos": "positions", "Z": "numbers", "species": "symbols", "charge": "charges"}
    columns, first = [], 0
    for name, kind, width in zip(fields[::3], fields[1::3], fields[2::3], strict=False):
        ours = names.get(name, name)
        if kind not in "RIS" or not width.isdecimal() or width == "0" or ours in _SPECIAL:
            return None
        if kind == "S" and int(width) != 1:
            return None
        columns.append(_Column(ours, kind, first, int(width)))
        first += int(width)
    found = [column.name for column in columns]
    geometry = {(c.name, c.kind, c.width) for c in columns}
    known = {("symbols", "S", 1), ("numbers", "I", 1)} & geometry
    if len(fields) % 3 or len(set(found)) < len(found) or len(known) != 1:
        return None
    return _Columns(tuple(columns), first) if ("positions", "R", 3) in geometry else None


def _raw_structure(
    info: dict[str, Any],
    remarks: list[tuple[str, str]],
    columns: _Columns,
    cells: list[tuple[bytes, ...]],
) -> RawStructure | None:
    """The structure; None if a symbol is unknown or a column not what it is said to be."""
    arrays: dict[str, NDArray[Any]] = {}
    try:
        for name, kind, first, width in columns.columns:
            if name == "symbols":
                arrays["numbers"] = np.array([_number(symbol) for symbol in cells[first]])
            else:
                arrays[name] = _array(kind, cells[first : first + width])
    except (KeyError, ValueError, OverflowError):
        return None
    info = dict(info)
    lattice = info.pop("Lattice", None)
    pbc = info.pop("pbc", lattice is not None)
    raw = RawStructure(
        numbers=arrays.pop("numbers"),
        positions=arrays.pop("positions"),
        cell=np.zeros((3, 3)) if lattice is None else np.array(lattice.T, dtype=np.float64),
        pbc=np.zeros(3, dtype=bool) | np.array(pbc, dtype=bool),
        info=info,
        remarks=tuple(remarks),
    )
    stress = info.get("stress")
    results: dict[str, Any] = {key: info.pop(key) for key in list(info) if key in _PER_CONFIG}
    if "stress" in results and np.shape(results["stress"]) == (3, 3):
        results["stress"] = results["stress"][_VOIGT]
    results |= {name: arrays.pop(name) for name in list(arrays) if name in _PROPERTIES}
    for name in results.keys() - _SCALARS:
        results[name] = np.array(results[name], dtype=np.float64)
    raw.arrays, raw.calc = arrays, Results(results)
    return _with_whole_stress(raw, stress)


@lru_cache(maxsize=1024)
def _number(symbol: bytes) -> int:
    return int(atomic_numbers[symbol.decode().capitalize()])


def _array(kind: str, cells: list[tuple[bytes, ...]]) -> NDArray[Any]:
    """[n_atoms] or [n_atoms, width] values of neighbouring columns."""
    values: list[list[Any]]
    if kind == "S":
        return np.array([cell.decode() for cell in cells[0]], dtype=object)
    values = [list(map(float if kind == "R" else int, column)) for column in cells]
    array = np.array(values, dtype=np.float64 if kind == "R" else np.int32)
    return array[0] if len(cells) == 1 else np.ascontiguousarray(array.T)


def _n_atoms(header: bytes, shown: str, index: int, line_number: int) -> int:
    text = header.strip()
    too_long = len(text) > len(str(MOST_ATOMS))
    if not text.isdigit() or too_long or int(text) > MOST_ATOMS:
        raise InputError(
            f"{shown}, structure {index}: {fault_of_count(header, index, line_number)}"
        )
    return int(text)


def _check_nothing_follows(lines: BinaryIO, shown: str, index: int, line_number: int) -> None:
    """ASE stops at a blank line: InputError if structures follow it."""
    for offset, line in enumerate(lines, start=1):
        if line.strip():
            raise InputError(
                f"{shown}: line {line_number} is blank, but more follows in line "
                f"{line_number + offset}; ASE would stop there, after {index} structures; "
                "remove the blank line"
            )
