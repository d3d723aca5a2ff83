"""Compressed files and archives -> plain files, once, so that processes can share them.

gz, bz2, xz and zst hold one file each; tar (also compressed) and zip hold members, of which those
with a known name are taken, in the order of the archive. A plain copy is what makes random access
possible: ASE seeks backwards, which is slow in a compressed stream. Of a member only the last part
of its name is used, in a folder of its own; links and devices are not taken. What unpacks to far
more than it is, or nests deeper than anybody packs, is refused.
"""

import bz2
import gzip
import lzma
import os
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from mace_train.data.read.files import is_structure_file
from mace_train.data.structure import LOGGER
from mace_train.errors import InputError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_COPY = 1 << 22  # bytes
_ALWAYS, _LARGEST_RATIO = 1 << 30, 200  # bytes that any file may unpack to, and how many times more
_DEEPEST = 4  # archives in archives


_DECOMPRESSORS: dict[str, Callable[..., Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": zstd.open,
}
_ARCHIVES = (".tar", ".zip", ".tgz", ".tbz2", ".txz")
UNPACK_ERRORS = (zstd.ZstdError, tarfile.TarError, zipfile.BadZipFile)


def is_packed(path: str) -> bool:
    """Whether ``path`` must be unpacked before it is read."""
    return Path(path).suffix in (*_DECOMPRESSORS, *_ARCHIVES)


def unpack(path: str, shown: str, folder: Path) -> list[tuple[str, str]]:
    """Plain copies in ``folder`` of what ``path`` holds: (path, name to show), in order.

    Raises:
        InputError: an archive without structures, or one that unpacks to far more than it is.
        OSError, EOFError, ValueError, zlib.error, lzma.LZMAError: it is damaged.
    """
    try:
        return _unpack(path, shown, folder, _Budget(path, shown), _DEEPEST)
    except UNPACK_ERRORS as error:
        raise OSError(f"damaged archive: {error}") from error


class _Budget:
    """How many bytes a file may unpack to, with all that its archives hold."""

    def __init__(self, path: str, shown: str) -> None:
        self._most = max(_ALWAYS, _LARGEST_RATIO * os.path.getsize(path))
        self._left, self._shown = self._most, shown

    def copy(self, packed: IO[bytes], target: Path) -> None:
        """Write what ``packed`` gives to a file."""
        with target.open("wb") as plain:
            while chunk := packed.read(_COPY):
                self._left -= len(chunk)
                if self._left < 0:
                    raise InputError(
                        f"{self._shown} unpacks to more than {self._most} bytes, which is more "
                        f"than {_LARGEST_RATIO} times its size; unpack it yourself if that is right"
                    )
                plain.write(chunk)


def _unpack(
    path: str, shown: str, folder: Path, budget: _Budget, depth: int
) -> list[tuple[str, str]]:
    if depth == 0:
        raise InputError(f"{shown}: archives in archives, {_DEEPEST} deep; unpack them yourself")
    suffixes = Path(path).suffixes
    if suffixes[-1] in (".tar", ".tgz", ".tbz2", ".txz") or suffixes[-2:-1] == [".tar"]:
        return _members(_tar_members(path), shown, folder, budget, depth)
    if suffixes[-1] == ".zip":
        return _members(_zip_members(path), shown, folder, budget, depth)
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / Path(path).stem
    with _DECOMPRESSORS[suffixes[-1]](Path(path), "rb") as packed:
        budget.copy(packed, copy)
    return [(str(copy), shown)]


def _members(
    members: Iterator[tuple[str, IO[bytes]]],
    shown: str,
    folder: Path,
    budget: _Budget,
    depth: int,
) -> list[tuple[str, str]]:
    plain: list[tuple[str, str]] = []
    ignored: list[str] = []
    for number, (name, content) in enumerate(members):
        if not is_structure_file(name):
            ignored.append(name)
            continue
        member_folder = folder / f"{number:06d}"
        member_folder.mkdir(parents=True, exist_ok=True)
        copy = member_folder / Path(name).name
        budget.copy(content, copy)
        label = f"{shown}/{name}"
        inner = member_folder / "in"
        if is_packed(name):
            plain += _unpack(str(copy), label, inner, budget, depth - 1)
        else:
            plain.append((str(copy), label))
    if not plain:
        raise InputError(
            f"{shown} holds no structures (members: {ignored[:3]}); give one that does"
        )
    if ignored:
        LOGGER.info("%s: %d members are no structures, such as %s", shown, len(ignored), ignored[0])
    return plain


def _tar_members(path: str) -> Iterator[tuple[str, IO[bytes]]]:
    with _plain_stream(path) as stream, tarfile.open(fileobj=stream, mode="r|*") as archive:
        for member in archive:
            content = archive.extractfile(member) if member.isfile() else None
            if content is not None:
                yield member.name, content


def _plain_stream(path: str) -> IO[bytes]:
    """The bytes of a tar file; tarfile itself knows all compressions but zstd."""
    opened = _DECOMPRESSORS[".zst"] if path.endswith(".zst") else open
    stream: IO[bytes] = opened(path, "rb")
    return stream


def _zip_members(path: str) -> Iterator[tuple[str, IO[bytes]]]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if not member.is_dir():
                with archive.open(member) as content:
                    yield member.filename, content
