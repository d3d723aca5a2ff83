"""Copies of a structure: they are told apart by a key, and those on two sides of a split are named.

Files of one data set often share frames, and trajectories repeat them. Two structures are copies
if their atoms and periodicity are the same, in the same order, and their positions and cells
agree within the rounding of a file (five decimals) or of float32; labels do not count, so one
geometry at two levels of theory is one geometry. Structures that are moved, rotated, wrapped into
the cell or numbered otherwise are not recognised.

A key holds a hash of what is discrete, and the projections of all coordinates on ``N_PROJECTIONS``
random unit vectors. Rounding changes a projection by as much as one coordinate, however many
there are, so copies agree in all of them within ``TOLERANCE``. Sums of coordinates, unlike
coordinates rounded to bins, have no borders that copies could lie on two sides of.
"""

import hashlib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from mace_train.data.shards.shard_set import ShardSet
from mace_train.data.structure import LOGGER, Structure

# Å, between projections: five standard deviations of the rounding of five decimals, 1e-5 / sqrt(12)
TOLERANCE = 1.5e-5
# one coordinate of 120 that differs by 1e-3 Å is within the tolerance in one of them with a
# probability of 0.13, in all with 5e-6; a structure of another shape with less than 1e-20
N_PROJECTIONS = 6
GEOMETRY_KEY = np.dtype([("discrete", "<u8"), ("projections", "<f8", (N_PROJECTIONS,))])
CELL = 1e-3  # Å, of two projections; wide next to the tolerance, so that few are in two cells
KEY_VERSION = 2  # of what geometry_key makes, in the names of finished blocks


def geometry_key(structure: Structure) -> bytes:
    """One GEOMETRY_KEY; ``geometries_of`` says which are of copies."""
    discrete = hashlib.blake2b(structure.numbers.astype(np.uint8).tobytes(), digest_size=8)
    discrete.update(structure.pbc.astype(np.uint8).tobytes())
    values = structure.positions.reshape(-1)
    if structure.pbc.any():
        values = np.concatenate([values, structure.cell.reshape(-1)])
    projections = _unit_vectors(len(values)) @ values.astype(np.float64)
    return discrete.digest() + projections.astype("<f8").tobytes()


@lru_cache(maxsize=64)
def _unit_vectors(n: int) -> NDArray[np.float64]:
    """[N_PROJECTIONS, n] fixed random unit vectors; the same with any version of numpy."""
    uniform = (np.random.PCG64(n).random_raw(N_PROJECTIONS * n) >> np.uint64(11)).astype(np.float64)
    vectors = (uniform * 2.0**-52 - 1.0).reshape(N_PROJECTIONS, n)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def geometries_of(keys: NDArray[np.void]) -> NDArray[np.int64]:
    """[n] number of the geometry of every structure, from its GEOMETRY_KEY [n].

    Copies, and copies of these, have equal numbers. Keys of equal hash are put into cells by two
    projections, and into the next cell, too, where they are close to it; in a cell, sorted by
    another projection, each is compared with those after it within the tolerance: O(n log n),
    and a step for each such pair.
    """
    columns = [keys["discrete"], *keys["projections"].T]
    order = np.lexsort(columns[::-1])
    is_new = _changes([column[order] for column in columns])
    discrete, *projections = (column[order[is_new]] for column in columns)
    labels = np.arange(len(discrete))
    for links in _links(discrete, projections, labels):
        graph = (np.ones(len(links), dtype=np.int8), (links[:, 0], links[:, 1]))
        n = len(labels)
        joined = connected_components(coo_array(graph, shape=(n, n)), directed=False)[1]
        labels[:] = joined[labels]
    found = np.empty(len(keys), dtype=np.int64)
    found[order] = labels[np.cumsum(is_new) - 1]
    return found


def _changes(columns: list[NDArray[Any]]) -> NDArray[np.bool_]:
    """[n] which rows of ``columns`` [n] differ from the one before; the first does."""
    changed = np.ones(len(columns[0]), dtype=bool)
    changed[1:] = False
    for column in columns:
        changed[1:] |= column[1:] != column[:-1]
    return changed


def _links(
    discrete: NDArray[np.uint64], projections: list[NDArray[np.float64]], labels: NDArray[np.int64]
) -> Iterator[NDArray[np.int64]]:
    """[k, 2] numbers in ``labels`` [n] of copies that are not known to be; the caller joins them.

    A few times n at once, so that many copies in one window need no memory for every pair.
    """
    key, cell = _cells(discrete, projections)
    pending: list[NDArray[np.int64]] = []
    n_pending, step = 0, 0
    first = np.arange(len(key))  # those of which a key so many steps on is in the window
    while len(first):
        step += 1
        first = first[: np.searchsorted(first, len(key) - step)]
        a, b = key[first], key[first + step]
        inside = cell[first] == cell[first + step]
        inside &= projections[0][b] - projections[0][a] <= TOLERANCE
        first, a, b = first[inside], a[inside], b[inside]
        for projection in projections[1:]:
            close = np.abs(projection[b] - projection[a]) <= TOLERANCE
            a, b = a[close], b[close]
        new = labels[a] != labels[b]
        if new.any():
            pending.append(np.stack([labels[a[new]], labels[b[new]]], axis=1))
            n_pending += len(pending[-1])
        if n_pending > len(discrete):
            yield np.concatenate(pending)
            pending, n_pending = [], 0
    if pending:
        yield np.concatenate(pending)


def _cells(
    discrete: NDArray[np.uint64], projections: list[NDArray[np.float64]]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Number of a key, and of its cell, [m] each, by cell and first projection."""
    key = np.arange(len(discrete))
    of_projections: list[NDArray[np.float64]] = []
    for projection in projections[1:3]:
        cell = np.floor(projection[key] / CELL)
        reached = np.floor((projection[key] + 2 * TOLERANCE) / CELL)
        again = np.flatnonzero(reached > cell)
        of_projections = [np.concatenate([other, other[again]]) for other in of_projections]
        of_projections.append(np.concatenate([cell, reached[again]]))
        key = np.concatenate([key, key[again]])
    columns = [discrete[key], *of_projections]
    order = np.lexsort([projections[0][key], *columns[::-1]])
    cells = np.cumsum(_changes([column[order] for column in columns]), dtype=np.int64)
    return key[order], cells


def warn_of_duplicates(
    splits: Mapping[str, ShardSet], keys: Mapping[str, NDArray[np.void]]
) -> None:
    """Log a warning for each split that shares structures with train; GEOMETRY_KEY [n] of each."""
    train = keys["train"]
    for name, keys_of_split in keys.items():
        if name == "train":
            continue
        geometries = geometries_of(np.concatenate([train, keys_of_split]))
        trained, held_out = geometries[: len(train)], geometries[len(train) :]
        shared = np.flatnonzero(np.isin(held_out, trained))
        if len(shared):
            original = np.flatnonzero(trained == held_out[shared[0]])
            LOGGER.warning(
                "%d of the %d structures of %s are in train, too (%s is %s): errors on them are "
                "those of structures that were trained on; take them out of one of the two",
                len(shared),
                len(held_out),
                name,
                _source(splits[name], int(shared[0])),
                _source(splits["train"], int(original[0])),
            )


def _source(shards: ShardSet, index: int) -> str:
    return shards.sample(index).structure.source
