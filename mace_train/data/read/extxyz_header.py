"""The comment line of extended XYZ: keys and values as ASE reads them, and remarks about them.

Plain ``key=value``, ``key="values"`` and arrays in JSON are parsed here; a line with anything else
(nested brackets, escapes, words without a value) goes to ASE's parser as a whole.
"""

import itertools
import json
import re
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from ase.io.extxyz import key_val_str_to_dict
from numpy.typing import NDArray

from mace_train.data.read.extxyz_errors import MATRICES, FrameError, pairs

_PAIR = re.compile(
    r"""([A-Za-z_][\w:.-]*)=(?:"([^"\\,]+|_JSON[ ][^"\\]+)"|([^\s"'{}\[\]\\=,]+))(?:\s+|$)"""
)
_TRUTH = {
    **dict.fromkeys(("T", "true", "True", "TRUE"), True),
    **dict.fromkeys(("F", "false", "False", "FALSE"), False),
}
_GEOMETRY = {"lattice": "Lattice", "properties": "Properties", "pbc": "pbc"}  # in lower case


def _spellings(word: str) -> set[str]:
    """``word`` in small and large letters."""
    return set(map("".join, itertools.product(*((c.lower(), c.upper()) for c in word))))


_AS_TEXT = frozenset(_spellings("uid"))  # ASE makes no number of it
_MISSPELT = frozenset().union(*map(_spellings, _GEOMETRY)) - set(_GEOMETRY.values())


class Header(NamedTuple):
    """Keys and values, and remarks: (kind, message) about them."""

    info: dict[str, Any]
    remarks: list[tuple[str, str]]


def read_header(text: str) -> Header:
    """The comment line of a structure.

    Raises:
        FrameError: the periodicity is not understood.
        ValueError: ASE does not understand the line.
    """
    info: dict[str, Any] = {}
    remarks: list[tuple[str, str]] = []
    position = 0
    for match in _PAIR.finditer(text):
        if match.start() != position:
            break
        key, quoted, bare = match.groups()
        value = bare if quoted is None else quoted
        if key in info:
            break
        if value.startswith("_JSON"):
            info[key] = _json(key, value)
        else:
            info[key] = value if key == "Properties" else _value(key, value)
        if info[key] is None:
            break
        position = match.end()
    if position < len(text) or not _AS_TEXT.isdisjoint(info):
        info = key_val_str_to_dict(text)
        remarks += _given_twice(text, info)
        _keep_underscores(text, info)
    if "pbc" in info:
        _check_pbc(info["pbc"])
    if not _MISSPELT.isdisjoint(info):
        remarks += [
            ("letters of a key", f"{key!r} is not read, its name is {_GEOMETRY[key.lower()]!r}")
            for key in info
            if key in _MISSPELT
        ]
    return Header(info, remarks)


def _value(key: str, text: str) -> Any:
    """A number, numbers, truth values or the text; None for what ASE should judge."""
    tokens = text.split()
    if not tokens:
        return None
    try:
        numbers = _numbers(tokens, text)
    except ValueError:
        return None if key in MATRICES else _truth_or_text(tokens, text)
    if key in MATRICES:
        return numbers.reshape(3, 3, order="F") if len(tokens) == 9 else None
    return numbers[0] if len(tokens) == 1 else numbers


def _json(key: str, text: str) -> Any:
    """An array of numbers or truth values, as ASE writes them; None for what ASE should judge."""
    if key in MATRICES or key in _GEOMETRY.values() or not text.startswith("_JSON ["):
        return None
    with suppress(ValueError):
        array = np.array(json.loads(text.removeprefix("_JSON ")))
        if array.dtype.kind in "ifb":
            return array
    return None


def _numbers(tokens: list[str], text: str) -> NDArray[Any]:
    """Integers if all are, else float64; ValueError for what is none, or is only to Python."""
    if "_" in text:  # 1_0 is 10 to Python
        raise ValueError
    if "." not in text:
        with suppress(ValueError, OverflowError):
            return np.array(list(map(int, tokens)), dtype=np.int64)
    return np.array(list(map(float, tokens)))


def _truth_or_text(tokens: list[str], text: str) -> Any:
    truth = [_TRUTH.get(token) for token in tokens]
    if None in truth:
        return text
    return truth[0] if len(truth) == 1 else truth


def _keep_underscores(text: str, info: dict[str, Any]) -> None:
    """Put back as text what ASE made numbers of without their underscores; for a matrix raise."""
    for key, value in pairs(text) if "_" in text else ():
        if "_" in value.removeprefix("_JSON") and np.asarray(info.get(key, "")).dtype.kind in "iuf":
            if key in MATRICES:
                raise ValueError(f"{key} holds a number with an underscore")
            info[key] = value


def _given_twice(text: str, info: dict[str, Any]) -> list[tuple[str, str]]:
    """Remarks about keys with several values, of which the last is read."""
    values: dict[str, list[str]] = {}
    for key, value in pairs(text):
        values.setdefault(key, []).append(value)
    return [
        (
            f"{key} given twice",
            f"{key!r} is given {len(found)} times, as {' and '.join(map(repr, found))}: the last "
            "is read",
        )
        for key, found in values.items()
        if key in info and len(set(found)) > 1
    ]


def _check_pbc(value: Any) -> None:
    """FrameError unless it is T or F, or three of these; ASE takes any text for T."""
    if value is True or value is False:
        return
    if type(value) is list and len(value) == 3:  # of truth values
        return
    array = np.asarray(value)
    of_numbers = array.dtype.kind in "if" and bool(np.isin(array, (0, 1)).all())
    if array.shape not in ((), (3,)) or not of_numbers:
        words = {"True": "T", "False": "F"}
        listed = [words.get(str(item), str(item)) for item in array.reshape(-1).tolist()]
        shown = value if isinstance(value, str) else " ".join(listed)
        raise FrameError(
            f'pbc="{shown}" is not understood; write T or F for each of the three lattice vectors, '
            'such as pbc="T T F"'
        )
