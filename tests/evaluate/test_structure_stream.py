"""Streams of files and shards: the same structures in order, one batch of them in memory."""

import gc
import weakref

import numpy as np
import pytest
import torch
from ase.io import read, write
from hypothesis import given
from hypothesis import strategies as st

from mace_train.data.structure import LabelKeys
from mace_train.errors import InputError
from mace_train.evaluate import structure_stream
from mace_train.evaluate.element_sets import element_set
from mace_train.evaluate.set_descriptors import stream_descriptors
from mace_train.evaluate.structure_stream import (
    BatchLimits,
    FileStream,
    Runs,
    ShardStream,
    open_stream,
)
from mace_train.settings import BatchingSettings, StructureSetSettings
from tests.conftest import emt_structures
from tests.model.systems import model_of

KEYS = LabelKeys("REF_energy", "REF_forces", "REF_stress", "REF_virials")
LIMITS = BatchLimits(max_atoms=20, max_edges=300)


@pytest.fixture(scope="module")
def model():
    return model_of((1, 7, 8, 13), dtype=torch.float64)


def test_files_and_shards_are_the_same_set(xyz, prepared, tmp_path, model):
    shards = ShardStream(prepared, "train")
    every = np.arange(len(shards.n_atoms))
    read_back = list(shards.structures(every))
    assert (shards.n_atoms == [s.n_atoms for s in read_back]).all()
    assert shards.config_types == [s.config_type for s in read_back]
    for own, structure in zip(shards.elements, read_back, strict=True):
        assert (own == element_set(structure.numbers.tolist())).all()
    originals = read(xyz, ":")
    chosen = [originals[int(s.source.rsplit(" ", 1)[1])] for s in read_back]
    write(tmp_path / "train.xyz", chosen, format="extxyz")
    files = FileStream([str(tmp_path / "train.xyz")], KEYS)
    assert (files.n_atoms == shards.n_atoms).all()
    assert (files.elements == shards.elements).all()
    assert files.config_types == shards.config_types
    for one, other in zip(files.structures(every), read_back, strict=True):
        assert one.energy == pytest.approx(other.energy, rel=1e-12)
    for ids in (every, every[3::2], every[:0]):
        found = [list(stream_descriptors(model, s, ids, LIMITS)) for s in (files, shards)]
        for batches in found:
            assert [i for batch in batches for i in batch.ids] == ids.tolist()
        if len(ids):
            means = [np.concatenate([batch.mean for batch in batches]) for batches in found]
            np.testing.assert_allclose(means[0], means[1], atol=1e-7)


def test_isolated_atoms_are_known(xyz, prepared):
    assert FileStream([str(xyz)], KEYS).isolated.tolist() == [True] * 4 + [False] * 32
    assert not ShardStream(prepared, "train").isolated.any()
    assert set(ShardStream(prepared, "train").E0s["Default"]) == {1, 7, 8, 13}


def test_one_batch_of_structures_is_in_memory(tmp_path, monkeypatch, model):
    path = tmp_path / "many.xyz"
    write(path, emt_structures(n_molecules=60, n_crystals=20), format="extxyz")
    alive: weakref.WeakSet = weakref.WeakSet()
    most = [0]

    def count(*arguments):
        sample = sample_of(*arguments)
        alive.add(sample.structure)
        most[0] = max(most[0], len(alive))
        return sample

    sample_of = structure_stream.sample_of
    monkeypatch.setattr(structure_stream, "sample_of", count)
    stream = FileStream([str(path)], KEYS)
    every = np.arange(len(stream.n_atoms))
    n_batches = sum(1 for _ in stream_descriptors(model, stream, every, LIMITS))
    gc.collect()
    assert n_batches > 10
    assert 2 <= most[0] <= 2 * LIMITS.max_atoms  # of 84
    assert not alive


def test_a_file_that_changes_is_an_error(tmp_path):
    path = tmp_path / "some.xyz"
    structures = emt_structures(n_molecules=4, n_crystals=0)
    write(path, structures, format="extxyz")
    stream = FileStream([str(path)], KEYS)
    write(path, structures[:5], format="extxyz")
    with pytest.raises(InputError, match="structure 6 is no longer there"):
        list(stream.structures(np.array([2, 6])))


def test_what_is_wrong_is_found_when_it_is_opened(tmp_path, xyz):
    path = tmp_path / "wrong.xyz"
    path.write_text(xyz.read_text() + "3\nno structure\n")
    for keys in (KEYS, None):
        with pytest.raises(InputError, match=r"wrong\.xyz"):
            open_stream(StructureSetSettings(structures=str(path)), keys)


def test_wrong_labels_do_not_matter_where_none_are_read(tmp_path):
    path = tmp_path / "nan.xyz"
    path.write_text("1\nProperties=species:S:1:pos:R:3:forces:R:3 energy=nan\nO 0 0 0 1e300 0 0\n")
    (structure,) = FileStream([str(path)], None).structures(np.array([0]))
    assert structure.energy is None
    with pytest.raises(InputError, match="nan"):
        FileStream([str(path)], KEYS)


def test_labels_are_read_only_where_they_are_wanted(xyz, caplog):
    with caplog.at_level("INFO", logger="mace_train"):
        without = FileStream([str(xyz)], None)
    assert "labels" not in caplog.text
    (first,) = without.structures(np.array([5]))
    assert first.energy is None
    assert first.forces is None


@given(
    sizes=st.lists(st.tuples(st.integers(1, 30), st.integers(0, 90)), max_size=40),
    max_atoms=st.integers(1, 60),
    max_edges=st.integers(1, 200),
)
def test_runs_are_as_long_as_the_limits_allow(sizes, max_atoms, max_edges):
    ids = np.arange(len(sizes)) * 3
    array = np.array(sizes, dtype=np.int64).reshape(-1, 2)
    runs = Runs(ids, array, BatchLimits(max_atoms, max_edges))
    found = list(runs)
    assert [i for run in found for i in run] == ids.tolist()
    assert len(found) == len(runs)
    for k, run in enumerate(found):
        atoms, edges = array[run // 3].sum(axis=0)
        assert len(run) == 1 or (atoms <= max_atoms and edges <= max_edges)
        if k + 1 < len(found):
            more = array[found[k + 1][0] // 3]
            assert atoms + more[0] > max_atoms or edges + more[1] > max_edges
    if found:
        assert runs[-1].tolist() == found[-1].tolist()
        assert [run.tolist() for run in runs[:2]] == [run.tolist() for run in found[:2]]
    with pytest.raises(IndexError):
        runs[len(runs)]


def test_limits():
    n_atoms = np.array([10, 20, 30], dtype=np.int32)
    assert BatchLimits.of(n_atoms, BatchingSettings(valid_batch_size=5)).max_atoms == 110
    given_limits = BatchingSettings(max_atoms=7, max_edges=9)
    assert BatchLimits.of(n_atoms, given_limits) == BatchLimits(7, 9)
