"""Selection of structures from finished blocks: isolated atoms, elements, heads, the split."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mace_train.data.e0s import REMEDY, E0Sources, IsolatedAtoms, check_covered
from mace_train.data.labels import LabelReport, keys_in_words
from mace_train.data.preprocess.duplicates import GEOMETRY_KEY, geometries_of
from mace_train.data.preprocess.file_blocks import FileBlock
from mace_train.data.preprocess.groups import KEY_BYTES, groups_of, log_groups
from mace_train.data.preprocess.read_block import BlockSummary, ReadSettings, part_paths
from mace_train.data.preprocess.split import ElementSets, split_heads
from mace_train.data.structure import LOGGER, LabelKeys
from mace_train.errors import InputError
from mace_train.settings import DataSettings


@dataclass(frozen=True)
class SelectedRows:
    """A part file and which of its structures are taken."""

    path: Path
    rows: NDArray[np.int32]


class Selection:
    """Structures of finished blocks, in order; number i is the i-th that is kept."""

    def __init__(
        self,
        blocks: Sequence[FileBlock],
        summaries: Sequence[BlockSummary],
        reading: ReadSettings,
        *,
        drop_isolated: bool,
    ) -> None:
        self.summaries = summaries
        self.isolated: dict[str, IsolatedAtoms] = {}
        self.n_isolated = 0
        self.elements: dict[str, ElementSets] = {}  # by head
        self._setting = reading.grouping.setting
        kept: list[NDArray[np.bool_]] = []
        heads: list[NDArray[np.int32]] = []
        self.heads: list[str] = []
        self._sources: list[SelectedRows] = []
        for block, summary in zip(blocks, summaries, strict=True):
            self._add_isolated(summary)
            keep = np.ones(summary.n_structures, dtype=bool)
            if drop_isolated:
                keep[summary.isolated] = False
            heads.append(self._add_kept(summary, keep))
            kept.append(keep)
            paths = part_paths(reading.folder, reading.key(block), len(summary.sizes))
            ends = np.cumsum(summary.sizes)
            for path, end, size in zip(paths, ends, summary.sizes, strict=True):
                rows = np.flatnonzero(keep[end - size : end]).astype(np.int32)
                self._sources.append(SelectedRows(path, rows))
        self._head_of = np.concatenate([np.zeros(0, dtype=np.int32), *heads])
        counts = [len(source.rows) for source in self._sources]
        self._starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self.geometries = _kept_keys(summaries, "geometries", kept, GEOMETRY_KEY)
        group_key = np.dtype(f"<u{KEY_BYTES}")
        self._groups = _kept_keys(summaries, "groups", kept, group_key) if self._setting else None

    def _add_isolated(self, summary: BlockSummary) -> None:
        for head, element, energy, source in summary.isolated_atoms:
            self.isolated.setdefault(head, IsolatedAtoms()).add(element, energy, source)
            self.n_isolated += 1

    def _add_kept(self, summary: BlockSummary, keep: NDArray[np.bool_]) -> NDArray[np.int32]:
        """The head of every structure that is kept; its elements are noted."""
        known = []
        for head in summary.heads:
            if head not in self.heads:
                self.heads.append(head)
            known.append(self.heads.index(head))
        for index in np.flatnonzero(keep).tolist():
            head = summary.heads[summary.head[index]]
            elements = self.elements.setdefault(head, ElementSets())
            elements.add_set(summary.element_sets[summary.element_set[index]])
        return np.array([known[i] for i in summary.head], dtype=np.int32)[keep]

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def part_files(self) -> list[Path]:
        """The files that structures come from."""
        return [source.path for source in self._sources]

    @property
    def all_elements(self) -> list[int]:
        """Sorted atomic numbers of all heads."""
        return sorted({z for sets in self.elements.values() for z in sets.elements})

    def split(self, fraction: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Ascending numbers [n_train] and [n_valid]; each head is split on its own.

        Copies of a structure, and groups that the settings ask for, are on one side.
        """
        heads = [
            (head, np.flatnonzero(self._head_of == self.heads.index(head)), sets)
            for head, sets in self.elements.items()
        ]
        geometries = geometries_of(self.geometries)
        groups = groups_of(geometries, self._groups)
        log_groups(geometries, self._groups, groups, self._setting)
        return split_heads(heads, groups, fraction, seed)

    def sources(self, numbers: NDArray[np.int64]) -> list[SelectedRows]:
        """Part files and rows of the structures ``numbers`` [n], which ascend."""
        of = np.searchsorted(self._starts, numbers, side="right") - 1
        return [
            SelectedRows(
                self._sources[k].path,
                self._sources[k].rows[numbers[of == k] - self._starts[k]],
            )
            for k in np.unique(of).tolist()
        ]


def _kept_keys(
    summaries: Sequence[BlockSummary],
    name: str,
    kept: Sequence[NDArray[np.bool_]],
    key: np.dtype[Any],
) -> NDArray[Any]:
    """[n] keys of the structures that are kept, in order; their text, the larger part, goes."""
    parts = [np.zeros(0, dtype=key)]
    for summary, keep in zip(summaries, kept, strict=True):
        parts.append(np.frombuffer(bytes.fromhex(getattr(summary, name)), dtype=key)[keep])
        setattr(summary, name, "")
    return np.concatenate(parts)


def check_training(
    selection: Selection, data: DataSettings, E0_sources: E0Sources, n_single: int, r_max: float
) -> None:
    """Log isolated atoms; InputError without structures to train on or without E0s.

    ``n_single`` counts single periodic atoms without neighbours, which may be meant as isolated.
    """
    n_isolated = selection.n_isolated
    if n_isolated:
        use = "used for E0s" if data.E0s is None else "not used for E0s (data.E0s sets them)"
        kept = "and kept for training" if data.keep_isolated_atoms else "not trained on"
        LOGGER.info("train_file: %d isolated atoms, %s, %s", n_isolated, use, kept)
    if len(selection) == 0:
        raise InputError(
            f"data.train_file={data.train_file} holds only isolated atoms "
            f"({n_isolated}); give structures to train on"
        )
    for head, sets in sorted(selection.elements.items()):
        source = E0_sources.of(head)
        of_head = "" if head == "Default" else f" of the head {head}"
        if source.source == "isolated" and head not in selection.isolated:
            hint = (
                f", but {n_single} single periodic atoms without neighbours within r_max={r_max} "
                "Å: config_type=IsolatedAtom marks them as isolated"
                if n_single
                else ""
            )
            raise InputError(
                f"data.train_file holds no isolated atoms{of_head} to take E0s from{hint}; {REMEDY}"
            )
        if source.source != "average":
            known_E0s(selection, E0_sources, head, sets.elements)


def known_E0s(
    selection: Selection, E0_sources: E0Sources, head: str, elements: list[int]
) -> dict[int, float]:
    """The E0s of ``elements`` where no fit makes them."""
    given = E0_sources.of(head).given
    if given is not None:
        remedy = "add it there, or set data.E0s=average"
        return check_covered(given, elements, "data.E0s", remedy=remedy)
    isolated = selection.isolated[head].E0s
    return check_covered(isolated, elements, "isolated atoms of data.train_file")


def report_labels(summaries: Sequence[BlockSummary], data: DataSettings, split: str) -> LabelReport:
    """The labels of one split, logged; InputError for a key that no structure of train has."""
    keys = LabelKeys.of(data)
    labels = LabelReport(keys)
    for summary in summaries:
        labels.merge(LabelReport.of_content(keys, summary.labels))
    where = f"data.{split}_file"
    if split == "train":
        labels.check_given_keys(where)
        labels.check_inputs(data.inputs(), where)
    LOGGER.info("%s: labels by key: %s", where, keys_in_words(labels.numbers_by_key()))
    labels.warn(where)
    labels.log_partial_stress(where)
    return labels
