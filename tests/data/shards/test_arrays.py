"""The arrays of a shard: what they hold, their checksums, and parts joined to another shard."""

import zlib
from dataclasses import replace

import numpy as np
import pytest

from mace_train.data.shards.arrays import (
    FLOAT_FIELDS,
    LAYOUT,
    OF_EDGES,
    ShardArrays,
    Storage,
    checksums,
    is_allowed,
    join,
    names_of,
    offsets_of,
    row_type,
    runs_of,
    with_views,
    without_edges,
)
from tests.data.shards.samples import random_samples


def arrays_of(samples, storage=None):
    """The arrays of a shard of ``samples``."""
    made = ShardArrays(storage or Storage())
    for sample in samples:
        made.add(sample)
    return made.arrays()


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_arrays_hold_the_structures_one_after_the_other():
    samples = random_samples(7)
    arrays = arrays_of(samples)
    assert list(arrays) == list(LAYOUT)
    config_types = names_of(arrays, "config_type")
    assert config_types == sorted(set(config_types))
    for i, sample in enumerate(samples):
        structure, edges = sample.structure, sample.edges
        atoms = slice(*arrays["atom_offsets"][i : i + 2])
        np.testing.assert_array_equal(arrays["numbers"][atoms], structure.numbers)
        np.testing.assert_array_equal(arrays["positions"][atoms], structure.positions)
        own = slice(*arrays["edge_offsets"][i : i + 2])
        for name in OF_EDGES:
            np.testing.assert_array_equal(arrays[name][own], getattr(edges, name))
        source = arrays["sources"][slice(*arrays["source_offsets"][i : i + 2])]
        assert source.tobytes().decode() == structure.source
        row = arrays["structures"][i]
        assert row["energy"] == structure.energy
        assert row["has_forces"] == (structure.forces is not None)
        assert config_types[row["config_type"]] == structure.config_type
        assert row["n_atoms_with_neighbors"] == len(np.unique(edges.receivers))


def test_a_checksum_is_that_of_the_bytes_of_one_structure():
    arrays = arrays_of(random_samples(4))
    i = 2
    expected = arrays["structures"][i].tobytes()
    for offsets, names in (
        ("atom_offsets", ("numbers", "positions", "forces")),
        ("edge_offsets", ("senders", "receivers", "shifts")),
        ("source_offsets", ("sources",)),
    ):
        own = slice(*arrays[offsets][i : i + 2])
        expected += b"".join(arrays[name][own].tobytes() for name in names)
    assert arrays["structure_checksums"][i] == zlib.crc32(expected)
    assert checksums(arrays, [i]) == [zlib.crc32(expected)]
    changed = {**arrays, "positions": arrays["positions"].copy()}
    changed["positions"][arrays["atom_offsets"][i], 0] += 1.0
    differs = checksums(changed) != arrays["structure_checksums"]
    assert differs.tolist() == [False, False, True, False]


def test_joined_rows_are_the_arrays_of_these_structures():
    samples = random_samples(11)
    for sample in samples[5:]:
        object.__setattr__(sample.structure, "config_type", "only in the second")
    parts = [with_views(arrays_of(part)) for part in (samples[:5], samples[5:])]
    rows = [np.array([3, 4, 0]), np.array([5, 1, 2])]
    chosen = [samples[i] for i in (3, 4, 0, 10, 6, 7)]
    assert_equal(join(list(zip(parts, rows, strict=True))), arrays_of(chosen))


def test_runs_are_of_consecutive_numbers():
    assert list(runs_of(np.array([4, 5, 6, 2, 3, 9]))) == [(4, 7), (2, 4), (9, 10)]
    assert list(runs_of(np.array([], dtype=np.int64))) == []
    assert offsets_of([2, 0, 3]).tolist() == [0, 2, 2, 5]


def test_without_edges_their_number_and_the_checksums_stay_true():
    arrays = arrays_of(random_samples(3))
    small = without_edges(arrays)
    assert not small.keys() & set(OF_EDGES)
    np.testing.assert_array_equal(small["edge_offsets"], arrays["edge_offsets"])
    np.testing.assert_array_equal(small["structure_checksums"], checksums(small))
    assert (small["structure_checksums"] != arrays["structure_checksums"]).any()


def test_storage_decides_the_type_of_each_field():
    arrays = arrays_of(random_samples(3), Storage(float32=("cell", "forces")))
    assert arrays["forces"].dtype == arrays["structures"].dtype["cell"].base == np.float32
    assert arrays["positions"].dtype == arrays["structures"].dtype["stress"].base == np.float64
    for storage in (Storage(), Storage(float32=FLOAT_FIELDS), Storage(float32=("cell",))):
        for name, array in arrays_of(random_samples(2), storage).items():
            assert is_allowed(name, array.dtype), name
        assert row_type(storage).itemsize % 8 == 0


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("structures", "<f8"),
        ("positions", "<f2"),
        ("atom_offsets", "<i4"),
        ("senders", "<i4"),
        ("shifts", "<u1"),
        ("structure_checksums", "<u8"),
        ("numbers", "<i8"),
    ],
)
def test_other_types_are_not_allowed(name, dtype):
    assert not is_allowed(name, np.dtype(dtype))


def test_missing_labels_are_zeros_that_are_marked():
    sample = random_samples(1)[0]
    bare = replace(sample.structure, energy=None, forces=None, stress=None)
    arrays = arrays_of([replace(sample, structure=bare)])
    row = arrays["structures"][0]
    assert [int(row[f"has_{label}"]) for label in ("energy", "forces", "stress")] == [0, 0, 0]
    assert row["energy"] == 0.0
    assert not arrays["forces"].any()
    assert len(arrays["forces"]) == bare.n_atoms
