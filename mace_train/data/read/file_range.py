"""FileRange: a run of structures in one file, the unit that processes share."""

from dataclasses import dataclass


@dataclass(frozen=True)
class FileRange:
    """Structures ``first`` to ``first + count`` of a file."""

    first: int = 0
    count: int | None = None  # None: to the end, of a file whose structures cannot be counted
    offset: int = 0  # byte where the range begins, in text files
    size: int = 0  # bytes, the measure of progress where structures are not counted
    line: int = 1  # number of the first line, in text files


@dataclass(frozen=True)
class ChunkLimit:
    """How large a range may be."""

    structures: int
    size: int = 8 << 20  # bytes
