"""``mace-train descriptors``: a set of structures -> an HDF5 file with their descriptors.

    mean           [n, n_columns]   over the atoms of each structure, in the model's dtype
    n_atoms        [n]              int32
    config_type    [n]              int32, index into config_type_names
    config_type_names               UTF-8
    atoms          [sum(n_atoms), n_columns]   with per_atom=true, structure after structure
    numbers        [sum(n_atoms)]   uint8 atomic numbers, with per_atom=true

Structures stand in the order of the set. Attributes of the file: format, format_version,
checkpoint, structures (where they are from), invariants_only, and irreps, a JSON list with the
columns of every layer (see model/node_features.py).
"""

import json
import logging
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import h5py
import numpy as np

from mace_train.atomic_files import replaced
from mace_train.distributed.world import open_world
from mace_train.evaluate.array_file import ArrayFile, RowArray
from mace_train.evaluate.named_set import check_named_set
from mace_train.evaluate.set_descriptors import DescriptorBatch, model_for, stream_descriptors
from mace_train.evaluate.structure_stream import BatchLimits, StructureStream, open_stream
from mace_train.folders import make_folder, new_file
from mace_train.settings import DescriptorsSettings

LOGGER = logging.getLogger("mace_train")

FORMAT = "mace-train descriptors"
FORMAT_VERSION = 1


def descriptors(settings: DescriptorsSettings) -> Path:
    """Write the file that the settings name; its path.

    Raises ``InputError`` before anything is computed: an output that is there or cannot be, or a
    structure that cannot be read or has an element that the model does not know.
    """
    output = new_file("output", settings.output, (".h5", ".hdf5"))
    check_named_set("structures", settings.structures, settings.data_dir, settings.split)
    with open_world(settings.cluster) as world:
        model = model_for(settings.checkpoint, settings, world)
        stream = open_stream(settings, model=model)
        batches = stream_descriptors(
            model,
            stream,
            np.arange(len(stream.n_atoms)),
            BatchLimits.of(stream.n_atoms, settings.batching),
            invariants_only=settings.invariants_only,
            num_layers=settings.num_layers,
        )
        make_folder("output", output.parent)
        with replaced(output) as unfinished:
            n_columns = _write(unfinished, stream, batches, settings)
    LOGGER.info("wrote %s: %d structures, %d columns", output, len(stream.n_atoms), n_columns)
    return output


def _write(
    path: Path,
    stream: StructureStream,
    batches: Iterator[DescriptorBatch],
    settings: DescriptorsSettings,
) -> int:
    """Write the file; its number of columns."""
    n, total = len(stream.n_atoms), int(stream.n_atoms.sum(dtype=np.int64))
    names, types = np.unique(np.asarray(stream.config_types, dtype=str), return_inverse=True)
    first = next(batches)
    columns, dtype = first.mean.shape[1], first.mean.dtype
    arrays = {
        "n_atoms": stream.n_atoms,
        "config_type": types.reshape(-1).astype(np.int32),
        "config_type_names": np.array(names.tolist(), dtype=h5py.string_dtype()),
    }
    rows = {"mean": RowArray((n, columns), dtype)}
    if settings.per_atom:
        rows["atoms"] = RowArray((total, columns), dtype)
        rows["numbers"] = RowArray((total,), np.dtype(np.uint8))
    attributes = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "checkpoint": settings.checkpoint,
        "structures": stream.title,
        "invariants_only": settings.invariants_only,
        "irreps": json.dumps(list(first.irreps)),
    }
    with ArrayFile(path, arrays, rows, attributes) as file:
        for batch in chain([first], batches):
            for name in rows:
                file.append(name, getattr(batch, name))
    return int(columns)
