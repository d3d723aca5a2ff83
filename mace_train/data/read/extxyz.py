"""Extended XYZ: an index of its structures, and a parser with ASE's results at a tenth of its time.

ASE stops reading at a blank line, so a file with a blank line or a truncated end would lose
structures without a message; ``file_ranges`` therefore walks all lines once (about 0.1 µs each)
and notes where each range begins, so that several processes can share one file. ``frames`` parses
headers of plain ``key=value`` and ``key="values"`` and columns of numbers and symbols by itself.
Whatever else the format allows (nested brackets, JSON, logical columns, constraints) goes through
ASE, so the result is ASE's for every file.
"""

import itertools
import re
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache, partial
from io import StringIO
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from ase.calculators.calculator import all_properties
from ase.data import atomic_numbers
from ase.io.extxyz import key_val_str_to_dict, per_config_properties, read_xyz
from numpy.typing import NDArray

from mace_train.data.raw_structure import AtomsLike, ParseFn, RawStructure, Results
from mace_train.data.read.file_range import ChunkLimit, FileRange
from mace_train.errors import InputError

_PAIR = re.compile(r"""([A-Za-z_][\w:.-]*)=(?:"([^"\\,]+)"|([^\s"'{}\[\]\\=,]+))(?:\s+|$)""")
_MATRICES = ("Lattice", "virial", "stress")  # nine numbers, column by column
_TRUTH = {
    **dict.fromkeys(("T", "true", "True", "TRUE"), True),
    **dict.fromkeys(("F", "false", "False", "FALSE"), False),
}
_VOIGT = ((0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1))
_SCALARS = {"energy", "free_energy", "magmom"}
_SPECIAL = {"move_mask", "initial_charges"}  # ASE makes more of these than an array
_PER_CONFIG = frozenset(per_config_properties)
_PROPERTIES = frozenset(all_properties)


def file_ranges(path: str, shown: str, limit: ChunkLimit) -> list[FileRange]:
    """Ranges of at most ``limit`` structures; InputError unless the file is whole frames."""
    ranges: list[FileRange] = []
    first, begin, offset, line_number = 0, 0, 0, 1
    with open(path, "rb") as lines:
        for index in itertools.count():
            if index > first and (
                index - first >= limit.structures or offset - begin >= limit.size
            ):
                ranges.append(FileRange(first, index - first, begin, offset - begin))
                first, begin = index, offset
            header = lines.readline()
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
        ranges.append(FileRange(first, index - first, begin, offset - begin))
    return ranges


def frames(path: str, file_range: FileRange) -> Iterator[ParseFn]:
    """The structures of one of the ``file_ranges``."""
    with open(path, "rb") as file:
        file.seek(file_range.offset)
        for _ in range(file_range.count or 0):
            yield partial(parse, _lines(file))


def _lines(file: BinaryIO) -> list[bytes]:
    header = file.readline()
    return [header, *itertools.islice(file, int(header) + 1)]


def parse(lines: list[bytes]) -> AtomsLike:
    """One structure from its lines: number of atoms, header, atoms."""
    info = _header(lines[1].decode().strip())
    if info is None:
        return _by_ase(lines)
    columns = _columns(str(info.pop("Properties", "species:S:1:pos:R:3")))
    if columns is None:
        return _by_ase(lines)
    rows = [line.split() for line in lines[2:]]
    if set(map(len, rows)) != {columns.width}:
        return _by_ase(lines)
    return _raw_structure(info, columns, list(zip(*rows, strict=True))) or _by_ase(lines)


def text_of(parse_fn: ParseFn) -> str | None:
    """The lines that a failing ``parse`` had, for a report; None for another kind of reader."""
    if isinstance(parse_fn, partial) and parse_fn.func is parse:
        return b"".join(parse_fn.args[0]).decode(errors="backslashreplace")
    return None


def _by_ase(lines: list[bytes]) -> AtomsLike:
    atoms: AtomsLike = next(read_xyz(StringIO(b"".join(lines).decode()), index=0))
    return atoms


def _header(text: str) -> dict[str, Any] | None:
    """Keys and values of a header as ASE reads them; None where only ASE can."""
    info: dict[str, Any] = {}
    position = 0
    for match in _PAIR.finditer(text):
        if match.start() != position:
            break
        position = match.end()
        key, quoted, bare = match.groups()
        value = bare if quoted is None else quoted
        if key.lower() == "uid" or value.startswith("_JSON"):
            return key_val_str_to_dict(text)
        info[key] = value if key == "Properties" else _value(key, value)
        if info[key] is None:
            return None
    return info if position == len(text) else key_val_str_to_dict(text)


def _value(key: str, text: str) -> Any:
    """A number, numbers, truth values or the text; None for what ASE should judge."""
    tokens = text.split()
    if not tokens:
        return None
    try:
        numbers = _numbers(tokens, text)
    except ValueError:
        return None if key in _MATRICES else _truth_or_text(tokens, text)
    if key in _MATRICES:
        return numbers.reshape(3, 3, order="F") if len(tokens) == 9 else None
    return numbers[0] if len(tokens) == 1 else numbers


def _numbers(tokens: list[str], text: str) -> NDArray[Any]:
    """Integers if all are, else float64."""
    if "." not in text:
        with suppress(ValueError, OverflowError):
            return np.array(list(map(int, tokens)), dtype=np.int64)
    return np.array(list(map(float, tokens)))


def _truth_or_text(tokens: list[str], text: str) -> Any:
    truth = [_TRUTH.get(token) for token in tokens]
    if None in truth:
        return text
    return truth[0] if len(truth) == 1 else truth


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
        if kind not in "RIS" or not width.isdigit() or ours in _SPECIAL:
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
    info: dict[str, Any], columns: _Columns, cells: list[tuple[bytes, ...]]
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
    lattice = info.pop("Lattice", None)
    pbc = info.pop("pbc", lattice is not None)
    raw = RawStructure(
        numbers=arrays.pop("numbers"),
        positions=arrays.pop("positions"),
        cell=np.zeros((3, 3)) if lattice is None else np.array(lattice.T, dtype=np.float64),
        pbc=np.zeros(3, dtype=bool) | np.array(pbc, dtype=bool),
        info=info,
    )
    results: dict[str, Any] = {key: info.pop(key) for key in list(info) if key in _PER_CONFIG}
    if "stress" in results and np.shape(results["stress"]) == (3, 3):
        results["stress"] = results["stress"][_VOIGT]
    results |= {name: arrays.pop(name) for name in list(arrays) if name in _PROPERTIES}
    for name in results.keys() - _SCALARS:
        results[name] = np.array(results[name], dtype=np.float64)
    raw.arrays, raw.calc = arrays, Results(results)
    return raw


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
    if not text.isdigit():
        raise InputError(
            f"{shown}, structure {index}: line {line_number} is {text[:40]!r} where a number of "
            "atoms should stand; correct the number of atoms of the structure before it"
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
