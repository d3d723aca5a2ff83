"""shards: what is written is read back, at random, after fork and pickle; damage is found."""

import multiprocessing
import pickle
from dataclasses import fields, replace

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mace_train.data.neighbors import EdgeList
from mace_train.data.shards import hdf5
from mace_train.data.shards import shard_set as shards_module
from mace_train.data.shards.arrays import LAYOUT, Sample
from mace_train.data.shards.shard_set import ShardSet, shard_path, write_shard
from mace_train.data.structure import Structure
from mace_train.errors import InputError
from tests.data.shards.samples import R_MAX, random_samples, write_shards


def assert_same(found: Sample, expected: Sample) -> None:
    for part in ("structure", "edges"):
        for item in fields(getattr(expected, part)):
            a, b = (getattr(getattr(s, part), item.name) for s in (found, expected))
            if isinstance(b, np.ndarray):
                assert a.dtype == b.dtype, item.name
                assert a.flags.writeable, item.name
            np.testing.assert_array_equal(a, b, err_msg=item.name)


@settings(deadline=None, max_examples=15)
@given(n=st.integers(1, 23), per_shard=st.integers(1, 23), seed=st.integers(0, 2**32))
def test_what_is_written_is_read(tmp_path_factory, n, per_shard, seed):
    samples = random_samples(n, seed)
    shards = write_shards(tmp_path_factory.mktemp("shards"), samples, per_shard)
    assert len(shards) == n
    assert shards.r_max == R_MAX
    for i in np.random.default_rng(seed).permutation(n):
        assert_same(shards.sample(int(i)), samples[i])
    assert shards.n_atoms.dtype == shards.n_edges.dtype == np.int32
    assert shards.n_atoms.tolist() == [s.structure.n_atoms for s in samples]
    assert shards.n_edges.tolist() == [s.edges.n_edges for s in samples]
    assert shards.config_types == [s.structure.config_type for s in samples]
    assert shards.has_forces.tolist() == [s.structure.forces is not None for s in samples]
    assert shards.has_stress.tolist() == [s.structure.stress is not None for s in samples]
    assert set(shards.elements) == {int(z) for s in samples for z in s.structure.numbers}
    shards.verify()


def test_an_energy_may_be_missing(tmp_path):
    sample = random_samples(1)[0]
    unlabelled = replace(sample, structure=replace(sample.structure, energy=None))
    assert_same(write_shards(tmp_path, [unlabelled]).sample(0), unlabelled)


@pytest.mark.parametrize(("n_atoms", "expected"), [(256, "u1"), (257, "<u2"), (65537, "<u4")])
@pytest.mark.parametrize(("shift", "shift_type"), [(127, "i1"), (-128, "<i2"), (40000, "<i4")])
def test_integers_are_small_and_safe(tmp_path, n_atoms, expected, shift, shift_type):
    structure = Structure(
        numbers=np.ones(n_atoms, dtype=np.int64),
        positions=np.zeros((n_atoms, 3)),
        cell=np.zeros((3, 3)),
        pbc=np.zeros(3, dtype=bool),
        energy=0.0,
        forces=None,
        stress=None,
    )
    last = np.array([n_atoms - 1])
    big = Sample(structure, EdgeList(last, last, np.array([[0, 0, shift]])))
    samples = [*random_samples(3), big]
    shards = write_shards(tmp_path, samples)
    assert shards.arrays(0)["senders"].dtype == expected
    assert shards.arrays(0)["receivers"].dtype == expected
    assert shards.arrays(0)["shifts"].dtype == shift_type
    assert all(array.flags.aligned for array in shards.arrays(0).values())
    for i, sample in enumerate(samples):
        assert_same(shards.sample(i), sample)


def test_shards_are_plain_hdf5(tmp_path):
    samples = random_samples(4)
    write_shards(tmp_path, samples)
    with h5py.File(shard_path(tmp_path, 0)) as file:
        assert set(file) == set(LAYOUT)
        first, last = file["atom_offsets"][2:4]
        np.testing.assert_array_equal(file["positions"][first:last], samples[2].structure.positions)


def test_equal_samples_give_equal_files_and_hash(tmp_path):
    one = write_shards(tmp_path / "a", random_samples(7))
    two = write_shards(tmp_path / "b", random_samples(7))
    other = write_shards(tmp_path / "c", random_samples(7, seed=1))
    assert one.dataset_hash == two.dataset_hash != other.dataset_hash
    for header, same in zip(one.headers, two.headers, strict=True):
        assert header.path.read_bytes() == same.path.read_bytes()


def _energies(shards: ShardSet) -> list[float]:
    return [shards.sample(i).structure.energy for i in range(len(shards))]


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")
def test_a_shard_set_goes_to_other_processes(tmp_path, method):
    shards = write_shards(tmp_path, random_samples(11))
    expected = _energies(shards)
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(_energies, [shards] * 3) == [expected] * 3


def test_a_pickle_holds_no_arrays_of_the_files(tmp_path):
    shards = write_shards(tmp_path, random_samples(40), per_shard=40)
    shards.sample(3)
    assert len(pickle.dumps(shards)) < shard_path(tmp_path, 0).stat().st_size / 2


def test_only_some_shards_are_open_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(shards_module, "MAX_OPEN", 3)
    samples = random_samples(9)
    shards = write_shards(tmp_path, samples, per_shard=1)
    for i in (0, 8, 4, 0, 1, 2, 3, 8):
        assert_same(shards.sample(i), samples[i])
        assert len(shards._open) <= 3


def test_an_index_out_of_range(tmp_path):
    shards = write_shards(tmp_path, random_samples(3))
    for index in (-1, 3):
        with pytest.raises(IndexError, match="of 3"):
            shards.sample(index)


def test_an_interrupted_write_leaves_nothing(tmp_path):
    def samples():
        yield random_samples(1)[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(shard_path(tmp_path, 0), samples(), R_MAX)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(hdf5, "checksum", fail)
    with pytest.raises(OSError, match="No space"):
        write_shard(shard_path(tmp_path, 0), random_samples(2), R_MAX)
    assert not list(tmp_path.iterdir())


def set_attribute(name, value):
    def change(path):
        with h5py.File(path, "r+") as file:
            file.attrs[name] = value

    return change


def remove(name):
    def change(path):
        with h5py.File(path, "r+") as file:
            del file[name]

    return change


def replace_array(name, function):
    def change(path):
        with h5py.File(path, "r+") as file:
            array = function(file[name][...])
            del file[name]
            file[name] = array

    return change


def cut(share):
    def change(path):
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])

    return change


def chunked(name):
    def change(path):
        with h5py.File(path, "r+") as file:
            array = file[name][...]
            del file[name]
            file.create_dataset(name, data=array, compression="gzip")

    return change


def remove_attribute(path):
    with h5py.File(path, "r+") as file:
        del file.attrs["complete"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cut(0.9), "damaged"),
        (cut(0.5), "damaged"),
        (cut(0.01), "damaged"),
        (cut(0), "damaged"),
        (lambda path: path.write_bytes(b"no HDF5 at all" * 100), "damaged"),
        (set_attribute("format_version", 1), "format version 1, this mace-train reads version 2"),
        (set_attribute("format", "other"), "not a shard of mace-train"),
        (set_attribute("n_structures", 6), "damaged.*atom_offsets has shape"),
        (set_attribute("r_max", 3.0), "its header does not match its checksum"),
        (remove_attribute, "attributes complete are missing"),
        (remove("forces"), "array forces is missing"),
        (replace_array("forces", lambda x: x[:-1]), "forces has shape"),
        (replace_array("forces", lambda x: x.reshape(-1)), "forces has shape"),
        (replace_array("structures", lambda x: x[:-1]), "structures has shape"),
        (replace_array("atom_offsets", lambda x: x + 1), "header does not match"),
        (replace_array("edge_offsets", lambda x: x[::-1].copy()), "header does not match"),
        (replace_array("config_type_names", lambda x: x[:-2]), "header does not match"),
        (chunked("structures"), "structures is not contiguous"),
    ],
)
def test_damage_is_found_when_opening(tmp_path, change, message):
    write_shards(tmp_path, random_samples(10))
    path = shard_path(tmp_path, 1)
    change(path)
    with pytest.raises(InputError, match=message) as error:
        ShardSet(tmp_path)
    assert str(path) in str(error.value)


def place_of(header, name):
    """Offset in the file of an array, or of a field of the first structure."""
    if name in header.layout:
        return header.layout[name][0]
    offset, rows, _ = header.layout["structures"]
    return offset + rows.fields[name][1]


CHANGED = ["positions", "energy", "senders", "shifts", "sources", "weights", "has_forces", "head"]


@pytest.mark.parametrize("name", CHANGED)
def test_every_changed_byte_is_found(tmp_path, name):
    """By ``verify``, and by reading the structure; the others can be read."""
    shards = write_shards(tmp_path, random_samples(10))
    shards.verify()
    content = bytearray(shard_path(tmp_path, 1).read_bytes())
    content[place_of(shards.headers[1], name)] ^= 1
    shard_path(tmp_path, 1).write_bytes(content)
    with pytest.raises(InputError, match=r"shard-00001\.h5 is damaged.*checksum"):
        ShardSet(tmp_path).verify()
    first = 5 + int(np.argmax(shards.n_edges[5:] > 0)) if name in ("senders", "shifts") else 5
    for read in (ShardSet.sample, lambda s, i: s.batch(np.array([0, i, 9]))):
        with pytest.raises(InputError, match=r"structure . does not match its checksum"):
            read(ShardSet(tmp_path), first)
    assert_same(ShardSet(tmp_path).sample(9), random_samples(10)[9])


def test_folders_that_are_no_shard_sets(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        ShardSet(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no shards"):
        ShardSet(tmp_path)
    write_shards(tmp_path, random_samples(10), per_shard=4)
    shard_path(tmp_path, 1).unlink()
    with pytest.raises(InputError, match=r"shard-00001\.h5 is missing"):
        ShardSet(tmp_path)
    shard_path(tmp_path, 0).unlink()
    with pytest.raises(InputError, match=r"shard-00000\.h5 is missing"):
        ShardSet(tmp_path)
