"""The plan: input files -> plain files -> file ranges -> blocks, the tasks of reading.

A block is up to 1024 neighbouring structures (8 MiB of text) of one file, or several small files.
It depends on the files and on ``structures_per_shard`` and on nothing else, so neither the number
of processes nor an interruption changes what is written.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mace_train import __version__
from mace_train.data.preprocess.work_folder import UNPACKED, cached_json, fingerprint
from mace_train.data.read.file_range import ChunkLimit, FileRange
from mace_train.data.read.formats import read_errors, split_file
from mace_train.data.read.unpack import is_packed, unpack
from mace_train.data.shards.hdf5 import FORMAT_VERSION
from mace_train.distributed.tasks.task_pool import TaskPool

STRUCTURES_PER_BLOCK = 1024


@dataclass(frozen=True)
class InputFile:
    """A file as the settings name it."""

    split: str  # train, valid or test
    head: str
    path: str


@dataclass(frozen=True)
class FilePart:
    """A range of structures in a plain file."""

    path: str
    shown: str  # in messages
    format: str
    file_range: FileRange
    identity: str  # of the input file and the member of it


@dataclass(frozen=True)
class FileBlock:
    """Structures that one task reads."""

    split: str
    head: str
    parts: tuple[FilePart, ...]

    @property
    def size(self) -> int:
        """Bytes, as a measure of work."""
        return sum(part.file_range.size for part in self.parts)

    def key(self, *how: Any) -> str:
        """Name of the files made from this block with the settings ``how``."""
        what = [(part.identity, part.shown, asdict(part.file_range)) for part in self.parts]
        return fingerprint(__version__, FORMAT_VERSION, self.head, what, how)


def make_blocks(
    files: Sequence[InputFile], folder: Path, pool: TaskPool, structures_per_shard: int
) -> list[FileBlock]:
    """The blocks of all files, in order; packed files are unpacked into ``folder``.

    Raises:
        InputError: a file that cannot be read, or is not whole.
    """
    limit = ChunkLimit(min(structures_per_shard, STRUCTURES_PER_BLOCK))
    paths = list(dict.fromkeys(file.path for file in files))  # one that is named twice is cut once
    cut = pool.map(partial(_cut, folder=folder, limit=limit), paths, lambda parts: None)
    parts_of = dict(zip(paths, cut, strict=True))
    return list(_grouped(files, [parts_of[file.path] for file in files], limit))


def _grouped(
    files: Sequence[InputFile], found: Sequence[list[FilePart]], limit: ChunkLimit
) -> Iterator[FileBlock]:
    """Neighbouring parts of one split and head, as many as the limit allows."""
    group: list[FilePart] = []
    split_and_head, n_structures, size = ("", ""), 0, 0
    for file, parts in zip(files, found, strict=True):
        for part in parts:
            count = part.file_range.count or 1
            full = (
                n_structures + count > limit.structures or size + part.file_range.size > limit.size
            )
            if group and (full or split_and_head != (file.split, file.head)):
                yield FileBlock(*split_and_head, tuple(group))
                group, n_structures, size = [], 0, 0
            split_and_head = (file.split, file.head)
            group.append(part)
            n_structures, size = n_structures + count, size + part.file_range.size
    if group:
        yield FileBlock(*split_and_head, tuple(group))


def _cut(file: str, folder: Path, limit: ChunkLimit) -> list[FilePart]:
    """The parts of one input file."""
    status = os.stat(file)
    identity = [os.path.abspath(file), status.st_size, status.st_mtime_ns]
    plain = [(file, file)]
    if is_packed(file):
        plain = _unpacked(file, folder / UNPACKED / fingerprint(identity))
    parts = []
    for number, (path, shown) in enumerate(plain):
        name, file_ranges = split_file(path, shown, limit)
        key = fingerprint(identity, number)
        parts += [FilePart(path, shown, name, file_range, key) for file_range in file_ranges]
    return parts


def _unpacked(path: str, folder: Path) -> list[tuple[str, str]]:
    """Plain copies of the files in ``path``, unless an earlier run made them."""

    def make() -> list[tuple[str, str]]:
        shutil.rmtree(folder, ignore_errors=True)
        with read_errors(path, 0):
            return unpack(path, path, folder / "files")

    listed = folder.with_suffix(".json")
    return [(plain, shown) for plain, shown in cached_json(listed, make)]
