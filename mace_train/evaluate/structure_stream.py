"""Structures of shards or files read in order, as often as needed, whatever their number.

Opening reads all of a file once, so that every fault is found before anything is computed; shards
are compared with statistics.json. Kept are some 30 bytes per structure (sizes, elements, types).
"""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from mace_train.balance.costs import ATOM_SLACK_PERCENT, UNLIMITED, ceil_div
from mace_train.checks import as_files
from mace_train.data.graph import Graph
from mace_train.data.input_values import check_inputs, input_values
from mace_train.data.labels import LabelReport
from mace_train.data.loading.loader import batches, collate
from mace_train.data.raw_structure import without_results
from mace_train.data.read import parsed_structures, read_structures
from mace_train.data.shards.shard_set import Sample, ShardSet, sample_of
from mace_train.data.statistics import FILE_NAME, Statistics, open_split
from mace_train.data.structure import (
    LOGGER,
    LabelKeys,
    Structure,
    is_isolated,
    names_in,
    structure_from_atoms,
)
from mace_train.errors import InputError
from mace_train.evaluate.element_sets import ElementSets, element_set, element_sets
from mace_train.folders import existing_folder
from mace_train.model.mace import MACE
from mace_train.settings import BatchingSettings, StructureSetSettings
from mace_train.settings.inputs import InputKey, InputSpec, input_keys, model_input_keys

StructureIds = NDArray[np.int64]
NO_LABELS = LabelKeys(energy="", forces="", stress="", virials="")


@dataclass(frozen=True)
class BatchLimits:
    """Atoms and edges of one batch; a structure with more is a batch of its own."""

    max_atoms: int
    max_edges: int

    @classmethod
    def of(cls, n_atoms: NDArray[np.integer[Any]], batching: BatchingSettings) -> "BatchLimits":
        """valid_batch_size mean structures of those with ``n_atoms`` [n], or as given."""
        total = int(n_atoms.sum(dtype=np.int64))
        size = ATOM_SLACK_PERCENT * batching.valid_batch_size
        derived = max(ceil_div(size * total, 100 * max(len(n_atoms), 1)), 1)
        return cls(batching.max_atoms or derived, batching.max_edges or UNLIMITED)


class StructureStream(Protocol):
    """A set of structures; ids are indices in it, and those that are asked for ascend."""

    title: str
    n_atoms: NDArray[np.int32]  # [n]
    elements: ElementSets  # [n, 2]
    isolated: NDArray[np.bool_]  # [n], see is_isolated
    config_types: list[str]  # [n]
    E0s: Mapping[str, Mapping[int, float]]  # eV, by head and atomic number; {} if not known

    def structures(self, ids: StructureIds) -> Iterator[Structure]:
        """The structures ``ids`` [n] with their labels."""
        ...

    def graphs(self, ids: StructureIds, model: MACE, limits: BatchLimits) -> Iterator[Graph]:
        """The structures ``ids`` [n] in batches for the model, on the CPU."""
        ...


def open_stream(
    settings: StructureSetSettings,
    keys: LabelKeys | None = None,
    model: MACE | None = None,
) -> StructureStream:
    """The set that the settings name.

    Args:
        settings: Which files or folder.
        keys: Names of the labels in files; None reads no labels.
        model: What they are for: its cutoff must be that of shards, and it takes their inputs.

    Raises:
        InputError: a file or structure that cannot be read, shards of another cutoff, inputs that
            the model does not take. What a ``check_named_set`` before it finds is not looked for.
    """
    files = as_files("structures", settings.structures)
    specs = () if model is None else model.inputs
    if settings.data_dir is None:
        given = settings.info_keys, settings.arrays_keys
        asked = input_keys(*given, None) if model is None else model_input_keys(specs, *given)
        return FileStream(files, keys, asked, specs)
    folder = existing_folder("data_dir", settings.data_dir)
    stream = ShardStream(folder, settings.split, settings.cluster.num_workers)
    if model is not None and stream.shards.r_max != model.data.r_max:
        r_max = model.data.r_max
        raise InputError(
            f"{folder} was preprocessed with r_max={stream.shards.r_max}, the model has "
            f"r_max={r_max}; preprocess with r_max={r_max}, or give the files as structures=..."
        )
    stream.shards.check_inputs(specs)
    return stream


class ShardStream:
    """One split of a folder that preprocess wrote; see ``StructureStream``."""

    def __init__(self, folder: Path, split: str, num_workers: int = 0) -> None:
        self.title = f"{folder}/{split}"
        self.shards: ShardSet = open_split(folder, split)
        heads = Statistics.read(folder / FILE_NAME).heads
        self.E0s: Mapping[str, Mapping[int, float]] = {h: heads[h].E0s for h in heads}
        self.num_workers = num_workers
        self.n_atoms = self.shards.n_atoms
        every = (self.shards.arrays(k) for k in range(self.shards.n_shards))
        self.elements = np.concatenate(
            [element_sets(arrays["numbers"], arrays["atom_offsets"]) for arrays in every]
        )
        self.isolated = self.n_atoms == 1
        for i in np.flatnonzero(self.isolated).tolist():
            self.isolated[i] = is_isolated(self.shards.sample(i).structure)
        self.config_types = self.shards.config_types

    def structures(self, ids: StructureIds) -> Iterator[Structure]:
        """The structures ``ids`` [n] with their labels."""
        return (self.shards.sample(i).structure for i in ids.tolist())

    def graphs(self, ids: StructureIds, model: MACE, limits: BatchLimits) -> Iterator[Graph]:
        """The structures ``ids`` [n] in batches for the model, on the CPU."""
        sizes = np.stack((self.n_atoms[ids], self.shards.n_edges[ids]), axis=1)
        return batches(
            self.shards,
            Runs(ids, sizes.astype(np.int64), limits),
            atomic_numbers=model.data.atomic_numbers,
            dtype=model.dtype,
            inputs=model.inputs,
            num_workers=self.num_workers,
        )


class FileStream:
    """Files that ASE reads; see ``StructureStream``."""

    def __init__(
        self,
        files: list[str],
        keys: LabelKeys | None,
        inputs: Sequence[InputKey] = (),
        specs: Sequence[InputSpec] = (),
    ) -> None:
        """Read all of them once, and log their labels if ``keys`` are given.

        ``inputs`` are read beside geometry and labels, for a model that takes ``specs``.
        """
        self.inputs = inputs
        self.title = ", ".join(files)
        self.files, self.keys = files, keys or NO_LABELS
        self.E0s: Mapping[str, Mapping[int, float]] = {}
        labels = LabelReport(self.keys)
        n_atoms, words, isolated = array("i"), array("Q"), bytearray()
        names: dict[str, str] = {}
        self.config_types: list[str] = []
        for structure in self._read(labels):
            check_inputs(specs, structure.inputs, structure.n_atoms, structure.source)
            n_atoms.append(structure.n_atoms)
            words.extend(element_set(structure.numbers.tolist()).tolist())
            isolated.append(is_isolated(structure))
            name = structure.config_type
            self.config_types.append(names.setdefault(name, name))
        if not n_atoms:
            raise InputError(f"structures={self.title} holds no structures; give a file that does")
        self.n_atoms = np.array(n_atoms, dtype=np.int32)
        self.elements = np.array(words, dtype=np.uint64).reshape(-1, 2)
        self.isolated = np.frombuffer(bytes(isolated), dtype=bool)
        labels.check_inputs(inputs, "structures")
        if keys is None:
            if inputs:
                labels.notes.log()
            LOGGER.info("structures: %d structures", len(self.n_atoms))
            return
        labels.check_given_keys("structures")
        labels.warn("structures")
        LOGGER.info("structures: %d structures; %s", len(self.n_atoms), labels.counts.summary())

    def structures(self, ids: StructureIds) -> Iterator[Structure]:
        """The structures ``ids`` [n] with their labels."""
        wanted = iter(ids.tolist())
        following = next(wanted, None)
        if following is None:
            return
        for i, structure in enumerate(self._read(LabelReport(self.keys))):
            if i == following:
                yield structure
                following = next(wanted, None)
                if following is None:
                    return
        raise InputError(
            f"structures={self.title}: structure {following} is no longer there; the files have "
            "changed since they were opened, start again"
        )

    def graphs(self, ids: StructureIds, model: MACE, limits: BatchLimits) -> Iterator[Graph]:
        """The structures ``ids`` [n] in batches for the model, on the CPU."""
        pending: list[Sample] = []
        numbers: list[int] = []
        n_atoms = n_edges = 0

        def batch() -> Graph:
            return collate(
                pending,
                np.array(numbers, dtype=np.int64),
                atomic_numbers=model.data.atomic_numbers,
                dtype=model.dtype,
                inputs=model.inputs,
            )

        for i, structure in zip(ids.tolist(), self.structures(ids), strict=True):
            sample = sample_of(structure, model.data.r_max)
            atoms, edges = structure.n_atoms, len(sample.edges.senders)
            full = n_atoms + atoms > limits.max_atoms or n_edges + edges > limits.max_edges
            if pending and full:
                yield batch()
                pending, numbers, n_atoms, n_edges = [], [], 0, 0
            pending.append(sample)
            numbers.append(i)
            n_atoms, n_edges = n_atoms + atoms, n_edges + edges
        if pending:
            yield batch()

    def _read(self, labels: LabelReport) -> Iterator[Structure]:
        if self.keys is not NO_LABELS:
            yield from read_structures(
                self.files, self.keys, require_energy=False, labels=labels, inputs=self.inputs
            )
            return
        for atoms, source in parsed_structures(self.files):
            structure = structure_from_atoms(
                without_results(atoms), NO_LABELS, source, labels.notes, require_energy=False
            )
            labels.names |= names_in(atoms) if self.inputs else set()
            values = input_values(atoms, self.inputs, source, labels.notes)
            yield structure if not self.inputs else replace(structure, inputs=values)


class Runs(Sequence[StructureIds]):
    """Ids [n] cut into runs, each as long as the limits allow; 8 bytes per run beside the ids."""

    def __init__(self, ids: StructureIds, sizes: NDArray[np.int64], limits: BatchLimits) -> None:
        """``sizes`` [n, 2] are the atoms and edges of the structures."""
        self._ids = ids
        ends = sizes.cumsum(axis=0)
        starts, first = array("q"), 0
        while first < len(ids):
            starts.append(first)
            before = ends[first - 1] if first else np.zeros(2, dtype=np.int64)
            last = min(
                int(np.searchsorted(ends[:, k], before[k] + limit, side="right"))
                for k, limit in enumerate((limits.max_atoms, limits.max_edges))
            )
            first = max(last, first + 1)
        self._bounds = np.append(np.array(starts, dtype=np.int64), len(ids))

    def __len__(self) -> int:
        """Number of runs."""
        return len(self._bounds) - 1

    @overload
    def __getitem__(self, index: int) -> StructureIds: ...
    @overload
    def __getitem__(self, index: slice) -> list[StructureIds]: ...
    def __getitem__(self, index: int | slice) -> StructureIds | list[StructureIds]:
        """The ids of one run, or of several."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"run {index} of {len(self)}")
        start = index % len(self)
        return self._ids[self._bounds[start] : self._bounds[start + 1]]
