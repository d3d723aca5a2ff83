"""Reading one block: raw -> checked structures -> neighbour lists -> part files and a summary.

The part files are shards; the summary is what the run needs to know about the block. It is
written last, so a block with a summary is finished.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
from ase.data import chemical_symbols
from ase.io import write

from mace_train.data.e0s import check_covered
from mace_train.data.labels import LabelReport
from mace_train.data.notes import Notes
from mace_train.data.preprocess.duplicates import GEOMETRY_KEY, KEY_VERSION, geometry_key
from mace_train.data.preprocess.file_blocks import FileBlock
from mace_train.data.preprocess.groups import Grouping
from mace_train.data.preprocess.work_folder import BLOCKS, write_json
from mace_train.data.raw_structure import AtomsLike, ParseFn, as_atoms
from mace_train.data.read.extxyz import text_of
from mace_train.data.read.formats import parse_fns_of, read_errors
from mace_train.data.shards.arrays import Sample, Storage
from mace_train.data.shards.hdf5 import read_header, sample_of, write_shard
from mace_train.data.shards.reader import ShardReader
from mace_train.data.structure import (
    LabelKeys,
    Structure,
    is_isolated,
    structure_from_atoms,
)
from mace_train.errors import InputError, InvalidStructureError
from mace_train.settings.inputs import InputKey


@dataclass(frozen=True)
class ReadSettings:
    """How blocks are read."""

    folder: Path  # of work
    keys: LabelKeys
    r_max: float
    structures_per_part: int
    float32: tuple[str, ...]
    skip_invalid: bool
    require_energy: bool = True
    given: dict[str, dict[int, float]] = field(default_factory=dict)  # E0s of heads that have them
    trained: frozenset[int] | None = None  # elements of training, known when the others are read
    grouping: Grouping = field(default_factory=Grouping)
    inputs: tuple[InputKey, ...] = ()

    def key(self, block: FileBlock) -> str:
        """The name of a block's files."""
        made_from = [asdict(self.keys), self.r_max, self.structures_per_part, self.float32]
        optional: list[Any] = [] if self.require_energy else ["energies are optional"]
        optional += [asdict(key) for key in self.inputs]
        return block.key(*made_from, KEY_VERSION, self.grouping.setting, *optional)


@dataclass
class BlockSummary:
    """Contents of a finished block, as plain values, to be written as JSON."""

    sizes: list[int] = field(default_factory=list)  # structures of each part file
    n_atoms: int = 0
    n_edges: int = 0
    element_sets: list[list[int]] = field(default_factory=list)
    element_set: list[int] = field(default_factory=list)  # of every structure
    heads: list[str] = field(default_factory=list)
    head: list[int] = field(default_factory=list)  # of every structure
    geometries: str = ""  # keys of all structures as hexadecimal digits, see duplicates.py
    groups: str = ""  # the same of their groups if they are set, see groups.py
    isolated: list[int] = field(default_factory=list)  # which structures are isolated atoms
    # (head, atomic number, energy or None, source) of these
    isolated_atoms: list[tuple[str, int, float | None, str]] = field(default_factory=list)
    labels: dict[str, Any] = field(default_factory=dict)  # LabelReport.content
    rejects: list[dict[str, str | None]] = field(default_factory=list)
    checksums: list[str] = field(default_factory=list)  # of the part files

    @classmethod
    def of_json(cls, content: dict[str, Any]) -> Self:
        """The inverse of ``asdict``."""
        content["isolated_atoms"] = [tuple(item) for item in content["isolated_atoms"]]
        return cls(**content)

    @property
    def n_structures(self) -> int:
        """Structures that are kept."""
        return sum(self.sizes)


def part_paths(folder: Path, key: str, n_parts: int) -> list[Path]:
    """The part files of a block."""
    return [folder / BLOCKS / f"{key}-{i}.h5" for i in range(n_parts)]


def read_block(block: FileBlock, reading: ReadSettings) -> BlockSummary:
    """Read a block, unless a former run has; the summary of its part files.

    Raises:
        InputError: something in it is wrong, and ``skip_invalid`` does not cover it.
    """
    key = reading.key(block)
    known = _finished(reading, key, block)
    return _Reader(block, reading, key).run() if known is None else known


def _finished(reading: ReadSettings, key: str, block: FileBlock) -> BlockSummary | None:
    """The summary of a former run, if it is what this one would make."""
    path = reading.folder / BLOCKS / f"{key}.json"
    try:
        summary = BlockSummary.of_json(json.loads(path.read_text()))
        parts = part_paths(reading.folder, key, len(summary.sizes))
        headers = [read_header(part) for part in parts]
        if [header.checksum for header in headers] != summary.checksums:
            return None
        if len(summary.geometries) != 2 * GEOMETRY_KEY.itemsize * summary.n_structures:
            return None
        for header in headers:  # the disk may have lost some of it with the power
            ShardReader(header).check(0, header.n_structures)
        for head, set_index in {*zip(summary.head, summary.element_set, strict=True)}:
            elements = summary.element_sets[set_index]
            check_elements(reading, summary.heads[head], elements, "", block.split)
    except (OSError, ValueError, KeyError, TypeError):  # InputError is a ValueError
        return None
    if summary.rejects and not reading.skip_invalid:
        return None
    return summary


def check_elements(
    reading: ReadSettings, head: str, elements: Iterable[int], source: str, split: str
) -> None:
    """InputError for an element that is not trained or has no E0."""
    if reading.trained is not None:
        unknown = sorted(set(elements) - reading.trained)
        if unknown:
            symbols = ", ".join(f"{chemical_symbols[z]} ({z})" for z in unknown)
            raise InputError(
                f"{source}: {symbols} in the {split} set but not in training; add training "
                f"structures with it or remove it from data.{split}_file"
            )
    elif head in reading.given:
        remedy = "add it there, or set data.E0s=average"
        check_covered(reading.given[head], elements, "data.E0s", where=source, remedy=remedy)


class _Reader:
    """One pass over a block."""

    def __init__(self, block: FileBlock, reading: ReadSettings, key: str) -> None:
        self.block, self.reading, self.key = block, reading, key
        self.summary = BlockSummary()
        self.labels = LabelReport(reading.keys)
        self.sets: dict[tuple[int, ...], int] = {}
        self.heads: dict[str, int] = {}
        self.geometries, self.groups = bytearray(), bytearray()

    def run(self) -> BlockSummary:
        """Write the part files, then the summary."""
        folder, summary = self.reading.folder, self.summary
        storage = Storage(float32=self.reading.float32)
        samples = self.samples()
        while chunk := list(islice(samples, self.reading.structures_per_part)):
            (path,) = part_paths(folder, self.key, len(summary.sizes) + 1)[-1:]
            write_shard(path, chunk, self.reading.r_max, storage, durable=False)
            summary.sizes.append(len(chunk))
            summary.checksums.append(read_header(path).checksum)
        summary.element_sets = [list(elements) for elements in self.sets]
        summary.heads = list(self.heads)
        summary.geometries, summary.groups = self.geometries.hex(), self.groups.hex()
        summary.labels = self.labels.content()
        write_json(folder / BLOCKS / f"{self.key}.json", asdict(summary))
        return summary

    def samples(self) -> Iterator[Sample]:
        """The valid structures of the block; the others are noted as rejects, or an error."""
        for part in self.block.parts:
            parse_fns = parse_fns_of(part.path, part.shown, part.format, part.file_range)
            index = part.file_range.first - 1
            for index, parse in enumerate(parse_fns, start=part.file_range.first):
                sample = self.sample(parse, part.shown, index)
                if sample is not None:
                    yield sample
            if index < 0:
                raise InputError(f"{part.shown} holds no structures; give a file that does")

    def sample(self, parse: ParseFn, shown: str, index: int) -> Sample | None:
        """One structure with its neighbours; None for a reject."""
        source, group = f"{shown}, structure {index}", b""
        atoms: AtomsLike | None = None
        notes = Notes()  # of a structure that is kept
        try:
            with read_errors(shown, index):
                atoms = parse()
            structure = structure_from_atoms(
                atoms,
                self.reading.keys,
                source,
                notes,
                require_energy=self.reading.require_energy,
                head=self.block.head,
                inputs=self.reading.inputs,
            )
            if self.reading.grouping.setting:
                isolated = is_isolated(structure)
                group = self.reading.grouping.group_key(atoms, shown, index, isolated=isolated)
            sample = sample_of(rounded(structure, self.reading.float32), self.reading.r_max)
        except InputError as error:
            kind = error.kind if isinstance(error, InvalidStructureError) else "unreadable"
            if not self.reading.skip_invalid:
                raise
            text = text_of(parse) if atoms is None else extxyz_of(atoms)
            self.summary.rejects.append(
                {"source": source, "kind": kind, "reason": str(error), "extxyz": text}
            )
            return None
        elements = np.unique(structure.numbers).tolist()
        check_elements(self.reading, structure.head, elements, source, self.block.split)
        self.labels.notes.merge(notes)
        self.note(atoms, sample)
        self.groups += group
        return sample

    def note(self, atoms: AtomsLike, sample: Sample) -> None:
        """Add a structure to the summary."""
        structure, summary = sample.structure, self.summary
        elements = tuple(np.flatnonzero(np.bincount(structure.numbers)).tolist())
        is_ion = structure.inputs.graph.get("total_charge", 0.0) != 0.0
        if is_isolated(structure) and not is_ion:
            isolated_atom = (structure.head, elements[0], structure.energy, structure.source)
            summary.isolated.append(len(summary.element_set))
            summary.isolated_atoms.append(isolated_atom)
        summary.element_set.append(self.sets.setdefault(elements, len(self.sets)))
        summary.head.append(self.heads.setdefault(structure.head, len(self.heads)))
        self.geometries += geometry_key(structure)
        summary.n_atoms += structure.n_atoms
        summary.n_edges += sample.edges.n_edges
        self.labels.add(atoms, structure)


def rounded(structure: Structure, float32: tuple[str, ...]) -> Structure:
    """The structure as it will be read back, so that edges and statistics are of what is stored."""
    changed = {
        name: getattr(structure, name).astype(np.float32).astype(np.float64)
        for name in float32
        if getattr(structure, name) is not None
    }
    return replace(structure, **changed) if changed else structure


def extxyz_of(atoms: AtomsLike) -> str | None:
    """The structure as text, as far as it can be written."""
    text = StringIO()
    try:
        write(text, as_atoms(atoms), format="extxyz")
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, IndexError):
        return None
    return text.getvalue()
