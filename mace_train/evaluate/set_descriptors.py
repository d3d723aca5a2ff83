"""Descriptors of a set of structures, batch after batch; memory does not grow with the set."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols
from numpy.typing import NDArray

from mace_train.data.graph import Graph
from mace_train.data.loading.loader import SampleSource, batches
from mace_train.data.loading.packed import on_device
from mace_train.distributed.world import World
from mace_train.errors import InputError
from mace_train.evaluate.element_sets import element_set, numbers_in
from mace_train.evaluate.structure_stream import (
    BatchLimits,
    Runs,
    StructureIds,
    StructureStream,
)
from mace_train.model.mace import MACE
from mace_train.model.node_features import check_num_layers, node_descriptors
from mace_train.ops.backends import backend_of
from mace_train.progress import ProgressBar
from mace_train.settings import BatchingSettings, StructureSetSettings
from mace_train.train.build_model import choose_kernels
from mace_train.train.checkpoint import load_model


@dataclass(frozen=True)
class DescriptorBatch:
    """Descriptors of the next structures of a set."""

    ids: StructureIds  # [n_structures]
    n_atoms: NDArray[np.int64]  # [n_structures]
    numbers: NDArray[np.uint8]  # [n_atoms] atomic numbers
    atoms: NDArray[Any]  # [n_atoms, n_columns], in the model's dtype
    mean: NDArray[Any]  # [n_structures, n_columns] over the atoms of each structure
    irreps: tuple[str, ...]  # columns of every layer, see model/node_features.py


def model_for(checkpoint: str, settings: StructureSetSettings, world: World) -> MACE:
    """The model of a checkpoint on the device, without gradients of its weights.

    Raises ``InputError`` for a checkpoint that cannot be read, or layers that it does not have.
    """
    dtype = settings.default_dtype
    model = load_model(Path(checkpoint), None if dtype is None else getattr(torch, dtype))[0]
    check_num_layers(model, settings.num_layers)
    model.to(world.device)
    choose_kernels(model, settings.cluster, world)
    return model.requires_grad_(False)


def stream_descriptors(
    model: MACE,
    stream: StructureStream,
    ids: StructureIds,
    limits: BatchLimits,
    *,
    invariants_only: bool = True,
    num_layers: int = -1,
    show_progress: bool = True,
) -> Iterator[DescriptorBatch]:
    """Descriptors of the structures ``ids`` [n] (ascending) of a set, in order.

    Raises:
        InputError: at once, for layers that the model does not have, or elements that it does not
            know.

    >>> from mace_train.distributed.world import open_world
    >>> from mace_train.evaluate.structure_stream import ShardStream
    >>> from mace_train.settings import ClusterSettings
    >>> stream = ShardStream(Path("prepared"), "train")
    >>> with open_world(ClusterSettings(device="cpu")) as world:
    ...     model = model_for("runs/first", StructureSetSettings(data_dir="prepared"), world)
    >>> every = np.arange(len(stream.n_atoms))
    >>> found = stream_descriptors(model, stream, every, BatchLimits(1000, 100_000))
    >>> sum(len(batch.mean) for batch in found) == len(every)
    True
    """
    check_num_layers(model, num_layers)
    check_elements(model, stream, ids)
    graphs = stream.graphs(ids, model, limits)
    bar = ProgressBar(
        "descriptors", len(ids), enabled=show_progress, counted="structures", log=show_progress
    )
    return _batches(model, graphs, bar, invariants_only, num_layers)


def mean_descriptors(
    model: MACE, source: SampleSource, ids: StructureIds, batching: BatchingSettings
) -> NDArray[np.float64]:
    """Mean invariant descriptors [n, n_columns] of the structures ``ids`` [n] of a source."""
    sizes = np.stack((source.n_atoms[ids], source.n_edges[ids]), axis=1).astype(np.int64)
    graphs = batches(
        source,
        Runs(ids, sizes, BatchLimits.of(sizes[:, 0], batching)),
        atomic_numbers=model.data.atomic_numbers,
        dtype=model.dtype,
        inputs=model.inputs,
    )
    bar = ProgressBar("descriptors", len(ids), counted="structures", log=True)
    means = [batch.mean for batch in _batches(model, graphs, bar, True, -1)]
    return np.concatenate(means).astype(np.float64)


def check_elements(model: MACE, stream: StructureStream, ids: StructureIds) -> None:
    """InputError that names the first structure with an element that the model does not know."""
    known = element_set(model.data.atomic_numbers)
    unknown = (stream.elements[ids] & ~known).any(axis=1)
    if not unknown.any():
        return
    missing = numbers_in(stream.elements[ids][unknown] & ~known)
    (first,) = stream.structures(ids[unknown][:1])
    raise InputError(
        f"{first.source}: the model does not know "
        f"{', '.join(f'{chemical_symbols[z]} ({z})' for z in missing)}, which "
        f"{int(unknown.sum()):,} of {len(ids):,} structures have, only "
        f"{', '.join(chemical_symbols[z] for z in model.data.atomic_numbers)}; leave these "
        "structures out (mace-train select: elements=[...]), or take a model that was trained on "
        "such data"
    )


def _batches(
    model: MACE,
    graphs: Iterable[Graph],
    bar: ProgressBar,
    invariants_only: bool,
    num_layers: int,
) -> Iterator[DescriptorBatch]:
    numbers = np.array(model.data.atomic_numbers, dtype=np.uint8)
    backend = backend_of(model.kernels, model.E0s.device)
    with bar:
        for graph in graphs:
            on_cpu = graph
            graph = on_device(graph, model.E0s.device)
            found = node_descriptors(
                model, graph, invariants_only=invariants_only, num_layers=num_layers
            )
            counts = graph.n_atoms_of_graph.to(found.values.dtype).unsqueeze(1)
            sums = backend.sum_rows(
                found.values, graph.graph_of_atom, graph.n_graphs, ascending=True
            )
            yield DescriptorBatch(
                on_cpu.ids.numpy(),
                on_cpu.n_atoms_of_graph.numpy(),
                numbers[on_cpu.elements.numpy()],
                found.values.cpu().numpy(),
                (sums / counts).cpu().numpy(),
                found.irreps,
            )
            bar.advance(graph.n_graphs, graph.n_graphs)
