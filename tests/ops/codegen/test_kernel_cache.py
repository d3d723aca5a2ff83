"""The cache of kernels: a file is made once, damaged ones again, and no stranger's code is run."""

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from mace_train.errors import InputError
from mace_train.ops.codegen import kernel_cache
from mace_train.ops.codegen.kernel_cache import built, content
from mace_train.ops.cpp import compiler as cpp_compiler

SOURCE = 'extern "C" int run() { return 7; }'
needs_compiler = pytest.mark.skipif(
    cpp_compiler.find_compiler() is None, reason="needs a C++ compiler"
)


@pytest.fixture(autouse=True)
def nothing_is_remembered():
    kernel_cache._own_folder.cache_clear()
    yield
    kernel_cache._own_folder.cache_clear()


@pytest.fixture
def private(tmp_path, monkeypatch) -> Path:
    """The folder for temporary files, to which a private cache goes."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    return tmp_path / "tmp"


class Maker:
    """Writes a text, and counts how often."""

    def __init__(self) -> None:
        self.n = 0

    def __call__(self, path: Path) -> None:
        self.n += 1
        path.write_text("made")


def test_a_file_is_made_once(tmp_path, caplog):
    make = Maker()
    path = built("a", ".txt", tmp_path / "cache", make)
    assert built("a", ".txt", tmp_path / "cache", make) == path
    assert make.n == 1
    assert content(path) == b"made"
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert not caplog.messages
    assert {p.suffix for p in path.parent.iterdir()} == {".txt", ".lock"}


@pytest.mark.parametrize("damage", [b"", b"made", b"mode"])
def test_a_damaged_file_is_made_again(damage, tmp_path, caplog):
    make = Maker()
    path = built("a", ".txt", tmp_path, make)
    whole = path.read_bytes()
    path.write_bytes(damage if len(damage) < 4 else damage + whole[4:-1] + b"?")
    assert built("a", ".txt", tmp_path, make) == path
    assert make.n == 2
    assert path.read_bytes() == whole
    assert caplog.messages == [f"{path} is damaged and is compiled again"]


def test_a_failure_leaves_nothing(tmp_path):
    def fail(path: Path) -> None:
        path.write_text("half")
        raise RuntimeError("no compiler")

    with pytest.raises(RuntimeError, match="no compiler"):
        built("a", ".txt", tmp_path, fail)
    assert {p.suffix for p in tmp_path.iterdir()} == {".lock"}


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777])
def test_a_folder_of_this_user_is_closed_to_others(mode, tmp_path, caplog):
    make = Maker()
    path = built("a", ".txt", tmp_path / "cache", make)
    path.parent.chmod(mode)
    kernel_cache._own_folder.cache_clear()
    assert built("a", ".txt", tmp_path / "cache", make) == path
    assert make.n == 1
    assert path.parent.stat().st_mode & 0o022 == 0
    assert not caplog.messages


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o022, 0o077])
def test_files_are_made_once_under_any_umask(umask, tmp_path, caplog):
    before = os.umask(umask)
    try:
        make = Maker()
        path = built("a", ".txt", tmp_path / "cache", make)
        assert built("a", ".txt", tmp_path / "cache", make) == path
    finally:
        os.umask(before)
    assert make.n == 1
    assert path.stat().st_mode & 0o022 == 0
    assert not caplog.messages


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to give files to other users")
def test_a_folder_that_others_can_write_is_not_used(tmp_path, private, caplog):
    make, shared = Maker(), tmp_path / "cache"
    planted = built("a", ".txt", shared, make)
    os.chown(shared, 12345, 12345)
    shared.chmod(0o777)
    kernel_cache._own_folder.cache_clear()
    path = built("a", ".txt", shared, make)
    assert path != planted
    assert path.parent == private / f"mace-train-{os.getuid()}"
    assert make.n == 2
    (message,) = caplog.messages
    assert message.startswith(f"kernels are not kept in {shared} (others can write there")
    assert built("a", ".txt", shared, make) == path
    assert make.n == 2


def test_a_file_that_others_can_write_is_not_used(tmp_path, private):
    make = Maker()
    path = built("a", ".txt", tmp_path / "cache", make)
    path.chmod(0o666)
    again = built("a", ".txt", tmp_path / "cache", make)
    assert make.n == 2
    assert stat.S_IMODE(again.stat().st_mode) & 0o022 == 0


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to give files to other users")
@pytest.mark.parametrize("what", ["folder", "file"])
def test_what_belongs_to_another_user_is_not_used(what, tmp_path, private):
    make = Maker()
    path = built("a", ".txt", tmp_path / "cache", make)
    os.chown(path.parent if what == "folder" else path, 12345, 12345)
    kernel_cache._own_folder.cache_clear()
    again = built("a", ".txt", tmp_path / "cache", make)
    assert make.n == 2
    assert again.stat().st_uid == 0


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become another user")
def test_users_share_what_root_has_filled(tmp_path):
    """Another user reads what is there and keeps what is missing in a folder of its own."""
    cache = tmp_path / "cache"
    path = built("a", ".txt", cache, Maker())
    for folder in (cache, *tmp_path.parents, tmp_path):
        if tmp_path.parts[:3] == folder.parts[:3] and len(folder.parts) > 2:
            folder.chmod(0o755)
    code = f"""
import os, sys, tempfile
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[3])!r})
from mace_train.ops.codegen.kernel_cache import built
made = []
def make(path):
    made.append(path)
    path.write_text("made")
os.setgid(12345), os.setuid(12345)
print(built("a", ".txt", Path({str(cache)!r}), make), len(made))
print(built("b", ".txt", Path({str(cache)!r}), make).parent.name, len(made))
"""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp").chmod(0o1777)
    environment = os.environ | {"TMPDIR": str(tmp_path / "tmp")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == [f"{path} 0", "mace-train-12345 1"]
    assert "kernels are not kept" not in done.stderr


def open_to_all(tmp_path):
    tmp_path.chmod(0o777)
    return tmp_path / "cache"


def of_another(tmp_path):
    os.chown(tmp_path, 12345, 12345)
    return tmp_path / "cache"


def through_a_link_of_another(tmp_path):
    """In a folder like /tmp, where everybody may put links."""
    (tmp_path / "real").mkdir()
    tmp_path.chmod(0o1777)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    os.chown(tmp_path / "link", 12345, 12345, follow_symlinks=False)
    return tmp_path / "link" / "cache"


def through_a_link_to_what_is_open(tmp_path):
    (tmp_path / "open" / "real").mkdir(parents=True)
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "link").symlink_to(tmp_path / "open" / "real")
    return tmp_path / "link" / "cache"


WAYS = [open_to_all, of_another, through_a_link_of_another, through_a_link_to_what_is_open]


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to give files to other users")
@pytest.mark.parametrize("way", WAYS)
def test_a_folder_that_others_can_replace_is_not_used(way, tmp_path, tmp_path_factory, caplog):
    make, safe = Maker(), tmp_path_factory.mktemp("safe")
    (tmp_path / "there").mkdir()
    cache = way(tmp_path / "there")
    tempfile.tempdir, before = str(safe), tempfile.tempdir
    try:
        path = built("a", ".txt", cache, make)
        assert built("a", ".txt", cache, make) == path
    finally:
        tempfile.tempdir = before
    assert path.parent == safe / f"mace-train-{os.getuid()}"
    assert make.n == 1
    (message,) = caplog.messages
    assert message.startswith(f"kernels are not kept in {cache} (others can write {tmp_path}/there")


def test_a_sticky_folder_above_is_fine(tmp_path, caplog):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o1777)
    path = built("a", ".txt", tmp_path / "shared" / "mine" / "cache", Maker())
    assert path.parent == tmp_path / "shared" / "mine" / "cache"
    assert stat.S_IMODE((tmp_path / "shared" / "mine").stat().st_mode) == 0o755
    assert not caplog.messages


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become another user")
def test_a_folder_in_that_of_another_user_is_not_used(tmp_path):
    """It is the user's own, but the other could put a folder in its place after it was checked."""
    cache = tmp_path / "above" / "cache"
    cache.mkdir(parents=True)
    for folder in (*tmp_path.parents, tmp_path):
        if tmp_path.parts[:3] == folder.parts[:3] and len(folder.parts) > 2:
            folder.chmod(0o755)
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp").chmod(0o1777)
    os.chown(cache, 12345, 12345)
    line = f"print(built('a', '.txt', Path({str(cache)!r}), make).parent)"
    assert run_as(12345, line, tmp_path) == f"{cache}\n"
    os.chown(cache.parent, 23456, 23456)
    run_as(23456, f"os.rename({str(cache)!r}, {str(cache)!r} + '-old')", tmp_path)  # it can
    run_as(23456, f"os.rename({str(cache)!r} + '-old', {str(cache)!r})", tmp_path)
    assert run_as(12345, line, tmp_path) == f"{tmp_path}/tmp/mace-train-12345\n"


def run_as(user, line, tmp_path) -> str:
    """Standard output of a line of Python that another user runs."""
    code = f"""
import os, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[3])!r})
from mace_train.ops.codegen.kernel_cache import built
made = []
def make(path):
    path.write_text("made")
os.setgid({user}), os.setuid({user})
{line}
"""
    environment = os.environ | {"TMPDIR": str(tmp_path / "tmp")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_compiler
@pytest.mark.parametrize("damage", ["empty", "cut", "text"])
def test_a_damaged_library_is_compiled_again(damage, tmp_path):
    """In a process of its own: a library that was cut may kill the process that loads it."""
    path = next(p for p in (cpp_compiler.library(SOURCE, tmp_path), *tmp_path.glob("*.so"))
                if isinstance(p, Path))  # fmt: skip
    whole = path.read_bytes()
    path.unlink()  # it is mapped here
    path.write_bytes({"empty": b"", "cut": whole[: len(whole) // 2], "text": b"text"}[damage])
    code = (
        "import sys; from pathlib import Path; from mace_train.ops.cpp.compiler import library;"
        "assert library(sys.argv[1], Path(sys.argv[2])).run() == 7"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, "-c", code, SOURCE, tmp_path]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "is damaged and is compiled again" in done.stderr
    assert path.read_bytes() == whole


@needs_compiler
def test_a_library_that_cannot_be_loaded_is_one_message(tmp_path, monkeypatch):
    monkeypatch.setattr(cpp_compiler, "_compile", lambda source, path: path.write_text("no ELF"))
    with pytest.raises(InputError, match="cannot be loaded"):
        cpp_compiler.library(SOURCE, tmp_path)
