"""Files of arrays are read as they were written, with every kind of row; gaps are errors."""

import os

import h5py
import numpy as np
import pytest

from mace_train.evaluate.array_file import ArrayFile, RowArray
from mace_train.restricted_hdf5 import own_dataset


@pytest.mark.parametrize("can_reserve", [True, False])
@pytest.mark.parametrize(
    ("shape", "kind"),
    [((5, 3), "float32"), ((7,), "uint8"), ((4, 2, 2), "float64"), ((0, 3), "int32")],
)
def test_what_is_written_is_read(tmp_path, monkeypatch, shape, kind, can_reserve):
    if not can_reserve:
        monkeypatch.delattr(os, "posix_fallocate")
    values = np.random.default_rng(0).uniform(0, 200, shape).astype(kind)
    others = np.arange(10_000.0)  # of two arrays of rows the first does not end the file
    rows = {"a": RowArray(shape, values.dtype), "b": RowArray(others.shape, others.dtype)}
    names = np.array(["x", "größer" * 50], dtype=h5py.string_dtype())
    with ArrayFile(tmp_path / "f.h5", {"names": names}, rows, {"text": "é" * 100}) as file:
        for k in range(0, len(values), 2):
            file.append("a", values[k : k + 2])
            file.append("b", others[5000 * k // 2 : 5000 * (k // 2 + 1)])
        for k in range(file._filled["b"], len(others), 999):
            file.append("b", others[k : k + 999])
    with h5py.File(tmp_path / "f.h5") as file:
        np.testing.assert_array_equal(own_dataset(file, "a")[()], values)
        np.testing.assert_array_equal(own_dataset(file, "b")[()], others)
        assert [name.decode() for name in file["names"]] == names.tolist()
        assert file.attrs["text"] == "é" * 100
        assert file["a"].dtype == values.dtype
    assert (tmp_path / "f.h5").stat().st_size < values.nbytes + others.nbytes + 10_000


def test_rows_that_are_missing_or_too_many(tmp_path):
    rows = {"a": RowArray((3, 1), np.dtype("float32"))}
    with (
        pytest.raises(AssertionError, match="not complete"),
        ArrayFile(tmp_path / "f.h5", {}, rows, {}) as file,
    ):
        file.append("a", np.zeros((2, 1)))
    with pytest.raises(AssertionError), ArrayFile(tmp_path / "g.h5", {}, rows, {}) as file:
        file.append("a", np.zeros((4, 1)))
