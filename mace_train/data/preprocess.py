"""preprocess: files that ASE reads -> shards with neighbour lists, and statistics.json.

    OUTPUT/{train,valid,test}/shard-00000.h5 ...     OUTPUT/statistics.json

Structures are streamed: read and checked one by one, and written in chunks of one shard, each chunk
a job of its own (neighbour lists, then one file) that a pool of processes may run. Where validation
is split off, the first pass writes to a spool of shards, since the split needs the number of
structures, and a second one copies from it; E0s and statistics are taken from the finished shards.
Memory: one chunk per worker. The result does not depend on the number of workers, and the output
folder appears only when all of it is there.
"""

import itertools
import shutil
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from mace_train.checks import as_files
from mace_train.data.e0s import (
    REMEDY,
    IsolatedAtoms,
    check_covered,
    fit_E0s,
    given_E0s,
    is_average,
)
from mace_train.data.jobs import Job, run_jobs
from mace_train.data.labels import LabelCounts, LabelReport
from mace_train.data.read import check_files, read_structures
from mace_train.data.shards import ShardSet, sample_of, shard_path, write_shard
from mace_train.data.split import ElementSets, split_off
from mace_train.data.staging import staged_folder
from mace_train.data.statistics import FILE_NAME, Statistics, compositions, statistics_of
from mace_train.data.structure import LOGGER, LabelKeys, Structure, is_isolated
from mace_train.errors import InputError
from mace_train.settings import MISSING, DataSettings, PreprocessSettings

SPLITS = ("train", "valid", "test")
SPOOL = "spool"

Item = TypeVar("Item")
Structures = Generator[Structure, None, None]


def preprocess(settings: PreprocessSettings) -> Path:
    """Write the shards and statistics that ``settings`` describe; returns the output folder.

    Raises:
        InputError: anything wrong with files, labels, E0s, split or output; nothing is written.
    """
    files = _files(settings)
    E0s = given_E0s(settings.data.E0s)
    expected = frozenset((*SPLITS, FILE_NAME))
    with staged_folder(Path(settings.output), expected, overwrite=settings.overwrite) as folder:
        statistics = _Preprocess(settings, files, folder, E0s).run()
        statistics.write(folder / FILE_NAME)
    _announce(statistics, settings)
    return Path(settings.output)


def _files(settings: PreprocessSettings) -> dict[str, list[str]]:
    """The input files of every split, all of them there."""
    if settings.output == MISSING:
        raise InputError("output is not set; name the folder to write, such as output=data")
    data = settings.data
    if data.train_file == MISSING:
        raise InputError("data.train_file is not set; name a file or files that ASE reads")
    files = {
        "train": as_files("data.train_file", data.train_file),
        "valid": as_files("data.valid_file", data.valid_file),
        "test": as_files("data.test_file", data.test_file),
    }
    if not files["train"]:
        raise InputError("data.train_file names no file; name one or more that ASE reads")
    files = {name: check_files(files[name]) for name in SPLITS}
    trained = {Path(file).resolve() for file in files["train"]}
    for name in ("valid", "test"):
        for path in sorted({Path(f).resolve() for f in files[name]} & trained):
            LOGGER.warning(
                "data.%s_file and data.train_file both name %s: the errors on it are those of "
                "structures that were trained on",
                name,
                path,
            )
    return files


@dataclass
class _Preprocess:
    """One run of preprocess into ``folder``."""

    settings: PreprocessSettings
    files: dict[str, list[str]]
    folder: Path
    given: dict[int, float] | None
    isolated: IsolatedAtoms = field(default_factory=IsolatedAtoms)
    elements: ElementSets = field(default_factory=ElementSets)

    @property
    def data(self) -> DataSettings:
        """Settings of the input."""
        return self.settings.data

    def run(self) -> Statistics:
        """Write all splits; the statistics of the training data."""
        splits_off = not self.files["valid"] and self.data.valid_fraction > 0
        target = SPOOL if splits_off else "train"
        self._write(target, self._training())
        self._check_training(self.folder / target)
        if splits_off:
            self._split_spool()
        elif not self.files["valid"]:
            LOGGER.info("no validation data: data.valid_fraction is 0 and there is no valid_file")
        for name in ("valid", "test"):
            if self.files[name]:
                self._write(name, self._others(name))
        splits = {
            name: ShardSet(self.folder / name) for name in SPLITS if (self.folder / name).is_dir()
        }
        _check_edges(splits["train"])
        return statistics_of(splits, *self._E0s(splits["train"]))

    def _training(self) -> Structures:
        """The structures to train and validate on; isolated atoms are noted and left out."""
        for structure in self._read("train"):
            if is_isolated(structure):
                self.isolated.add(structure)
                if not self.data.keep_isolated_atoms:
                    continue
            if self.given is not None:  # known before all is read, unlike isolated atoms
                self._known_E0s(np.unique(structure.numbers).tolist(), structure.source)
            self.elements.add(structure.numbers)
            yield structure

    def _others(self, name: str) -> Structures:
        """The structures of a valid_file or test_file; isolated atoms stay in."""
        n_isolated, trained = 0, self.elements.elements
        for structure in self._read(name):
            _check_elements(structure, trained, name)
            n_isolated += is_isolated(structure)
            yield structure
        if n_isolated:
            LOGGER.info("%s_file: %d isolated atoms stay in the %s set", name, n_isolated, name)

    def _read(self, name: str) -> Structures:
        """The structures of the files of a split; afterwards, warnings of missing labels."""
        keys, setting = LabelKeys.of(self.data), f"data.{name}_file"
        labels = LabelReport(keys)
        structures = read_structures(self.files[name], keys, labels=labels)
        yield from _progress(structures, f"reading {name}_file")
        if name == "train":
            labels.check_given_keys(setting)
        labels.warn_missing(setting)

    def _write(self, target: str, structures: Structures) -> None:
        """Write ``structures`` to shards in the folder ``target``, one job per shard."""
        (self.folder / target).mkdir()
        chunks = _chunks(structures, self.settings.structures_per_shard)
        jobs: Iterator[Job] = (
            partial(_write_chunk, shard_path(self.folder / target, i), chunk, self.settings.r_max)
            for i, chunk in enumerate(chunks)
        )
        with closing(structures):  # after an error too, so that its temporary copies go at once
            run_jobs(jobs, self.settings.workers)

    def _check_training(self, folder: Path) -> None:
        """Announce isolated atoms; InputError without structures (in ``folder``) or E0s."""
        n_isolated = self.isolated.n_structures
        if n_isolated:
            use = (
                "used for E0s" if self.data.E0s is None else "not used for E0s (data.E0s sets them)"
            )
            kept = "and kept for training" if self.data.keep_isolated_atoms else "not trained on"
            LOGGER.info("train_file: %d isolated atoms, %s, %s", n_isolated, use, kept)
        if len(self.elements) == 0:
            raise InputError(
                f"data.train_file={', '.join(self.files['train'])} holds only isolated atoms "
                f"({n_isolated}); give structures to train on"
            )
        if self.data.E0s is None and not n_isolated:
            raise InputError(
                f"data.train_file holds no isolated atoms to take E0s from{_alone(folder)}; "
                f"{REMEDY}"
            )
        if not is_average(self.data.E0s):
            self._known_E0s(self.elements.elements)

    def _known_E0s(self, elements: list[int], where: str = "") -> dict[int, float]:
        if self.given is not None:
            remedy = "add it there, or set data.E0s=average"
            return check_covered(self.given, elements, "data.E0s", where=where, remedy=remedy)
        return check_covered(self.isolated.E0s, elements, "isolated atoms of data.train_file")

    def _E0s(self, train: ShardSet) -> tuple[dict[int, float], str]:
        """E0s of the elements of the training structures, and where they are from."""
        elements = list(train.elements)
        if is_average(self.data.E0s):
            return fit_E0s(compositions(train, elements), elements), "average"
        return self._known_E0s(elements), "isolated" if self.given is None else "given"

    def _split_spool(self) -> None:
        """Copy the spooled structures to train/ and valid/, and remove the spool."""
        spool = ShardSet(self.folder / SPOOL)
        train, valid = split_off(self.elements, self.data.valid_fraction, self.settings.seed)
        for name, chosen in (("train", train), ("valid", valid)):
            if len(chosen):
                _copy(spool, chosen, self.folder / name, self.settings.structures_per_shard)
        del spool
        shutil.rmtree(self.folder / SPOOL)


def _write_chunk(path: Path, structures: list[Structure], r_max: float) -> None:
    """The job that makes one shard: neighbour lists, then the file."""
    write_shard(path, (sample_of(structure, r_max) for structure in structures), r_max)


def _copy(spool: ShardSet, ids: NDArray[np.int64], folder: Path, per_shard: int) -> None:
    """Write the structures ``ids`` of ``spool`` to shards in ``folder``."""
    folder.mkdir()
    chunks = _chunks(_progress(iter(ids.tolist()), f"writing {folder.name}"), per_shard)
    for i, chunk in enumerate(chunks):
        write_shard(shard_path(folder, i), map(spool.sample, chunk), spool.r_max)


def _chunks(items: Iterator[Item], size: int) -> Iterator[list[Item]]:
    """Lists of ``size`` items, the last one shorter."""
    while chunk := list(itertools.islice(items, size)):
        yield chunk


def _progress(items: Iterable[Item], label: str) -> Iterator[Item]:
    """The same items, counted on stderr if that is a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield from items
        return
    columns = (SpinnerColumn(), TextColumn(label), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        yield from progress.track(items, total=None)


def _check_elements(structure: Structure, trained: list[int], name: str) -> None:
    """InputError for an element that is validated or tested but not trained."""
    unknown = sorted(set(structure.numbers.tolist()).difference(trained))
    if unknown:
        symbols = ", ".join(f"{chemical_symbols[z]} ({z})" for z in unknown)
        raise InputError(
            f"{structure.source}: {symbols} in the {name} set but not in training; add training "
            f"structures with it or remove it from data.{name}_file"
        )


def _alone(folder: Path) -> str:
    """A hint about the periodic structures in ``folder`` that may be meant as isolated atoms."""
    shards = ShardSet(folder)
    n = int(np.count_nonzero((shards.n_atoms == 1) & (shards.n_edges == 0)))
    if n == 0:
        return ""
    return (
        f", but {n} single periodic atoms without neighbours within r_max={shards.r_max} Å: "
        "config_type=IsolatedAtom marks them as isolated"
    )


def _check_edges(train: ShardSet) -> None:
    """InputError if no training structure has two atoms that see each other."""
    if not train.n_edges.any():
        raise InputError(
            f"no two atoms of the {len(train)} training structures are closer than r_max="
            f"{train.r_max} Å; increase r_max, or check that positions are in Å"
        )


def _announce(statistics: Statistics, settings: PreprocessSettings) -> None:
    """Log what was written."""
    for name, split in statistics.splits.items():
        shards = ShardSet(Path(settings.output) / name)
        labels = LabelCounts.of_shards(map(shards.arrays, range(shards.n_shards)))
        LOGGER.info(
            "%s: %d structures, %d atoms, %d edges; %s",
            name,
            split.n_structures,
            split.n_atoms,
            split.n_edges,
            labels.summary(),
        )
    E0s = ", ".join(f"{chemical_symbols[z]} {E0:.6f}" for z, E0 in statistics.E0s.items())
    LOGGER.info("E0s (%s, eV): %s", statistics.E0s_source, E0s)
    LOGGER.info(
        "avg_num_neighbors %.4f, mean energy per atom %.6f eV (std %.6f), RMS force %.6f eV/Å",
        statistics.avg_num_neighbors,
        statistics.mean_energy_per_atom,
        statistics.std_energy_per_atom,
        statistics.rms_forces,
    )
    LOGGER.info("written to %s", settings.output)
