"""``mace-train select``: a few structures of a large set, for the old head of a fine-tuning.

1. All structures are read and checked; those whose elements pass the filter are candidates.
2. Farthest-point sampling chooses n of them by their mean descriptors, or they are drawn at random.
3. They are written in the order of the set, with their labels or with those the model predicts
   (selected_structures.py).

The set is read from disk each time; in memory are its sizes and elements, and one row of float32
per candidate. selection_rank of a structure says in which order it was chosen.
"""

import logging
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mace_train.atomic_files import replaced
from mace_train.checks import as_files
from mace_train.data.statistics import FILE_NAME, Statistics
from mace_train.data.structure import LabelKeys
from mace_train.distributed.world import World, open_world
from mace_train.errors import InputError
from mace_train.evaluate.element_sets import (
    ElementSets,
    element_set,
    numbers_in,
    parsed_elements,
    passing,
    symbols_in,
)
from mace_train.evaluate.farthest_points import farthest_points, random_projection
from mace_train.evaluate.named_set import check_named_set
from mace_train.evaluate.selected_structures import (
    SelectedIds,
    isolated_atoms,
    selected_structures,
    write_structures,
)
from mace_train.evaluate.set_descriptors import check_elements, model_for, stream_descriptors
from mace_train.evaluate.structure_stream import (
    BatchLimits,
    FileStream,
    StructureIds,
    StructureStream,
    open_stream,
)
from mace_train.folders import make_folder, new_file
from mace_train.model.mace import MACE
from mace_train.model.surgery import one_head
from mace_train.progress import ProgressBar
from mace_train.settings import SelectSettings

LOGGER = logging.getLogger("mace_train")

FEWEST_COLUMNS = 16  # after a random projection: distances keep 18 %


def select(settings: SelectSettings) -> Path:
    """Write the file that the settings name; its path.

    Raises ``InputError`` before anything is computed: wrong settings, an output that is there or
    cannot be, a structure that cannot be read, no structure with such elements, or a candidate
    with an element that the model does not know.
    """
    output = new_file("output", settings.output, (".xyz", ".extxyz"))
    check_named_set("structures", settings.structures, settings.data_dir, settings.split)
    _check_model_is_given(settings)
    given = _given_elements(settings)
    with open_world(settings.cluster) as world:
        model = _model(settings, world)
        stream = open_stream(settings, _label_keys(settings), model)
        candidates = _candidates(stream, given, settings)
        if model is not None:
            check_elements(model, stream, candidates)
        make_folder("output", output.parent)
        chosen = _choose(stream, candidates, model, settings)
        limits = BatchLimits.of(stream.n_atoms[chosen.ids], settings.batching)
        with replaced(output) as unfinished, open(unfinished, "w", encoding="utf-8") as file:
            labels = model if settings.pseudolabels else None
            if settings.isolated_atoms:
                write_structures(file, isolated_atoms(stream, chosen.ids, labels))
            write_structures(file, selected_structures(stream, chosen, labels, limits))
    LOGGER.info("wrote %s: %d structures", output, len(chosen.ids))
    return output


def _check_model_is_given(settings: SelectSettings) -> None:
    if settings.checkpoint is not None:
        return
    if settings.pseudolabels:
        raise InputError("pseudolabels=true needs checkpoint=RUN, the model that predicts them")
    if settings.method == "farthest":
        raise InputError(
            "method=farthest needs checkpoint=RUN, the model whose descriptors are compared"
        )


def _model(settings: SelectSettings, world: World) -> MACE | None:
    """The model, of one head where it predicts labels; None where none is needed."""
    if settings.checkpoint is None:
        return None
    model = model_for(settings.checkpoint, settings, world)
    if not settings.pseudolabels:
        return model
    kernels = model.kernels
    model = one_head(model, settings.head).requires_grad_(False)
    model.kernels = kernels
    return model


def _label_keys(settings: SelectSettings) -> LabelKeys | None:
    """Names of the labels in files; None where these are not read."""
    if settings.pseudolabels:
        return None
    return LabelKeys(
        settings.energy_key, settings.forces_key, settings.stress_key, settings.virials_key
    )


def _given_elements(settings: SelectSettings) -> ElementSets | None:
    """[2] the elements to filter by; None takes all structures."""
    if settings.elements is not None:
        return element_set(parsed_elements("elements", settings.elements))
    files = as_files("elements_of", settings.elements_of)
    if not files:
        return None
    if len(files) == 1 and (Path(files[0]) / FILE_NAME).is_file():
        return element_set(Statistics.read(Path(files[0]) / FILE_NAME).atomic_numbers)
    return element_set(numbers_in(FileStream(files, None).elements))


def _candidates(
    stream: StructureStream, given: ElementSets | None, settings: SelectSettings
) -> StructureIds:
    """Ids of the structures to choose from: with the right elements, and no isolated atoms."""
    fits, by_elements = np.ones(len(stream.n_atoms), dtype=bool), ""
    if given is not None:
        fits = passing(stream.elements, given, settings.element_filter)
        by_elements = f", by elements {symbols_in(given)} ({settings.element_filter})"
    candidates = np.flatnonzero(fits & ~stream.isolated)
    n = int((~stream.isolated).sum())
    what = f"{stream.title}: {len(candidates):,} of {n:,} structures to choose from{by_elements}"
    if not len(candidates):
        raise InputError(
            f"{what}; the set has {symbols_in(stream.elements)}; give other elements, or another "
            "element_filter"
        )
    LOGGER.info("%s", what)
    if settings.n > len(candidates):
        LOGGER.warning(
            "n=%d, but there are only %d structures to choose from: all of them are taken",
            settings.n,
            len(candidates),
        )
    return candidates


def _choose(
    stream: StructureStream, candidates: StructureIds, model: MACE | None, settings: SelectSettings
) -> SelectedIds:
    n = min(settings.n, len(candidates))
    if settings.method == "random" or model is None:
        order = np.random.default_rng(settings.seed).permutation(len(candidates))[:n]
    else:
        points = _points(stream, candidates, model, settings)
        bar = ProgressBar("choose", n, log=True, counted="structures")
        with bar:
            order, distances = farthest_points(
                points,
                n,
                settings.seed,
                n_threads=torch.get_num_threads(),
                advance=lambda: bar.advance(1, 1),
            )
        _log_distances(distances, n, settings.n)
    ids = candidates[order]
    ascending = np.argsort(ids)
    return SelectedIds(ids[ascending], ascending)


def _log_distances(distances: NDArray[np.float64], n: int, wanted: int) -> None:
    if len(distances) < n:
        LOGGER.warning(
            "n=%d, but only %d structures have descriptors of their own: the others are equal to "
            "a chosen one and are left out",
            wanted,
            len(distances),
        )
    if len(distances) > 1:
        LOGGER.info(
            "distances between descriptors: %.3g for the second structure, %.3g for the last",
            distances[1],
            distances[-1],
        )


def _points(
    stream: StructureStream, candidates: StructureIds, model: MACE, settings: SelectSettings
) -> NDArray[np.float32]:
    """Mean descriptors [n_candidates, n_columns] or, where these need more memory, a projection."""
    limits = BatchLimits.of(stream.n_atoms[candidates], settings.batching)
    batches = stream_descriptors(model, stream, candidates, limits, num_layers=settings.num_layers)
    points = np.empty((0, 0), dtype=np.float32)
    projection: NDArray[np.float32] | None = None
    done = 0
    for batch in batches:
        if not done:
            n_columns = batch.mean.shape[1]
            n_kept = columns_that_fit(len(candidates), n_columns, settings.max_memory_gb)
            if n_kept < n_columns:
                projection = random_projection(n_columns, n_kept, settings.seed)
            points = np.empty((len(candidates), n_kept), dtype=np.float32)
        rows = batch.mean.astype(np.float32)
        end = done + len(rows)
        points[done:end] = rows if projection is None else rows @ projection
        done = end
    return points


def columns_that_fit(n: int, n_columns: int, max_memory_gb: float) -> int:
    """How many float32 columns of ``n`` rows fit into memory, at most all; logged if fewer.

    Raises ``InputError`` where too few are left to tell structures apart.
    """
    n_kept = min(n_columns, int(max_memory_gb * 1e9 / (4 * n)))
    if n_kept == n_columns:
        return n_columns
    needed = 4 * n * n_columns / 1e9
    if n_kept < min(FEWEST_COLUMNS, n_columns):
        least = 4 * n * min(FEWEST_COLUMNS, n_columns) / 1e9
        raise InputError(
            f"max_memory_gb={max_memory_gb}: descriptors of {n:,} structures need {needed:.3g} GB "
            f"and a random projection at least {least:.3g} GB; give max_memory_gb={least:.3g} or "
            "more, fewer structures (elements=[...]), or method=random"
        )
    LOGGER.warning(
        "descriptors of %s structures need %.3g GB, max_memory_gb=%g: a random projection from %d "
        "to %d columns is used, which keeps distances to about %.0f %%",
        f"{n:,}",
        needed,
        max_memory_gb,
        n_columns,
        n_kept,
        100 / np.sqrt(2 * n_kept),
    )
    return n_kept
