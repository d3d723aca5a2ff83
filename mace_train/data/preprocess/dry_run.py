"""``--dry-run``: print what the input files hold; nothing is written."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from ase.data import chemical_symbols
from rich.table import Table

from mace_train.atomic_files import scratch_folder
from mace_train.console import Console
from mace_train.data.labels import LabelReport, keys_in_words, warn_of_other_keys
from mace_train.data.notes import Notes
from mace_train.data.preprocess.file_blocks import FileBlock, InputFile, make_blocks
from mace_train.data.preprocess.work_folder import UNPACKED
from mace_train.data.read.formats import parse_fns_of, read_errors
from mace_train.data.structure import LabelKeys, names_in, structure_from_atoms
from mace_train.distributed.tasks.task_pool import TaskPool
from mace_train.errors import InputError, InvalidStructureError
from mace_train.progress import ProgressBar
from mace_train.settings import MISSING, PreprocessSettings
from mace_train.settings.inputs import InputKey


@dataclass
class FileSummary:
    """Contents of a set of structures."""

    labels: LabelReport  # of the valid structures
    n_structures: int = 0
    n_periodic: int = 0  # in all three directions
    n_atoms: Counter[int] = field(default_factory=Counter)  # structures by their number of atoms
    elements: Counter[int] = field(default_factory=Counter)  # structures that hold an element
    names: Counter[str] = field(default_factory=Counter)  # structures that have a value
    heads: Counter[str] = field(default_factory=Counter)
    config_types: Counter[str] = field(default_factory=Counter)
    invalid: Counter[str] = field(default_factory=Counter)  # by kind
    first_invalid: str | None = None

    def add(self, other: "FileSummary") -> None:
        """Add another set, which comes after this one."""
        self.labels.merge(other.labels)
        self.n_structures += other.n_structures
        self.n_periodic += other.n_periodic
        for name in ("n_atoms", "elements", "names", "heads", "config_types", "invalid"):
            getattr(self, name).update(getattr(other, name))
        self.first_invalid = self.first_invalid or other.first_invalid


def survey(files: Sequence[InputFile], settings: PreprocessSettings, pool: TaskPool) -> None:
    """Parse all files and print their contents by split; nothing is kept.

    Raises:
        InputError: a key of a label that the user gave and that no structure of train_file has.
    """
    parent = Path.cwd() if settings.output == MISSING else Path(settings.output).resolve().parent
    keys = LabelKeys.of(settings.data)
    with scratch_folder(parent) as folder:
        (folder / UNPACKED).mkdir()
        blocks = make_blocks(files, folder, pool, settings.structures_per_shard)
        with ProgressBar("scanning", len(blocks), counted="structures", log=True) as bar:
            found = pool.map(
                partial(
                    summarise_block,
                    keys=keys,
                    require_energy=settings.data.require_energy,
                    inputs=settings.data.inputs(),
                ),
                blocks,
                lambda result: bar.advance(1, result.n_structures),
            )
    console = Console(width=100)
    reports: dict[str, LabelReport] = {}
    for split in dict.fromkeys(file.split for file in files):
        total = FileSummary(labels=LabelReport(keys))
        for block, result in zip(blocks, found, strict=True):
            if block.split == split:
                total.add(result)
        names = [file.path for file in files if file.split == split]
        _print(console, split, names, total)
        reports[f"data.{split}_file"] = total.labels
    for where, report in reports.items():
        report.warn(where)
    warn_of_other_keys(reports)
    trained = reports["data.train_file"]
    if trained.counts.n_structures:
        trained.check_given_keys("data.train_file")
        trained.check_inputs(settings.data.inputs(), "data.train_file")


def summarise_block(
    block: FileBlock,
    keys: LabelKeys,
    *,
    require_energy: bool = True,
    inputs: Sequence[InputKey] = (),
) -> FileSummary:
    """Parse a block and count what is in it."""
    found = FileSummary(labels=LabelReport(keys))
    for part in block.parts:
        parse_fns = parse_fns_of(part.path, part.shown, part.format, part.file_range)
        for index, parse in enumerate(parse_fns, start=part.file_range.first):
            source = f"{part.shown}, structure {index}"
            found.n_structures += 1
            notes = Notes()
            try:
                with read_errors(part.shown, index):
                    atoms = parse()
                found.n_atoms[len(atoms)] += 1
                found.elements.update(set(np.asarray(atoms.numbers).tolist()))
                found.names.update(names_in(atoms))
                found.n_periodic += bool(np.all(atoms.pbc))
                structure = structure_from_atoms(
                    atoms,
                    keys,
                    source,
                    notes,
                    require_energy=require_energy,
                    head=block.head,
                    inputs=inputs,
                )
            except InputError as error:
                kind = error.kind if isinstance(error, InvalidStructureError) else "unreadable"
                found.invalid[kind] += 1
                found.first_invalid = found.first_invalid or str(error)
                continue
            found.labels.notes.merge(notes)
            found.labels.add(atoms, structure)
            found.heads[structure.head] += 1
            found.config_types[structure.config_type] += 1
    return found


def _print(console: Console, split: str, files: list[str], found: FileSummary) -> None:
    shown = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
    console.print(f"{split}: {found.n_structures} structures in {shown}")
    table = Table()
    table.add_column("what")
    table.add_column("found", overflow="fold")
    table.add_row("periodic along all three", f"{found.n_periodic}")
    symbols = {
        chemical_symbols[z] if 0 <= z < 119 else str(z): n
        for z, n in sorted(found.elements.items())
    }
    table.add_row("elements", _counts(symbols))
    table.add_row("values", _counts(dict(sorted(found.names.items()))))
    table.add_row("labels read, by key", keys_in_words(found.labels.numbers_by_key()))
    table.add_row("heads", _counts(found.heads))
    table.add_row("config_type", _counts(dict(found.config_types.most_common(12))))
    table.add_row("invalid", _counts(found.invalid) or "none (distances are not checked here)")
    if found.first_invalid:
        table.add_row("first invalid", found.first_invalid)
    console.print(table)
    for line in histogram(found.n_atoms):
        console.print(line, highlight=False)


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {n}" for name, n in counts.items())


def histogram(sizes: Counter[int], width: int = 50) -> list[str]:
    """Structures by number of atoms, in doubling classes.

    >>> histogram(Counter({1: 2, 3: 4}), width=4)
    ['     1 to 1      atoms ##   2', '     2 to 3      atoms #### 4']
    """
    classes: Counter[int] = Counter()
    for n_atoms, count in sizes.items():
        classes[int(math.log2(max(n_atoms, 1)))] += count
    most = max(classes.values(), default=1)
    return [
        f"{2**k:6d} to {2 ** (k + 1) - 1:<6d} atoms "
        f"{'#' * math.ceil(width * classes[k] / most):<{width}} {classes[k]}"
        for k in range(min(classes, default=0), max(classes, default=-1) + 1)
    ]
