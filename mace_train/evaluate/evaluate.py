"""``mace-train evaluate``: a checkpoint on labelled structures -> errors, plots, predictions.

Structures come from a preprocessed folder or from any file ASE reads. They are packed into bins
like in training, so one large structure or many small ones both fill a step; over several ranks
every structure is evaluated exactly once.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mace_train.balance.costs import Costs
from mace_train.checks import as_files, check_head
from mace_train.data.input_values import check_inputs
from mace_train.data.labels import LabelReport
from mace_train.data.loading.loader import (
    ConfigTypes,
    Inputs,
    SampleSource,
    batches,
    config_types_of,
    heads_of,
)
from mace_train.data.loading.packed import on_device
from mace_train.data.read import read_structures
from mace_train.data.shards.arrays import Sample
from mace_train.data.shards.batch import Batch
from mace_train.data.shards.shard_set import sample_of
from mace_train.data.statistics import open_split
from mace_train.data.structure import LabelKeys, is_isolated
from mace_train.distributed.world import World, open_world
from mace_train.errors import InputError
from mace_train.evaluate.named_set import check_named_set
from mace_train.evaluate.parity_plot import Predicted
from mace_train.evaluate.results import write_report
from mace_train.folders import existing_folder, make_folder
from mace_train.model.derivatives import Prediction, predict
from mace_train.model.mace import MACE, ModelData
from mace_train.progress import ProgressBar
from mace_train.settings import EvaluateSettings, PredictionSettings
from mace_train.settings.inputs import model_input_keys
from mace_train.train.build_model import choose_kernels
from mace_train.train.checkpoint import load_model
from mace_train.train.metrics import ErrorSums
from mace_train.train.validation import evaluation_bins

LOGGER = logging.getLogger("mace_train")


@dataclass
class SamplesInMemory:
    """Structures read from files, with the interface of a ShardSet."""

    samples: list[Sample]

    @property
    def n_atoms(self) -> NDArray[np.int64]:
        """[n] atoms of every structure."""
        return np.array([len(s.structure.numbers) for s in self.samples], dtype=np.int64)

    @property
    def n_edges(self) -> NDArray[np.int64]:
        """[n] edges of every structure."""
        return np.array([len(s.edges.senders) for s in self.samples], dtype=np.int64)

    @property
    def config_types(self) -> list[str]:
        """[n] config_type of every structure."""
        return [s.structure.config_type for s in self.samples]

    @property
    def head_of(self) -> list[str]:
        """[n] head of every structure."""
        return [s.structure.head for s in self.samples]

    @property
    def has_stress(self) -> NDArray[np.bool_]:
        """[n] whether a structure has a stress label."""
        return np.array([s.structure.stress is not None for s in self.samples], dtype=bool)

    def __len__(self) -> int:
        """Number of structures."""
        return len(self.samples)

    def batch(self, ids: NDArray[np.int64]) -> Batch:
        """The structures ``ids`` [n] as one set of arrays."""
        return Batch.of_samples([self.samples[i] for i in ids.tolist()])

    def sample(self, index: int) -> Sample:
        """One structure with its edges."""
        return self.samples[index]


@dataclass(frozen=True)
class Evaluated:
    """A model's errors and predictions on a set of structures."""

    table: list[dict[str, Any]]  # see train/metrics.py
    predicted: dict[int, Predicted]  # by structure, on rank 0
    source: SampleSource
    heads: NDArray[np.int64]  # [n_structures] of the model
    model: ModelData


def evaluate(settings: EvaluateSettings) -> list[dict[str, Any]]:
    """The error table (see train/metrics.py) of a checkpoint; writes the report on rank 0."""
    with open_world(settings.cluster) as world:
        done = evaluated(settings.checkpoint, settings, world, Path(settings.output))
        if world.is_main:
            write_report(done.table, done.predicted, done.source, done.heads, settings, done.model)
        return done.table


def evaluated(
    checkpoint: str | Path,
    settings: PredictionSettings,
    world: World,
    output: Path | None = None,
) -> Evaluated:
    """The checkpoint's errors and predictions on the structures that the settings name.

    A folder ``output`` is made (rank 0) after all checks and before anything is predicted.
    Raises ``InputError`` for a checkpoint that cannot be read, or structures it does not fit.

    >>> from mace_train.settings import ClusterSettings
    >>> cpu = ClusterSettings(device="cpu", kernels="reference")
    >>> settings = PredictionSettings(data_dir="prepared", cluster=cpu)
    >>> with open_world(cpu) as world:
    ...     done = evaluated("runs/first", settings, world)
    >>> done.table[0]["name"]
    'all'
    >>> len(done.predicted) == len(done.source)
    True
    """
    check_named_set("test_file", settings.test_file, settings.data_dir, settings.split)
    dtype = None if settings.default_dtype is None else getattr(torch, settings.default_dtype)
    model, header = load_model(Path(checkpoint), dtype)
    model = model.to(world.device)
    choose_kernels(model, settings.cluster, world)
    dtype = dtype or getattr(torch, header["default_dtype"])
    source = open_source(settings, model.data.r_max, model.inputs)
    for i in range(len(source)):
        structure = source.sample(i).structure
        model.data.check_elements(structure.numbers, structure.source)
        check_inputs(model.inputs, structure.inputs, structure.n_atoms, structure.source)
    heads = chosen_heads(source, settings, model.data)
    if output is not None and world.is_main:
        make_folder("output", output)
    errors, predicted = _predict_all(model, source, heads, settings, world, dtype)
    return Evaluated(errors.table(), predicted, source, heads, model.data)


def open_source(settings: PredictionSettings, r_max: float, inputs: Inputs = ()) -> SampleSource:
    """The structures that the settings name, with neighbour lists for ``r_max``.

    Files are read with the ``inputs`` of the model too; shards hold those that were read for them.
    """
    files = as_files("test_file", settings.test_file)
    if settings.data_dir is not None:
        folder = existing_folder("data_dir", settings.data_dir)
        shards = open_split(folder, settings.split)
        if shards.r_max != r_max:
            raise InputError(
                f"{folder} was preprocessed with r_max={shards.r_max}, the model has "
                f"r_max={r_max}; preprocess with r_max={r_max}, or evaluate with test_file=..."
            )
        return shards
    keys = LabelKeys.of(settings)
    labels = LabelReport(keys)
    asked = model_input_keys(inputs, settings.info_keys, settings.arrays_keys)
    structures = list(
        read_structures(files, keys, require_energy=False, labels=labels, inputs=asked)
    )
    if not structures:
        raise InputError(f"test_file={', '.join(files)} holds no structures")
    labels.check_given_keys("test_file")
    labels.check_inputs(asked, "test_file")
    labels.warn("test_file")
    labels.log_partial_stress("test_file")
    LOGGER.info("test_file: %d structures; %s", len(structures), labels.counts.summary())
    n_single = sum(is_isolated(structure) for structure in structures)
    if n_single:
        LOGGER.info("%d isolated atoms are among them and count in the errors", n_single)
    return SamplesInMemory([sample_of(structure, r_max) for structure in structures])


def chosen_heads(
    source: SampleSource, settings: PredictionSettings, data: ModelData
) -> NDArray[np.int64]:
    """[n] head of the model for every structure: the one of the settings, or its own."""
    names = data.head_names
    if settings.head is None:
        return heads_of(source, names, "evaluate (head=NAME takes one head for all structures)")
    check_head("head", settings.head, names)
    return np.full(len(source), names.index(settings.head), dtype=np.int64)


def _predict_all(
    model: MACE,
    source: SampleSource,
    heads: NDArray[np.int64],
    settings: PredictionSettings,
    world: World,
    dtype: torch.dtype,
) -> tuple[ErrorSums, dict[int, Predicted]]:
    """(errors over all ranks, predictions by structure on rank 0)."""
    config_types = config_types_of(source)
    costs = Costs(source.n_atoms.astype(np.int64), source.n_edges.astype(np.int64))
    bins = evaluation_bins(costs, settings.batching, world)
    numbers, names = model.data.atomic_numbers, model.data.head_names
    errors = ErrorSums(config_types.names, numbers, world.device, names)
    graphs = batches(
        source,
        bins,
        atomic_numbers=numbers,
        dtype=dtype,
        heads=heads,
        inputs=model.inputs,
        num_workers=settings.cluster.num_workers,
    )
    predicted: dict[int, Predicted] = {}
    bar = ProgressBar("evaluate", len(bins), enabled=world.is_main)
    for graph in bar.over(graphs):
        graph = on_device(graph, world.device)
        prediction = predict(model, graph, stress=True, create_graph=False)
        _add(errors, prediction, graph, config_types)
        predicted |= _split(prediction, graph.ids.tolist(), graph.n_atoms_of_graph.tolist())
    errors.sums = world.sum(errors.sums)
    of_ranks = world.gather(_arrays(predicted))
    return errors, {i: value for arrays in of_ranks for i, value in _by_id(*arrays).items()}


def _add(errors: ErrorSums, prediction: Prediction, graph: Any, config_types: ConfigTypes) -> None:
    index = config_types.index_of[graph.ids.cpu()].to(graph.ids.device)
    errors.add(prediction, graph, index)


def _split(prediction: Prediction, ids: list[int], n_atoms: list[int]) -> dict[int, Predicted]:
    """Per structure id: energy, forces and stress as numpy arrays."""
    assert prediction.forces is not None
    assert prediction.stress is not None
    energies, forces, stresses = (
        value.detach().cpu().double().numpy()
        for value in (prediction.energy, prediction.forces, prediction.stress)
    )
    return _by_id(np.array(ids), np.array(n_atoms), energies, forces, stresses)


def _arrays(predicted: dict[int, Predicted]) -> tuple[NDArray[Any], ...]:
    """What ``_by_id`` makes ``predicted`` of again, to be sent."""
    values = list(predicted.values())
    return (
        np.array([*predicted], np.int64),
        np.array([len(value.forces) for value in values], np.int64),
        np.array([value.energy for value in values]),
        np.concatenate([np.empty((0, 3)), *(value.forces for value in values)]),
        np.array([value.stress for value in values]).reshape(-1, 3, 3),
    )


def _by_id(
    ids: NDArray[Any],
    n_atoms: NDArray[Any],
    energies: NDArray[np.float64],
    forces: NDArray[np.float64],
    stresses: NDArray[np.float64],
) -> dict[int, Predicted]:
    """Predictions by structure id: energies [n], forces [sum(n_atoms), 3], stresses [n, 3, 3]."""
    parts = np.split(forces, np.cumsum(n_atoms)[:-1]) if len(ids) else []
    return {
        i: Predicted(energy, part, stress)
        for i, energy, part, stress in zip(
            ids.tolist(), energies.tolist(), parts, stresses, strict=True
        )
    }
