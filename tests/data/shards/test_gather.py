"""Compiled checks and copies against zlib and slices."""

import zlib

import numpy as np
import pytest

from mace_train.data.shards.arrays import OWNED, Storage, checksums
from mace_train.data.shards.gather import _crc, crc_tables, take
from mace_train.data.shards.hdf5 import read_header, sample_of, write_shard
from mace_train.data.shards.reader import ShardReader
from mace_train.errors import InputError
from tests.data.factories import random_structure


def test_crc_of_every_length():
    data = np.random.default_rng(0).integers(0, 256, 100).astype(np.uint8)
    start = np.uint32(0xFFFFFFFF)
    for begin in range(3):
        for end in range(begin, 100):
            mine = int(_crc(start, data, begin, end, crc_tables())) ^ 0xFFFFFFFF
            assert mine == zlib.crc32(data[begin:end].tobytes())


@pytest.fixture
def shard(tmp_path) -> ShardReader:
    rng = np.random.default_rng(1)
    samples = [sample_of(random_structure(rng), 2.5) for _ in range(9)]
    write_shard(tmp_path / "a.h5", samples, 2.5, Storage(float32=("forces",)))
    return ShardReader(read_header(tmp_path / "a.h5"))


def test_a_change_anywhere_is_found(shard):
    """One bit of each array; the structure that has it is the one that is refused."""
    rows = np.random.default_rng(2).permutation(9)
    (part,) = shard.shard_rows(rows, rows)
    assert part.arrays is shard.arrays
    for offsets, names in {"structures": ("structures",), **OWNED}.items():
        for name in names:
            whole = shard.arrays[name]
            changed = whole.copy()
            place = changed.reshape(-1).view(np.uint8)
            place[len(place) // 2] ^= 16
            shard.arrays[name] = changed
            vars(shard).pop("_bytes")
            bad = np.flatnonzero(checksums(shard.arrays) != shard.arrays["structure_checksums"])
            assert len(bad) == 1, offsets
            with pytest.raises(InputError, match=rf"its structure {bad[0]} does not match its"):
                shard.shard_rows(rows, rows)
            others = rows[rows != bad[0]]
            assert len(shard.shard_rows(others, others)) == 1
            shard.arrays[name] = whole


@pytest.mark.parametrize("far", [-5, 1 << 40])
def test_offsets_outside_of_the_arrays_are_refused(shard, far):
    shard.arrays["edge_offsets"] = np.where(
        np.arange(10) == 4, far, np.array(shard.arrays["edge_offsets"])
    )
    for row in (3, 4):
        with pytest.raises(InputError, match=f"its structure {row} does not match"):
            shard.shard_rows(np.array([0, row]), np.arange(2))


@pytest.mark.parametrize("wider", ["u1", "i8", "f8"])
def test_rows_are_copied_to_their_places(wider):
    source = np.arange(20, dtype="u1")
    target = np.full(18, 99, dtype=wider)
    offsets = np.array([0, 2, 2, 7, 10])
    take(source, offsets, np.array([3, 1, 0]), 2, target, np.array([4, 4, 1]))
    expected = [99, 99, 0, 1, 2, 3, 99, 99, *range(14, 20), 99, 99, 99, 99]
    assert target.tolist() == expected
