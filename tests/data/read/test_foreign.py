"""Files that somebody else made to do harm: nothing in them is run, and they cost little."""

import ast
import gzip
import importlib.util
import io
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import ase
import ase.db
import h5py
import numpy as np
import pytest
from ase.io.formats import ioformats

from mace_train.data.read import read_atoms, read_structures, unpack
from mace_train.data.read.formats import CALLS
from mace_train.errors import InputError
from tests.data.factories import KEYS, molecule, write_xyz


class Runs:
    """An object whose pickle runs a command when it is read."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def read(path):
    return list(read_structures([str(path)], KEYS))


PICKLED = ("pckl", "pkl", "pickle", "npy", "npz", "pt", "model", "traj", "trj", "bundle", "json",
           "db", "gpw", "h5", "lmdb", "aselmdb", "cell", "vasp", "cif")  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # ASE's, about the keywords of castep
@pytest.mark.parametrize("suffix", PICKLED)
def test_no_pickle_is_loaded(suffix, tmp_path):
    marker, path = tmp_path / "ran", tmp_path / f"a.{suffix}"
    for beginning in (b"", b"PickleTrajectory"):
        path.write_bytes(beginning + pickle.dumps(Runs(marker)))
        with pytest.raises(
            InputError, match=r"would run what is in it|cannot be read|not installed"
        ):
            read(path)
        assert not marker.exists()


def test_no_program_is_run(tmp_path):
    (tmp_path / "a.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    command = [sys.executable, "-m", "mace_train", "preprocess", "data.train_file=a.py"]
    words = ["r_max=4", "data.E0s=average", "output=o"]
    done = subprocess.run([*command, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "a.py is a program: reading it would run what is in it" in done.stderr
    assert "convert it yourself first (ase.io.write of extended XYZ)" in done.stderr
    assert sorted(os.listdir(tmp_path)) == ["a.py"]


@pytest.mark.parametrize("name", ["a.py", "a.pckl", "a.pckl.gz", "a.traj"])
def test_one_structure_is_read_with_the_same_care(name, tmp_path):
    marker = tmp_path / "ran"
    program = f"open({str(marker)!r}, 'w')".encode()
    content = program if name == "a.py" else pickle.dumps(Runs(marker))
    content = b"PickleTrajectory" + content if name == "a.traj" else content
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(InputError, match="would run what is in it"):
        read_atoms(str(tmp_path / name), -1)
    assert not marker.exists()


def test_an_old_trajectory_is_named(tmp_path):
    (tmp_path / "a.traj").write_bytes(b"PickleTrajectory" + pickle.dumps(None))
    with pytest.raises(InputError, match=r"python -m ase\.io\.trajectory FILE"):
        read(tmp_path / "a.traj")


def test_objects_in_a_database_are_not_unpickled(tmp_path):
    """ASE keeps data as JSON and arrays as bytes; a pickle in their place stays bytes."""
    import sqlite3

    marker, path = tmp_path / "ran", tmp_path / "a.db"
    with ase.db.connect(path) as database:
        database.write(molecule(-1.0), data={"x": 1})
    with sqlite3.connect(path) as connection:
        connection.execute("update systems set data = ?", (pickle.dumps(Runs(marker)),))
    with pytest.raises(InputError, match="cannot be read"):
        read(path)
    assert not marker.exists()


DANGEROUS = {"eval", "exec", "compile", "__import__"}
DANGEROUS_IN = {
    "pickle": {"load", "loads", "Unpickler"},
    "marshal": {"load", "loads"},
    "yaml": {"load", "unsafe_load", "full_load"},
    "np": {"load"},
    "numpy": {"load"},
    "os": {"system", "popen", "execv", "startfile"},
    "runpy": {"run_path", "run_module"},
    "shelve": {"open"},
    "dill": {"load", "loads"},
    "joblib": {"load"},
    "torch": {"load"},
    "importlib": {"import_module"},
    "subprocess": {"Popen", "call", "check_call", "check_output", "run", "getoutput"},
}


def calls_and_imports(path):
    """Dangerous calls in a source file, and the modules of ASE that it imports."""
    calls, modules, names = set(), set(), {}
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {a.asname or a.name: (node.module, a.name) for a in node.names}
            modules |= {node.module, *(f"{node.module}.{a.name}" for a in node.names)}
        elif isinstance(node, ast.Import):
            modules |= {a.name for a in node.names}
    for node in ast.walk(tree):
        function = getattr(node, "func", None)
        if isinstance(function, ast.Name):
            module, name = names.get(function.id, ("", function.id))
            is_dangerous = name in DANGEROUS if not module else name in DANGEROUS_IN.get(module, ())
            calls |= {name} if is_dangerous else set()
        elif isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
            owner, name = function.value.id, function.attr
            calls |= {f"{owner}.{name}"} if name in DANGEROUS_IN.get(owner, ()) else set()
    return calls, {name for name in modules if name.partition(".")[0] == "ase"}


def source_of(module):
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None


def in_reach_of_readers():
    """{module of ASE: its dangerous calls}, of the readers of all formats and what they import."""
    todo = ["ase.io.formats", "ase.db"]
    todo += [f.module_name for f in ioformats.values() if f.can_read]
    found, seen = {}, set()
    while todo:
        module = todo.pop()
        path = None if module in seen else source_of(module)
        seen.add(module)
        if path is not None:
            calls, modules = calls_and_imports(path)
            found |= {module: calls} if calls else {}
            todo += sorted(modules - seen)
    return found


def test_every_dangerous_call_in_reach_of_ases_readers_is_judged():
    found = in_reach_of_readers()
    print(found)
    new = {module: calls for module, calls in found.items() if module not in CALLS}
    assert not new, (
        f"ASE {ase.__version__}: judge these and add them to CALLS, or refuse the format"
    )
    assert {"ase.io.pickletrajectory", "ase.calculators.castep"} <= found.keys()  # the scan finds


def test_our_own_readers_have_none():
    package = Path(unpack.__file__).parents[2]
    allowed = {"interop/mace_torch.py", "train/provenance.py", "doctor/environment.py"}
    allowed |= {"sweep/tune.py", "child_process.py"}
    found = {
        str(path.relative_to(package)): calls
        for path in package.rglob("*.py")
        if (calls := calls_and_imports(path)[0])
    }
    assert found.keys() <= allowed, {name: found[name] for name in found.keys() - allowed}
    assert found["interop/mace_torch.py"] == {"torch.load"}


@pytest.fixture
def text(tmp_path):
    write_xyz(tmp_path / "a.xyz", [molecule(-1.0)])
    return (tmp_path / "a.xyz").read_bytes()


NAMES = ("../../escaped.xyz", "/escaped.xyz", "a/../../escaped.xyz")


@pytest.mark.parametrize("kind", ["tar", "zip"])
@pytest.mark.parametrize("name", NAMES)
def test_members_stay_in_the_folder(kind, name, text, tmp_path):
    path, folder = tmp_path / f"a.{kind}", tmp_path / "in" / "in"
    if kind == "tar":
        with tarfile.open(path, "w") as archive:
            info = tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, text)
    ((copy, _),) = unpack.unpack(str(path), "a", folder)
    assert Path(copy).resolve().is_relative_to(folder.resolve())
    assert Path(copy).read_bytes() == text
    assert [p for p in tmp_path.rglob("escaped.xyz") if folder not in p.parents] == []


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_are_not_taken(kind, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        info = tarfile.TarInfo("passwd.xyz")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(InputError, match="holds no structures"):
        unpack.unpack(str(tmp_path / "a.tar"), "a.tar", tmp_path / "in")


def test_bombs_are_refused(text, tmp_path, monkeypatch):
    monkeypatch.setattr(unpack, "_ALWAYS", 1 << 20)
    (tmp_path / "a.xyz.gz").write_bytes(gzip.compress(bytes(8 << 20)))
    with pytest.raises(InputError, match="more than 200 times its size"):
        unpack.unpack(str(tmp_path / "a.xyz.gz"), "a.xyz.gz", tmp_path / "in")
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(8):
            archive.writestr(f"{i}.xyz", bytes(1 << 19))
    with pytest.raises(InputError, match="more than 200 times its size"):
        unpack.unpack(str(tmp_path / "a.zip"), "a.zip", tmp_path / "in")
    data = text
    for depth in range(5):
        data = (
            gzip.compress(data)
            if depth == 0
            else zipped("a.xyz.gz" if depth == 1 else "a.zip", data)
        )
    (tmp_path / "b.zip").write_bytes(data)
    with pytest.raises(InputError, match="archives in archives, 4 deep"):
        unpack.unpack(str(tmp_path / "b.zip"), "b.zip", tmp_path / "in")


def zipped(name, data):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, data)
    return buffer.getvalue()


def mace_hdf5(path, positions):
    """A file of mace_prepare_data whose positions ``positions(group)`` makes."""
    with h5py.File(path, "w") as file:
        group = file.create_group("config_batch_0/config_0")
        group["atomic_numbers"] = np.array([29])
        positions(group)
        group["cell"], group["pbc"] = np.eye(3), np.ones(3, bool)
        group["weight"], group["config_type"], group["head"] = 1.0, "a", "None"
        for name, value in (("properties", -1.0), ("property_weights", 1.0)):
            group.create_group(name)["energy"] = value


def external_link(group):
    with h5py.File(f"{group.file.filename}.other", "w") as other:
        other["x"] = np.zeros((1, 3))
    group["positions"] = h5py.ExternalLink(f"{group.file.filename}.other", "x")


def external_storage(group):
    Path(f"{group.file.filename}.raw").write_bytes(bytes(24))
    group.create_dataset(
        "positions", (1, 3), "f8", external=[(f"{group.file.filename}.raw", 0, 24)]
    )


def declared(group):
    group.create_dataset("positions", (1 << 40, 3), "f8", chunks=(1024, 3))


def plugin(group):
    space, plan = h5py.h5s.create_simple((1, 3)), h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_chunk((1, 3))
    plan.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, ())  # Zstandard, by a plugin
    h5py.h5d.create(group.id, b"positions", h5py.h5t.NATIVE_DOUBLE, space, plan)


@pytest.mark.parametrize(
    ("positions", "words"),
    [
        (external_link, "has a link positions"),
        (external_storage, "takes its bytes from other files"),
        (declared, "bytes by its shape, 0 here"),
        (plugin, "a plugin for the filter 32015"),
    ],
)
def test_hdf5_of_mace_torch_is_of_itself_alone(positions, words, tmp_path):
    mace_hdf5(tmp_path / "a.h5", lambda group: group.update({"positions": np.zeros((1, 3))}))
    assert read(tmp_path / "a.h5")[0].energy == -1.0
    mace_hdf5(tmp_path / "b.h5", positions)
    with pytest.raises(InputError, match=words):
        read(tmp_path / "b.h5")
