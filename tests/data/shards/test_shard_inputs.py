"""Inputs beside the geometry in shards and batches; shards without them are what they were."""

import h5py
import numpy as np
import pytest
import torch

from mace_train.data.loading.loader import batches, collate
from mace_train.data.loading.packed import on_device
from mace_train.data.loading.padding import Shape
from mace_train.data.shards.arrays import Storage
from mace_train.data.shards.hdf5 import WITH_INPUTS, sample_of, write_shard
from mace_train.data.shards.shard_set import ShardSet, shard_path
from mace_train.data.structure import structure_from_atoms
from mace_train.errors import InputError
from mace_train.settings.inputs import model_input_keys
from tests.charged import ELEMENTS, INPUTS, charged
from tests.data.factories import KEYS

STORAGES = {
    "plain": Storage(),
    "compressed": Storage(compression="gzip"),
    "without edges": Storage(stores_edges=False),
}


def samples(n=11, inputs=INPUTS):
    keys = model_input_keys(inputs, {"total_charge": "charge"} if inputs else None)
    return [
        sample_of(structure_from_atoms(charged(i), KEYS, f"a.xyz, structure {i}", inputs=keys), 4.0)
        for i in range(n)
    ]


@pytest.fixture(params=STORAGES)
def shards(request, tmp_path) -> ShardSet:
    every = samples()
    for i, part in enumerate((every[:6], every[6:])):
        write_shard(shard_path(tmp_path, i), part, 4.0, STORAGES[request.param])
    return ShardSet(tmp_path)


def test_structures_come_back(shards):
    shards.verify()
    for i, sample in enumerate(samples()):
        found = shards.sample(i).structure.inputs
        assert found.graph == sample.structure.inputs.graph
        for name, values in sample.structure.inputs.atom.items():
            np.testing.assert_array_equal(found.atom[name], values)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_are_those_of_the_structures(shards, num_workers):
    every, bins = samples(), [np.array([7, 0, 3]), np.array([], dtype=np.int64), np.array([10])]
    options = {"atomic_numbers": ELEMENTS, "dtype": torch.float64, "inputs": INPUTS}
    for ids, graph in zip(
        bins, batches(shards, bins, num_workers=num_workers, **options), strict=True
    ):
        expected = collate([every[i] for i in ids], ids, **options)
        assert graph.inputs.shape == (graph.n_atoms, 4)
        for name, value in vars(expected).items():
            assert torch.equal(getattr(graph, name), value), name
        assert on_device(graph, torch.device("meta")).inputs.is_meta
    assert float(expected.inputs[0, 1]) == pytest.approx(1.0)  # the temperature of the last


def test_a_batch_for_a_model_without_inputs_has_none(shards):
    ids = np.arange(5)
    (graph,) = batches(shards, [ids], atomic_numbers=ELEMENTS, dtype=torch.float64)
    assert graph.inputs.shape == (graph.n_atoms, 0)


def test_padding_is_of_class_0(shards):
    options = {"atomic_numbers": ELEMENTS, "dtype": torch.float64, "inputs": INPUTS}
    ids, shape = np.arange(3), Shape(5, 40, 200, 4.0)
    (full,) = batches(shards, [ids], shape=shape, **options)
    (graph,) = batches(shards, [ids], **options)
    assert torch.equal(full.inputs[: graph.n_atoms], graph.inputs)
    assert not full.inputs[graph.n_atoms :].any()


def test_inputs_are_in_the_checksum_of_their_structure(tmp_path):
    path = shard_path(tmp_path, 0)
    for name, row in (("graph_inputs", 2), ("atom_inputs", 8)):
        write_shard(path, samples(), 4.0)
        with h5py.File(path, "r+") as file:
            file[name][row, 1] += 1.0
        shards = ShardSet(tmp_path)
        assert shards.sample(0).structure.n_atoms == 3
        with pytest.raises(InputError, match="its structure 2 does not match its checksum"):
            shards.batch(np.array([1, 2]))
        with pytest.raises(InputError, match="do not match its checksum"):
            shards.verify()


def test_names_are_in_the_checksum_of_the_header(tmp_path):
    path = shard_path(tmp_path, 0)
    write_shard(path, samples(), 4.0)
    with h5py.File(path, "r+") as file:
        file["input_names"][3] = ord("x")
    with pytest.raises(InputError, match="its header does not match its checksum"):
        ShardSet(tmp_path)


def test_only_shards_with_inputs_have_another_version(tmp_path):
    for inputs, version in (((), 2), (INPUTS, WITH_INPUTS)):
        path = shard_path(tmp_path, 0)
        write_shard(path, samples(inputs=inputs), 4.0)
        with h5py.File(path) as file:
            assert file.attrs["format_version"] == version
            assert ("graph_inputs" in file) == bool(inputs)


def test_shards_of_one_folder_that_differ(tmp_path):
    for i, inputs in enumerate((INPUTS, INPUTS[:2])):
        write_shard(shard_path(tmp_path, i), samples(3, inputs), 4.0)
    with pytest.raises(InputError, match="differ in their inputs"):
        ShardSet(tmp_path).batch(np.array([0, 4]))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("total_charge", 7.0, "a.xyz, structure 1: the input total_charge is 7, but"),
        ("site", 9.0, "a.xyz, structure 1: the input site is 9, but"),
    ],
)
def test_a_value_without_a_class_names_its_structure(name, value, message):
    every = samples(3)
    inputs = every[1].structure.inputs
    if name == "site":
        inputs.atom["site"][1] = value
    else:
        inputs.graph[name] = value
    with pytest.raises(InputError, match=message):
        collate(every, np.arange(3), atomic_numbers=ELEMENTS, dtype=torch.float32, inputs=INPUTS)
