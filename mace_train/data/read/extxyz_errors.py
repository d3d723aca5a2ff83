"""What is wrong with an extended XYZ file: line, column, what stands there, and the remedy.

Parsers fail with what a conversion says (``KeyError: 'Cu1'``). Here a frame that failed is read
once more, value by value, for the place and the cause.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from ase.data import atomic_numbers

from mace_train.data.tokens import element_fault, number_fault

DEFAULT_PROPERTIES = "species:S:1:pos:R:3"
_PAIR = re.compile(
    r"""([^\s=]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|'([^']*)'|\{([^}]*)\}|\[([^\]]*)\]|(\S*))"""
)
_WIDE_MARKS = (b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")  # of UTF-16 and UTF-32
_WIDE_DIGIT = re.compile(rb"\0[ \d]|[ \d]\0")  # without a mark
MATRICES = ("Lattice", "virial", "stress")  # nine numbers, column by column
_POSITIONS, _ELEMENTS = {"pos", "positions"}, {"species", "symbols", "Z", "numbers"}
MOST_ATOMS = 10**9  # of one structure
_LARGEST_INTEGER = 2**31 - 1  # of a column, in ASE


class FrameError(ValueError):
    """A structure that cannot be read; the message comes after the names of file and structure."""


def pairs(text: str) -> list[tuple[str, str]]:
    """Keys and values of a comment line, as they were written, in order.

    >>> pairs('a=1 b="2 3" c= {4 5} word a=6')
    [('a', '1'), ('b', '2 3'), ('c', '4 5'), ('a', '6')]
    """
    return [(match[0], "".join(match[1:])) for match in _PAIR.findall(text)]


def fault_of_count(line: bytes, index: int, line_number: int) -> str:
    """Why ``line`` does not give the number of atoms of structure ``index``."""
    if line.strip().isdigit():
        digits = line.strip().decode()
        shown = digits if len(digits) <= 40 else f"{digits[:20]}... ({len(digits)} digits)"
        return (
            f"line {line_number} gives {shown} atoms, more than any file holds (at most "
            f"{MOST_ATOMS:,} are read); correct the number of atoms"
        )
    what = f"line {line_number} is {line.strip()[:40]!r} where a number of atoms should stand"
    if line.startswith(_WIDE_MARKS) or (index == 0 and _WIDE_DIGIT.match(line)):
        name = "UTF-32" if b"\0\0" in line[:4] else "UTF-16"
        return f"{what}; this is {name} text: convert it with iconv -f {name} -t UTF-8"
    if line.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        return f"{what}; the file is compressed: give its name the ending of that, such as .gz"
    if b"\0" in line:
        return (
            f"{what}; bytes of zero mean that the file was not written to its end or is damaged: "
            "copy it again, or remove what follows the last whole structure"
        )
    if b"\r" in line.strip():
        return f"{what}; its lines end in lone carriage returns: convert it with tr '\\r' '\\n'"
    if index == 0:
        return f"{what}; give a file that begins with the number of atoms"
    return f"{what}; correct the number of atoms of the structure before it"


def explain(lines: list[bytes], first: int, error: Exception) -> FrameError:
    """The error for a frame.

    Args:
        lines: Number of atoms, comment, atoms.
        first: Number of the first line in the file.
        error: What the parser raised.
    """
    if isinstance(error, FrameError):  # of the comment
        return FrameError(f"line {first + 1}: {error}")
    texts: list[str] = []
    for number, line in enumerate(lines, start=first):
        fault = _fault_of_bytes(line)
        if fault:
            return FrameError(f"line {number}, {fault}")
        texts.append(line.decode())
    fault = _fault_of_comment(texts[1]) or properties_fault(_properties(texts[1]))
    if fault:
        return FrameError(f"line {first + 1}: {fault}")
    columns = list(_columns(_properties(texts[1])))
    for atom, text in enumerate(texts[2:]):
        fault = _fault_of_row(text.split(), columns)
        if fault:
            return FrameError(f"line {first + 2 + atom} (atom {atom}){fault}")
    return FrameError(
        f"lines {first} to {first + len(lines) - 1} cannot be read "
        f"({type(error).__name__}: {error}); correct them or remove this structure"
    )


def has_lone_return(lines: list[bytes]) -> bool:
    """Whether a line holds a carriage return before its end."""
    marked = [line for line in lines if b"\r" in line]
    return any(b"\r" in line.rstrip() for line in marked)


def has_underscored_number(rows: list[bytes], properties: str) -> bool:
    """Whether a column of numbers holds an underscore, which Python and ASE leave out."""
    marked = [row for row in rows if b"_" in row]
    columns = list(_columns(properties)) if marked else []
    return any(
        column.kind in "RI" and "_" in token
        for row in marked
        for token, column in zip(row.decode().split(), columns, strict=False)
    )


def properties_fault(text: str) -> str | None:
    """What is wrong with the value of Properties; None if it can be read."""
    fields = text.strip().split(":")
    whole = len(fields) - len(fields) % 3
    if any(fields[whole:]):
        return (
            f"Properties={text} ends in {':'.join(fields[whole:])!r}; every property has three "
            "parts, name:type:columns"
        )
    names = fields[:whole:3]
    for name, kind, width in zip(names, fields[1:whole:3], fields[2:whole:3], strict=True):
        if kind not in ("R", "I", "S", "L"):
            return f"Properties={text}: the type of {name} is {kind!r}; write R, I, S or L"
        if not width.isdecimal() or int(width) == 0:
            return f"Properties={text}: {name} has {width!r} columns; write 1 or more"
        if name in _POSITIONS and width != "3":
            return f"Properties={text}: {name} has {width} columns; positions have 3"
        if name in ("species", "symbols") and kind != "S":
            return f"Properties={text}: {name} is no text; name atomic numbers Z:I:1"
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        return f"Properties={text} names {twice[0]!r} twice; give one of them another name"
    if not _POSITIONS & set(names):
        return f"Properties={text} has no positions; add pos:R:3"
    if not _ELEMENTS & set(names):
        return f"Properties={text} has no elements; add species:S:1 or Z:I:1"
    return None


def _properties(comment: str) -> str:
    return dict(pairs(comment)).get("Properties", DEFAULT_PROPERTIES)


def _fault_of_bytes(line: bytes) -> str | None:
    """Of a line that is no text."""
    if b"\0" in line:
        return (
            f"column {line.index(0) + 1}: a byte of zero; the file is damaged: copy it again, or "
            "remove this structure"
        )
    if has_lone_return([line]):
        return (
            f"column {line.index(13) + 1}: a carriage return inside the line, where ASE begins "
            "another; remove it, or convert such line ends with tr '\\r' '\\n'"
        )
    try:
        line.decode()
    except UnicodeDecodeError as error:
        return (
            f"column {error.start + 1}: the byte 0x{line[error.start]:02x} is not UTF-8; it is "
            f"{line[error.start : error.start + 1].decode('latin-1')!r} if the file is Latin-1: "
            "convert it with iconv -f LATIN1 -t UTF-8"
        )
    return None


def _fault_of_comment(text: str) -> str | None:
    """Of a comment whose matrices are none."""
    for key, value in pairs(text):
        if key not in MATRICES:
            continue
        for token in value.split():
            fault = None if _is_number(token) else number_fault(token)
            if fault:
                return f"{key} holds {token!r}, which {fault}"
        tokens = re.findall(r"[^\s,]+", value)
        for token in tokens:
            if not _is_number(token):
                return f"{key} holds {token!r}, which {_no_number(token)}"
        if len(tokens) != 9:
            voigt = (
                "; six numbers (xx, yy, zz, yz, xz, xy) are read under another key, such as "
                f"REF_{key}"
            )
            hint = voigt if len(tokens) == 6 and key != "Lattice" else ""
            return f"{key} has {len(tokens)} numbers where 9 are needed{hint}; correct it"
    words = [word for word in text.split() if word in MATRICES]
    return f'{words[0]} has no value; write {words[0]}="9 numbers"' if words else None


def _no_number(token: str) -> str:
    return number_fault(token) or "is not a number: correct it"


class _NamedColumn(NamedTuple):
    """One of the columns of an atom."""

    name: str
    kind: str


def _columns(properties: str) -> Iterator[_NamedColumn]:
    fields = properties.strip().split(":")
    for name, kind, width in zip(fields[::3], fields[1::3], fields[2::3], strict=False):
        yield from [_NamedColumn(name, kind)] * int(width)


def _fault_of_row(tokens: list[str], columns: list[_NamedColumn]) -> str | None:
    """Of the line of one atom, to be read after its number."""
    if len(tokens) < len(columns):
        for place, token in enumerate(tokens, start=1):
            fault = number_fault(token) if token[0] in "+-.0123456789" else None
            if fault and not _is_number(token):
                return f", column {place}: {token!r} {fault}"
        hint = "put spaces" if len(tokens) == 1 and "," in tokens[0] else "add what is missing"
        return (
            f" has {len(tokens)} columns, {' '.join(tokens)[:60]!r}, where Properties names "
            f"{len(columns)}; {hint}, or correct Properties"
        )
    for place, (token, column) in enumerate(zip(tokens, columns, strict=False), start=1):
        fault = _fault_of_cell(token, column)
        if fault:
            return f", column {place} ({column.name}): {token!r} {fault}"
    return None


def _fault_of_cell(token: str, column: _NamedColumn) -> str | None:
    if column.name in _ELEMENTS and column.kind == "S":
        return None if token.capitalize() in atomic_numbers else element_fault(token)
    if column.kind == "R" and not _is_number(token):
        return _no_number(token)
    if column.kind == "I":
        if "_" in token:
            return number_fault(token) or "is no integer"
        try:
            if abs(int(token)) > _LARGEST_INTEGER:
                return "does not fit into an integer of 32 bits: name the column R"
        except ValueError:
            if not _is_number(token):
                return _no_number(token)
            return "is no integer" + ("" if column.name in _ELEMENTS else ": name the column R")
    return None


def _is_number(token: str) -> bool:
    """Whether it is one; 1_0, which is 10 to Python and so to ASE, is none."""
    try:
        float(token)
    except ValueError:
        return False
    return "_" not in token
