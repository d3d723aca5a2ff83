"""preprocess: files that ASE reads -> shards with neighbour lists, and statistics.json.

    OUTPUT/{train,valid,test}/shard-00000.h5 ...     OUTPUT/statistics.json     OUTPUT/rejects.jsonl

Every stage is a list of tasks that a pool shares: unpack and cut the files into blocks
(file_blocks.py); read blocks, check structures, find neighbours, write part files (read_block.py);
then, with the split known, join parts to shards and take the sums of the statistics (assemble.py).
Memory: one block or one shard per process, and on rank 0 about 250 bytes per structure. The result
depends neither on the number of processes nor on interruptions: what is finished stays in the work
folder, from which the next run continues (work_folder.py), and the output folder appears when it is
complete.
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from mace_train.atomic_files import write_text
from mace_train.checks import check_cores, files_by_head
from mace_train.data.e0s import E0Sources, fit_E0s
from mace_train.data.labels import LabelCounts, warn_of_other_keys
from mace_train.data.preprocess.assemble import (
    FitTask,
    MeasureTask,
    ShardTasks,
    fit_task,
    measure_task,
    write_task,
)
from mace_train.data.preprocess.dry_run import survey
from mace_train.data.preprocess.duplicates import warn_of_duplicates
from mace_train.data.preprocess.file_blocks import FileBlock, InputFile, make_blocks
from mace_train.data.preprocess.groups import Grouping
from mace_train.data.preprocess.read_block import BlockSummary, ReadSettings, read_block
from mace_train.data.preprocess.selection import (
    Selection,
    check_training,
    known_E0s,
    report_labels,
)
from mace_train.data.preprocess.work_folder import (
    RESULT,
    checksum_of,
    fingerprint,
    work_folder,
    write_json,
)
from mace_train.data.read import check_files
from mace_train.data.shards.arrays import Storage
from mace_train.data.shards.shard_set import ShardSet
from mace_train.data.statistics import FILE_NAME, Statistics, counts_in, merge, statistics_from
from mace_train.data.structure import LOGGER, LabelKeys
from mace_train.distributed.tasks.task_pool import TaskPool, open_task_pool
from mace_train.errors import InputError, system_error
from mace_train.progress import ProgressBar
from mace_train.settings import MISSING, PreprocessSettings
from mace_train.settings.inputs import ReadInput

SPLITS = ("train", "valid", "test")
REJECTS = "rejects.jsonl"


def preprocess(settings: PreprocessSettings) -> Path:
    """Write the shards and statistics that ``settings`` describe; returns the output folder.

    Raises:
        InputError: anything wrong with files, labels, E0s, split or output; no output is written.
    """
    check_cores("workers", settings.workers)
    with open_task_pool(settings.workers) as pool:
        if pool is None:  # an MPI rank other than 0, whose work is done
            return Path(settings.output)
        files = _files(settings)
        data = settings.data
        E0_sources = E0Sources(data.E0s, data.foundation_model, data.accept_licence)
        if settings.dry_run:
            survey(files, settings, pool)
            return Path(settings.output)
        expected = frozenset((*SPLITS, FILE_NAME, REJECTS))
        output = Path(settings.output)
        try:
            with work_folder(output, expected, overwrite=settings.overwrite) as folder:
                _Preprocess(settings, files, folder, E0_sources, pool).run()
        except OSError as error:
            kind = type(system_error(error) or InputError())
            raise kind(
                f"output={output}: {error.strerror or error} ({error.filename or output}); make "
                "room or choose another folder, the same command then continues"
            ) from error
    _log_result(settings)
    return output


def _files(settings: PreprocessSettings) -> list[InputFile]:
    """The input files of every split; InputError if one is missing."""
    if settings.output == MISSING and not settings.dry_run:
        raise InputError("output is not set; name the folder to write, such as output=data")
    data = settings.data
    if data.train_file == MISSING:
        raise InputError("data.train_file is not set; name a file or files that ASE reads")
    files = []
    for split in SPLITS:
        by_head = files_by_head(f"data.{split}_file", getattr(data, f"{split}_file"))
        for head, names in by_head.items():
            files += [InputFile(split, head, path) for path in check_files(names)]
    if not any(file.split == "train" for file in files):
        raise InputError("data.train_file names no file; name one or more that ASE reads")
    trained = {Path(file.path).resolve() for file in files if file.split == "train"}
    for split in ("valid", "test"):
        theirs = {Path(file.path).resolve() for file in files if file.split == split}
        for path in sorted(theirs & trained):
            LOGGER.warning(
                "data.%s_file and data.train_file both name %s: the errors on it are those of "
                "structures that were trained on",
                split,
                path,
            )
    return files


@dataclass
class _Preprocess:
    """One run of preprocess in the work folder."""

    settings: PreprocessSettings
    files: Sequence[InputFile]
    folder: Path
    E0_sources: E0Sources
    pool: TaskPool

    @property
    def storage(self) -> Storage:
        """How shards are stored."""
        settings = self.settings
        return Storage(tuple(settings.float32), settings.store_edges, settings.compression)

    def run(self) -> None:
        """Write all splits, the rejects and the statistics."""
        settings, data = self.settings, self.settings.data
        blocks = make_blocks(self.files, self.folder, self.pool, settings.structures_per_shard)
        training = [block for block in blocks if block.split == "train"]
        others = {split: [b for b in blocks if b.split == split] for split in SPLITS[1:]}
        splits_off = data.valid_fraction > 0 and not others["valid"]
        grouping = Grouping.of(data)
        if grouping.setting and not splits_off:
            LOGGER.warning(
                "%s has no effect: it is about splitting train_file, which is not split",
                grouping.setting,
            )
            grouping = Grouping()
        reading = self._reading(grouping=grouping)
        summaries = {"train": self._read(training, reading)}
        labels = {"train": report_labels(summaries["train"], data, "train")}
        drop = not data.keep_isolated_atoms
        selection = Selection(training, summaries["train"], reading, drop_isolated=drop)
        n_single = self._n_single(selection) if data.E0s is None else 0
        check_training(selection, data, self.E0_sources, n_single, settings.r_max)
        reading = self._reading(frozenset(selection.all_elements))
        chosen = self._split(selection, bool(others["valid"]))
        selected = {name: (selection, numbers) for name, numbers in chosen.items()}
        for split, split_blocks in others.items():
            if split_blocks:
                summaries[split] = self._read(split_blocks, reading)
                labels[split] = report_labels(summaries[split], data, split)
                own_selection = Selection(
                    split_blocks, summaries[split], reading, drop_isolated=False
                )
                if own_selection.n_isolated:
                    n = own_selection.n_isolated
                    LOGGER.info("%s_file: %d isolated atoms stay in the %s set", split, n, split)
                selected[split] = (own_selection, np.arange(len(own_selection)))
        warn_of_other_keys({f"data.{split}_file": found for split, found in labels.items()})
        result = self._assemble(selected)
        splits = {name: ShardSet(result / name) for name in SPLITS if (result / name).is_dir()}
        _check_edges(splits["train"])
        by_key = {f"{split}_file": found.numbers_by_key() for split, found in labels.items()}
        read = {key.name: ReadInput(key.keys[0], key.default) for key in data.inputs()}
        statistics = replace(self._statistics(splits, selection), label_keys=by_key, inputs=read)
        n_rejects = _write_rejects(result / REJECTS, summaries)
        statistics.write(result / FILE_NAME)
        if n_rejects:
            _log_rejects(summaries)
        geometries = {name: s.geometries[numbers] for name, (s, numbers) in selected.items()}
        warn_of_duplicates(splits, geometries)

    def _reading(
        self, trained: frozenset[int] | None = None, grouping: Grouping | None = None
    ) -> ReadSettings:
        settings = self.settings
        heads = [*files_by_head("data.train_file", settings.data.train_file)]
        return ReadSettings(
            folder=self.folder,
            keys=LabelKeys.of(settings.data),
            r_max=settings.r_max,
            structures_per_part=settings.structures_per_shard,
            float32=tuple(settings.float32),
            skip_invalid=settings.data.skip_invalid,
            require_energy=settings.data.require_energy,
            given=self.E0_sources.given(heads),
            trained=trained,
            grouping=grouping or Grouping(),
            inputs=settings.data.inputs(),
        )

    def _read(self, blocks: Sequence[FileBlock], reading: ReadSettings) -> list[BlockSummary]:
        """Read blocks of one split."""
        label = f"reading {blocks[0].split}_file"
        size = sum(block.size for block in blocks)
        with ProgressBar(label, size, counted="structures", log=True) as bar:
            sizes = {reading.key(block): block.size for block in blocks}
            mean = sum(sizes.values()) // max(len(sizes), 1)
            return self.pool.map(
                partial(read_block, reading=reading),
                blocks,
                lambda summary: bar.advance(mean, summary.n_structures),
            )

    def _n_single(self, selection: Selection) -> int:
        """Single periodic atoms without neighbours."""
        n = 0
        for source in selection.sources(np.arange(len(selection))):
            part = ShardSet(source.path.parent, files=[source.path])
            n += int(np.count_nonzero((part.n_atoms == 1) & (part.n_edges == 0)))
        return n

    def _split(self, selection: Selection, has_valid_file: bool) -> dict[str, NDArray[np.int64]]:
        """Numbers of the structures of train, and of valid if it is split off."""
        fraction = self.settings.data.valid_fraction
        if has_valid_file or fraction == 0:
            if not has_valid_file:
                LOGGER.info(
                    "no validation data: data.valid_fraction is 0 and there is no valid_file"
                )
            return {"train": np.arange(len(selection))}
        train, valid = selection.split(fraction, self.settings.seed)
        return {"train": train, **({"valid": valid} if len(valid) else {})}

    def _assemble(self, selected: dict[str, tuple[Selection, NDArray[np.int64]]]) -> Path:
        """Write the shards of all splits, in the folder that becomes the output."""
        settings, result = self.settings, self.folder / RESULT
        keys = [
            (s, [path.name for path in chosen.part_files], checksum_of(numbers))
            for s, (chosen, numbers) in selected.items()
        ]
        plan = fingerprint(keys, settings.structures_per_shard, asdict(self.storage))
        marker = self.folder / "plan.json"
        if not marker.exists() or json.loads(marker.read_text()) != plan:
            shutil.rmtree(result, ignore_errors=True)
            write_json(marker, plan)
        for split, (selection, numbers) in selected.items():
            (result / split).mkdir(parents=True, exist_ok=True)
            tasks = ShardTasks(
                result / split,
                selection,
                numbers,
                settings.structures_per_shard,
                settings.r_max,
                self.storage,
            )
            label = f"writing {split}"
            with ProgressBar(label, len(numbers), counted="structures", log=True) as bar:
                self.pool.map(write_task, tasks, lambda n: bar.advance(n, n))
        for leftover in result.rglob("*.partial"):  # of processes that were killed
            os.unlink(leftover)
        return result

    def _statistics(self, splits: dict[str, ShardSet], selection: Selection) -> Statistics:
        """E0s of every head, then the sums over all training shards."""
        train = splits["train"]
        paths = [header.path for header in train.headers]
        E0s: dict[str, tuple[dict[int, float], str]] = {}
        for head in train.heads:
            elements, source = selection.elements[head].elements, self.E0_sources.of(head)
            if source.source == "average":
                tasks = [FitTask(path, head, elements) for path in paths]
                fitted = self.pool.map(fit_task, tasks, lambda result: None)
                n_structures = sum(n for n, _ in fitted)
                values = fit_E0s([triangle for _, triangle in fitted], n_structures, elements)
            else:
                values = known_E0s(selection, self.E0_sources, head, elements)
            E0s[head] = (values, source.source)
        energies = {head: values for head, (values, _) in E0s.items()}
        measured = self.pool.map(
            measure_task, [MeasureTask(path, energies) for path in paths], lambda result: None
        )
        return statistics_from(merge(measured), splits, E0s)


def _write_rejects(path: Path, summaries: dict[str, list[BlockSummary]]) -> int:
    """Write one line per structure that was left out; their number."""
    lines = [
        json.dumps({"split": split, **reject})
        for split, parts in summaries.items()
        for summary in parts
        for reject in summary.rejects
    ]
    if lines:
        write_text(path, "\n".join(lines) + "\n")
    else:
        path.unlink(missing_ok=True)
    return len(lines)


def _log_rejects(summaries: dict[str, list[BlockSummary]]) -> None:
    for split, parts in summaries.items():
        reasons = Counter(str(reject["kind"]) for part in parts for reject in part.rejects)
        if reasons:
            listed = ", ".join(f"{n} {reason}" for reason, n in reasons.most_common())
            LOGGER.warning(
                "%s_file: %d invalid structures left out: %s; see %s",
                split,
                sum(reasons.values()),
                listed,
                REJECTS,
            )


def _check_edges(train: ShardSet) -> None:
    """InputError if no training structure has an edge."""
    if not train.n_edges.any():
        raise InputError(
            f"no two atoms of the {len(train)} training structures are closer than r_max="
            f"{train.r_max} Å; increase r_max, or check that positions are in Å"
        )


def _log_weightless(labels: LabelCounts, counted: dict[str, int]) -> None:
    """Log how many labels have no part in the statistics, as their weight is 0."""
    n_energies = labels.energy - counted["energy"]
    n_forces = labels.forces - counted["forces"]
    if n_energies or n_forces:
        LOGGER.info(
            "train: the energies of %d and the forces of %d structures have weight 0 and are left "
            "out of average E0s, mean and std of the energy, and RMS force",
            n_energies,
            n_forces,
        )


def _log_result(settings: PreprocessSettings) -> None:
    """Log what was written."""
    output = Path(settings.output)
    statistics = Statistics.read(output / FILE_NAME)
    energy, force = "no energies", "no forces"
    for name, split in statistics.splits.items():
        shards = ShardSet(output / name)
        labels = LabelCounts.of_shards(shards.rows(k) for k in range(shards.n_shards))
        LOGGER.info(
            "%s: %d structures, %d atoms, %d edges; %s",
            name,
            split.n_structures,
            split.n_atoms,
            split.n_edges,
            labels.summary(),
        )
        if name != "train":
            continue
        counted = {
            label: sum(int(counts_in(shards.rows(k), label).sum()) for k in range(shards.n_shards))
            for label in ("energy", "forces")
        }
        _log_weightless(labels, counted)
        if counted["energy"]:
            energy = (
                f"mean interaction energy per atom {statistics.mean_energy_per_atom:.6f} eV "
                "(energy less E0s over atoms, mean of the structures; std "
                f"{statistics.std_energy_per_atom:.6f})"
            )
        if counted["forces"]:
            force = f"RMS force {statistics.rms_forces:.6f} eV/Å"
    for head, of_head in statistics.heads.items():
        E0s = ", ".join(f"{chemical_symbols[z]} {E0:.6f}" for z, E0 in of_head.E0s.items())
        label = "" if list(statistics.heads) == ["Default"] else f"{head}: "
        LOGGER.info("%sE0s (%s, eV): %s", label, of_head.E0s_source, E0s)
    LOGGER.info("avg_num_neighbors %.4f, %s, %s", statistics.avg_num_neighbors, energy, force)
    LOGGER.info("written to %s", settings.output)
