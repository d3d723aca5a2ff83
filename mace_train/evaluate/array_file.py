"""An HDF5 file whose large arrays are written row by row, as a plain file.

HDF5 keeps what it writes in memory and loses it, with a traceback from its destructors, where the
disk is full. So it makes only what surrounds the rows, in memory; the space of the whole file is
reserved before the first row, and rows are written where the library has placed their array.
"""

import errno
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import NDArray

_CANNOT_RESERVE = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


@dataclass(frozen=True)
class RowArray:
    """An array that is written row by row."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class ArrayFile:
    """The file, open to be written; every row array must be filled.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "a.h5"
    ...     rows = {"x": RowArray((3, 2), np.dtype("float32"))}
    ...     with ArrayFile(path, {"names": np.arange(2)}, rows, {"format": "example"}) as file:
    ...         file.append("x", np.ones((1, 2)))
    ...         file.append("x", np.zeros((2, 2)))
    ...     with h5py.File(path) as written:
    ...         written["x"][()].tolist(), written["names"][()].tolist()
    ([[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]], [0, 1])
    """

    def __init__(
        self,
        path: Path,
        arrays: Mapping[str, NDArray[Any]],
        rows: Mapping[str, RowArray],
        attributes: Mapping[str, Any],
    ) -> None:
        """Write all but the rows and reserve their space.

        Raises OSError: no room for all of it, or it cannot be written there.
        """
        sparse = _SparseFile()
        self._rows, self._filled = rows, dict.fromkeys(rows, 0)
        self._place: dict[str, int] = {}
        with h5py.File(sparse, "w", libver="latest") as file:
            file.attrs.update(attributes)
            for name, array in arrays.items():
                file[name] = array
            for name, row_array in rows.items():
                self._place[name] = _reserve(file, name, row_array)
            size = file.id.get_filesize()
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            self._allocate(size)
            for place, part in sparse.written:
                self._write(part, place)
        except BaseException:
            os.close(self._file)
            raise

    def append(self, name: str, values: NDArray[Any]) -> None:
        """Write the next rows [n, ...] of the array ``name``."""
        array, first = self._rows[name], self._filled[name]
        assert values.shape[1:] == array.shape[1:]
        assert first + len(values) <= array.shape[0]
        content = np.ascontiguousarray(values, dtype=array.dtype)
        of_row = int(np.prod(array.shape[1:])) * array.dtype.itemsize
        if content.nbytes:
            self._write(content.data.cast("B"), self._place[name] + first * of_row)
        self._filled[name] += len(values)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._file)
        if error is None:
            missing = [name for name, n in self._filled.items() if n != self._rows[name].shape[0]]
            assert not missing, f"{missing} are not complete"

    def _allocate(self, size: int) -> None:
        reserve = getattr(os, "posix_fallocate", None)  # not on every system
        try:
            if reserve is not None:
                reserve(self._file, 0, size)
                return
        except OSError as error:
            if error.errno not in _CANNOT_RESERVE:
                raise
        os.ftruncate(self._file, size)

    def _write(self, content: bytes | memoryview, place: int) -> None:
        rest = memoryview(content)
        while rest:
            n = os.pwrite(self._file, rest, place)
            rest, place = rest[n:], place + n


def _reserve(file: h5py.File, name: str, array: RowArray) -> int:
    """Make an array of which nothing is written; the place of its first byte in the file."""
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_layout(h5py.h5d.CONTIGUOUS)
    plan.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    plan.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    space = h5py.h5s.create_simple(array.shape)
    kind = h5py.h5t.py_create(array.dtype, logical=True)
    made = h5py.h5d.create(file.id, name.encode(), kind, space, dcpl=plan)
    return int(made.get_offset() or 0)


class _SparseFile(io.RawIOBase):
    """A file that keeps what is written to it, and nothing in between."""

    def __init__(self) -> None:
        self.written: list[tuple[int, bytes]] = []  # (place, content), in the order of writing
        self._at = self._size = 0

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence] + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def truncate(self, size: int | None = None) -> int:
        self._size = self._at if size is None else size
        return self._size

    def write(self, content: Any) -> int:
        part = bytes(content)
        self.written.append((self._at, part))
        self._at += len(part)
        self._size = max(self._size, self._at)
        return len(part)

    def readinto(self, target: Any) -> int:
        view = memoryview(target).cast("B")
        n = min(len(view), max(self._size - self._at, 0))
        view[:n] = bytes(n)
        for place, part in self.written:
            first, last = max(place, self._at), min(place + len(part), self._at + n)
            if first < last:
                view[first - self._at : last - self._at] = part[first - place : last - place]
        self._at += n
        return n
