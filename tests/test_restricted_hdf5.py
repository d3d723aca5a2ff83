"""Shards that reach beyond their own file, or claim to be larger, are refused when opened."""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from mace_train.data.shards.arrays import Storage
from mace_train.data.shards.hdf5 import read_header, write_shard
from mace_train.data.shards.reader import ShardReader
from mace_train.errors import InputError
from mace_train.restricted_hdf5 import ForeignError, own_dataset, own_group
from tests.data.shards.samples import R_MAX, random_samples


@pytest.fixture
def shard(tmp_path) -> Path:
    write_shard(tmp_path / "a.h5", random_samples(3), R_MAX, Storage(compression="gzip"))
    return tmp_path / "a.h5"


def other_file(file: h5py.File, values: np.ndarray) -> str:
    path = f"{file.filename}.other"
    with h5py.File(path, "w") as other:
        other["x"] = values
    return path


def external_link(file, name, values):
    file[name] = h5py.ExternalLink(other_file(file, values), "x")


def soft_link(file, name, values):
    file["elsewhere"] = values
    file[name] = h5py.SoftLink("/elsewhere")


def external_storage(file, name, values):
    path = Path(f"{file.filename}.raw")
    path.write_bytes(values.tobytes())
    place = [(str(path), 0, values.nbytes)]
    file.create_dataset(name, values.shape, values.dtype, external=place)


def virtual(file, name, values):
    layout = h5py.VirtualLayout(shape=values.shape, dtype=values.dtype)
    layout[:] = h5py.VirtualSource(other_file(file, values), "x", shape=values.shape)
    file.create_virtual_dataset(name, layout)


def declared(file, name, values):
    shape = (1 << 40, *values.shape[1:])
    file.create_dataset(name, shape, values.dtype, chunks=(1, *values.shape[1:]))


def plugin(file, name, values):
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_chunk((1, *values.shape[1:]))
    plan.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, ())  # Zstandard, by a plugin
    space, kind = h5py.h5s.create_simple(values.shape), h5py.h5t.py_create(values.dtype)
    h5py.h5d.create(file.id, name.encode(), kind, space, plan)


MESSAGES = {
    external_link: "has a link positions",
    soft_link: "has a link positions",
    external_storage: "takes its bytes from other files",
    virtual: "takes its bytes from other files",
    declared: "bytes by its shape, 0 here",
    plugin: "a plugin for the filter 32015",
}


@pytest.mark.parametrize("write", MESSAGES)
def test_a_shard_is_of_itself_alone(write, shard, tmp_path):
    changed = Path(shutil.copy(shard, tmp_path / "b.h5"))
    header = read_header(changed)
    with h5py.File(changed, "r+") as file:
        values = file["positions"][()]
        del file["positions"]
        write(file, "positions", values)
    with pytest.raises(InputError, match=MESSAGES[write]):
        read_header(changed)
    with pytest.raises(InputError, match=MESSAGES[write]):
        ShardReader(header)  # of a file that was another when its header was read


def test_what_is_there_is_given(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["group/x"] = np.arange(3)
        file.create_dataset("zeros", (1 << 26,), "u1", compression="gzip")[:] = 0
        assert own_dataset(own_group(file, "group"), "x")[()].tolist() == [0, 1, 2]
        assert own_dataset(file, "zeros").shape == (1 << 26,)
        for wrong in ("group", "nothing"):
            with pytest.raises(KeyError):
                own_dataset(file, wrong)
        with pytest.raises(KeyError):
            own_group(file, "zeros")
        file["group/file"] = h5py.ExternalLink("/etc/passwd", "/")
        with pytest.raises(ForeignError, match="has a link file"):
            own_group(file["group"], "file")
