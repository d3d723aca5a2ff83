"""Archives, compressed files, databases and other programs' data sets give the same structures."""

import bz2
import gzip
import io
import lzma
import sys
import tarfile
import zipfile

import ase.db
import ase.io
import h5py
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator

from mace_train.data.read import read_structures
from mace_train.data.read.file_range import ChunkLimit
from mace_train.data.read.formats import format_of, parse_fns_of, split_file
from mace_train.data.read.unpack import zstd
from mace_train.errors import InputError
from tests.data.factories import KEYS, crystal, molecule, write_xyz


def energies(path):
    return [s.energy for s in read_structures([str(path)], KEYS)]


@pytest.fixture
def text(tmp_path):
    write_xyz(tmp_path / "a.xyz", [molecule(-1.0), crystal(-2.0)])
    return (tmp_path / "a.xyz").read_bytes()


PACK = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstd.compress,
}


@pytest.mark.parametrize("suffix", PACK)
def test_compressed(tmp_path, text, suffix):
    path = tmp_path / f"b.xyz.{suffix}"
    path.write_bytes(PACK[suffix](text))
    assert energies(path) == [-1.0, -2.0]
    path.write_bytes(PACK[suffix](text) + PACK[suffix](text))  # as `cat` of two packed files
    assert energies(path) == [-1.0, -2.0] * 2
    path.write_bytes(PACK[suffix](text)[:-9])
    with pytest.raises(InputError, match=rf"b\.xyz\.{suffix}, structure 0: cannot be read"):
        energies(path)


NAMES = ("mysql_set", "postgres", "mariadb", "POSCAR_set", "OUTCAR_set", "XDATCAR", "CONTCAR", "pg")


@pytest.mark.parametrize("stem", NAMES)
def test_the_end_of_a_name_says_the_format_not_its_beginning(stem, tmp_path, text, monkeypatch):
    monkeypatch.chdir(tmp_path)  # ASE looks at the beginning of the path, too
    for suffix in ("xyz", "extxyz", "xyz.gz", "xyz.zst"):
        packed = PACK.get(suffix.partition(".")[2], bytes)(text)
        (tmp_path / f"{stem}.{suffix}").write_bytes(packed)
        assert energies(f"{stem}.{suffix}") == [-1.0, -2.0]
    atoms = crystal()
    atoms.info.clear()
    for suffix in ("traj", "db", "json", "cif", "xsf", "cube"):
        ase.io.write(f"a.{suffix}", atoms)
        expected = format_of(f"a.{suffix}")
        (tmp_path / f"a.{suffix}").rename(f"{stem}.{suffix}")
        assert format_of(f"{stem}.{suffix}") == expected
    (tmp_path / "OUTCAR").write_text("x")
    assert format_of("OUTCAR") == "vasp-out"  # without an end, the beginning says it


MEMBERS = ["below/b.xyz", "README.md", "c.xyz.zst", "a.xyz", "nested.tar.gz"]


def tar(text, mode):
    content = dict.fromkeys(MEMBERS, text)
    content["c.xyz.zst"] = PACK["zst"](text)
    if mode != "nested":
        content["nested.tar.gz"] = tar(text, "nested")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz" if mode == "nested" else "w") as archive:
        for name in MEMBERS[: 3 if mode == "nested" else None]:
            member = tarfile.TarInfo(name)
            member.size = len(content[name])
            archive.addfile(member, io.BytesIO(content[name]))
    return packed.getvalue()


@pytest.mark.parametrize("suffix", ["tar", "tar.gz", "tar.zst", "tar.xz"])
def test_tar(tmp_path, text, suffix, caplog):
    caplog.set_level("INFO", logger="mace_train")
    plain = tar(text, "plain")
    path = tmp_path / f"b.{suffix}"
    path.write_bytes(PACK.get(suffix[4:], bytes)(plain))
    found = list(read_structures([str(path)], KEYS))
    assert [s.energy for s in found] == [-1.0, -2.0] * 5
    assert found[0].source == f"{path}/below/b.xyz, structure 0"
    assert found[-1].source == f"{path}/nested.tar.gz/c.xyz.zst, structure 1"
    assert "1 members are no structures, such as README.md" in caplog.text


def test_zip(tmp_path, text):
    path = tmp_path / "b.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("x/", "x/a.xyz", "b.extxyz", "notes.txt"):
            archive.writestr(name, b"" if name.endswith("/") else text)
    assert energies(path) == [-1.0, -2.0] * 2
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", b"")
    with pytest.raises(InputError, match="holds no structures"):
        energies(path)
    path.write_bytes(b"PK nothing")
    with pytest.raises(InputError, match="cannot be read"):
        energies(path)


@pytest.mark.parametrize("suffix", ["db", "json"])
def test_ase_databases_with_their_values(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    with ase.db.connect(path) as database:
        for i in range(5):
            atoms = crystal()
            atoms.calc = SinglePointCalculator(atoms, forces=np.full((2, 3), float(i)))
            database.write(atoms, REF_energy=-float(i), data={"REF_stress": np.eye(3) * i})
    structures = list(read_structures([str(path)], KEYS))
    assert [s.energy for s in structures] == [-0.0, -1.0, -2.0, -3.0, -4.0]
    np.testing.assert_array_equal(structures[3].stress, np.eye(3) * 3)
    np.testing.assert_array_equal(structures[4].forces, np.full((2, 3), 4.0))
    assert read_in_ranges(path, 2) == [-0.0, -1.0, -2.0, -3.0, -4.0]


def read_in_ranges(path, per_range):
    name, file_ranges = split_file(str(path), str(path), ChunkLimit(per_range))
    assert [file_range.count for file_range in file_ranges] == [2, 2, 1]
    parse_fns = [
        p
        for file_range in file_ranges
        for p in parse_fns_of(str(path), str(path), name, file_range)
    ]
    return [parse().info["REF_energy"] for parse in parse_fns]


def test_trajectories_in_ranges(tmp_path):
    path = tmp_path / "a.traj"
    ase.io.write(path, [crystal(-float(i)) for i in range(5)])
    assert read_in_ranges(path, 2) == [-float(i) for i in range(5)]


def test_lmdb_of_fairchem(tmp_path, monkeypatch):
    backend = pytest.importorskip("ase_db_backends.aselmdb", reason="extra 'lmdb' is missing")
    path = tmp_path / "a.aselmdb"
    with backend.LMDBDatabase(str(path)) as database:
        for i in range(5):
            atoms = crystal()
            atoms.info.clear()
            atoms.calc = SinglePointCalculator(
                atoms, energy=-float(i), forces=np.full((2, 3), float(i)), stress=np.ones(6)
            )
            database.write(atoms, data={"REF_energy": -float(i)})
    path.chmod(0o444)
    structures = list(read_structures([str(path)], KEYS))
    assert [s.energy for s in structures] == [-float(i) for i in range(5)]
    np.testing.assert_array_equal(structures[4].forces, np.full((2, 3), 4.0))
    assert read_in_ranges(path, 2) == [-float(i) for i in range(5)]
    for module in ("ase_db_backends.aselmdb", "mace.tools.fairchem_dataset.lmdb_dataset_tools"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match="pip install ase-db-backends"):
        energies(path)


def test_a_damaged_lmdb(tmp_path):
    backend = pytest.importorskip("ase_db_backends.aselmdb", reason="extra 'lmdb' is missing")
    path = tmp_path / "a.aselmdb"
    with backend.LMDBDatabase(path) as database:
        for _ in range(60):
            database.write(crystal())
    whole = path.read_bytes()
    path.write_bytes(whole[:-4096])  # reading its last page would end the process by SIGBUS
    with pytest.raises(
        InputError, match=r"where its header says \d+; it is truncated, copy it again"
    ):
        list(read_structures([str(path)], KEYS, require_energy=False))
    pages = range(3 * 4096, len(whole), 4096)
    for page in pages:
        path.write_bytes(whole[:page] + bytes([171]) * 4096 + whole[page + 4096 :])
        with pytest.raises(InputError, match=r"a\.aselmdb, structure \d+: cannot be read"):
            list(read_structures([str(path)], KEYS, require_energy=False))


def test_a_file_that_is_no_lmdb(tmp_path):
    pytest.importorskip("ase_db_backends.aselmdb", reason="extra 'lmdb' is missing")
    path = tmp_path / "a.aselmdb"
    path.write_bytes(b"nothing" * 2000)
    with pytest.raises(InputError, match=r"a\.aselmdb, structure 0: cannot be read"):
        energies(path)


@pytest.mark.filterwarnings("ignore")
def test_lmdb_of_mace_torch(tmp_path):
    tools = pytest.importorskip(
        "mace.tools.fairchem_dataset.lmdb_dataset_tools", reason="mace-torch is not installed"
    )
    path = tmp_path / "a.lmdb"
    with tools.LMDBDatabase(str(path)) as database:
        for i in range(3):
            database.write(crystal(-float(i)), data={})  # it writes into ASE's default argument
    structures = list(read_structures([str(path)], KEYS))
    assert [s.energy for s in structures] == [-0.0, -1.0, -2.0]
    np.testing.assert_array_equal(structures[1].forces, np.zeros((2, 3)))
    np.testing.assert_array_equal(structures[1].stress, np.diag([0.1, 0.2, 0.3]))


@pytest.mark.filterwarnings("ignore")
def test_hdf5_of_mace_torch(tmp_path):
    utils = pytest.importorskip("mace.data.utils", reason="mace-torch is not installed")
    keys = utils.KeySpecification(
        info_keys={"energy": "REF_energy", "stress": "REF_stress"},
        arrays_keys={"forces": "REF_forces"},
    )
    frames = [molecule(-float(i), config_type=f"kind{i}") for i in range(11)]
    frames.append(crystal(-50.0))
    frames[3].arrays.pop("REF_forces")
    frames[4].info["config_weight"] = 0.25
    path = tmp_path / "train_0.h5"
    with h5py.File(path, "w") as file:
        file.attrs["drop_last"] = False
        configs = [utils.config_from_atoms(atoms, key_specification=keys) for atoms in frames]
        utils.save_configurations_as_HDF5(configs, 0, file)
    structures = list(read_structures([str(path)], KEYS))
    assert [s.energy for s in structures] == [-float(i) for i in range(11)] + [-50.0]
    assert [s.config_type for s in structures[:3]] == ["kind0", "kind1", "kind2"]
    assert [s.forces is None for s in structures] == [i == 3 for i in range(12)]
    assert structures[4].weight == 0.25
    assert not structures[0].pbc.any()
    np.testing.assert_array_equal(structures[-1].stress, np.diag([0.1, 0.2, 0.3]))
    np.testing.assert_array_equal(structures[5].forces, frames[5].arrays["REF_forces"])
    name, file_ranges = split_file(str(path), str(path), ChunkLimit(5))
    assert [file_range.count for file_range in file_ranges] == [5, 5, 2]
    parse_fns = parse_fns_of(str(path), str(path), name, file_ranges[1])
    assert [parse().calc.results["energy"] for parse in parse_fns] == [
        -float(i) for i in range(5, 10)
    ]


def test_shards_are_not_input(prepared):
    with pytest.raises(InputError, match=r"is HDF5, but a shard of mace-train; shards are used"):
        energies(sorted((prepared / "train").glob("*.h5"))[0])
