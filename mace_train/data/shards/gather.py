"""Gathering: structures of a shard in any order, compared with their checksums and copied.

Loops over structures as machine code, since a bin is many short slices: in Python the slices cost
ten times more than their bytes. The CRC-32 (polynomial 0xEDB88320, as zlib's) takes 16 bytes per
step by tables (Kounavis and Berry, "Novel table lookup-based algorithms for high-performance CRC
generation", IEEE Trans. Comput. 57, 1550 (2008)).
"""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mace_train.jit import compiled

_POLYNOMIAL = np.uint32(0xEDB88320)
_STEP = 16  # bytes


@cache
def crc_tables() -> NDArray[np.uint32]:
    """[16, 256] the CRC of each byte followed by 0 to 15 zeros."""
    tables = np.zeros((_STEP, 256), dtype=np.uint32)
    tables[0] = np.arange(256)
    for _ in range(8):
        tables[0] = (tables[0] >> 1) ^ np.where(tables[0] & 1, _POLYNOMIAL, np.uint32(0))
    for k in range(1, _STEP):
        tables[k] = (tables[k - 1] >> 8) ^ tables[0][tables[k - 1] & 0xFF]
    return tables


@compiled
def _crc(crc: Any, data: Any, begin: int, end: int, tables: Any) -> Any:
    """The CRC-32 (inverted) of ``crc``'s bytes and data[begin:end]."""
    i = begin
    while i + 16 <= end:
        following = np.uint32(0)
        for k in range(4):
            low = (crc >> np.uint32(8 * k)) & np.uint32(0xFF)
            following ^= tables[15 - k, low ^ np.uint32(data[i + k])]
        for k in range(4, 16):
            following ^= tables[15 - k, data[i + k]]
        crc = following
        i += 16
    while i < end:
        crc = tables[0, (crc & np.uint32(0xFF)) ^ np.uint32(data[i])] ^ (crc >> np.uint32(8))
        i += 1
    return crc


@compiled
def first_wrong(
    rows: Any, expected: Any, offsets: Any, owner: Any, widths: Any, arrays: Any, tables: Any
) -> int:
    """Index in ``rows`` of the first structure whose bytes do not match its checksum; -1 if none.

    Args:
        rows: [n] structures to check.
        expected: [n_structures] CRC-32 of each.
        offsets: Tuple of [n_structures + 1], where structures begin and end.
        owner: [n_arrays] which of ``offsets`` cuts each array.
        widths: [n_arrays] bytes of an element that offsets count.
        arrays: Tuple of byte arrays, in the order of the checksum.
        tables: Of ``crc_tables``.
    """
    for k in range(len(rows)):
        row = rows[k]
        crc = np.uint32(0xFFFFFFFF)
        for j in range(len(arrays)):
            bounds = offsets[owner[j]]
            begin, end = bounds[row] * widths[j], bounds[row + 1] * widths[j]
            if begin < 0 or end < begin or end > len(arrays[j]):
                return k
            crc = _crc(crc, arrays[j], begin, end, tables)
        if crc ^ np.uint32(0xFFFFFFFF) != expected[row]:
            return k
    return -1


@compiled
def take(source: Any, offsets: Any, rows: Any, width: int, target: Any, starts: Any) -> None:
    """Copy the elements of ``rows`` from source to ``target``, each from its start.

    Args:
        source: [n_elements * width]
        offsets: [n_structures + 1] of elements.
        rows: [n] structures.
        width: Numbers (or bytes) per element.
        target: Of the same or of a wider type.
        starts: [n] elements of the target.
    """
    for k in range(len(rows)):
        begin, end = offsets[rows[k]] * width, offsets[rows[k] + 1] * width
        start = starts[k] * width
        given, wanted = source[begin:end], target[start : start + end - begin]
        for i in range(len(given)):
            wanted[i] = given[i]
