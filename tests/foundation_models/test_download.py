"""Downloads from a server on this machine that cuts, stalls, lies, moves and changes files."""

import hashlib
import os
import shutil
import socket
import subprocess
from collections import namedtuple

import pytest

from mace_train.errors import InputError, StorageError
from mace_train.foundation_models import download as downloading
from mace_train.foundation_models.download import download
from tests.foundation_models.server import PAGE, names, serving, torch_file
from tests.killed import limited_files

FILE = torch_file()


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(downloading, "PAUSE_S", 0.0)
    monkeypatch.setattr(downloading, "STALLED_S", 0.4)
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with serving(FILE) as state:
        yield state


@pytest.fixture
def target(tmp_path):
    return tmp_path / "a.model"


def parts(target) -> list[int]:
    """Bytes in what is kept of unfinished downloads."""
    return sorted(path.stat().st_size for path in target.parent.glob(".a.model.*.part"))


def test_a_file_is_whole_and_alone(server, target):
    assert download([server.url()], target, n_bytes=len(FILE), sha256=digest(FILE)) == digest(FILE)
    assert target.read_bytes() == FILE
    assert names(target.parent) == {"a.model"}
    assert server.requests == [None]


@pytest.mark.parametrize("fault", ["cut", "stall"])
def test_a_lost_connection_is_continued(server, target, fault):
    server.plan = [f"{fault} 400000", "serve", f"{fault} 300000"]
    assert download([server.url()], target) == digest(FILE)
    assert target.read_bytes() == FILE
    assert names(target.parent) == {"a.model"}
    assert server.requests == [None, None, "bytes=400000-", None, "bytes=700000-"]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("cut 0", "it gives no model"),
        ("cut 100", f"the connection ended after [0-9]+ of {len(FILE)} bytes"),
        ("stall 100", "no answer for 0 s"),
        ("503", "the server answers 503 Service Unavailable"),
    ],
)
def test_a_server_that_brings_nothing_is_left(server, target, fault, message):
    server.plan = [fault] * 20
    with pytest.raises(InputError, match=f"^{server.url()}: {message}") as error:
        download([server.url()], target)
    assert not isinstance(error.value, StorageError)
    assert len(server.requests) <= 6
    assert not target.exists()


def test_what_came_is_kept_for_the_next_time(server, target):
    server.plan = ["cut 400000", *["503"] * 3]
    with pytest.raises(InputError, match="503"):
        download([server.url()], target)
    assert parts(target) == [400_000]
    server.requests.clear()
    download([server.url()], target)
    assert target.read_bytes() == FILE
    assert server.requests == [None, "bytes=400000-"]
    assert names(target.parent) == {"a.model"}


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ("page", "it gives no model but text/html that begins b'<!DOCTYPE html><html><bo'"),
        ("404", "the server answers 404 Not Found"),
        ("403", "the server answers 403 Forbidden"),
        ("to http://example.org/a.model", "it redirects to http://example.org/a.model, which is"),
        ("to ftp://127.0.0.1/a.model", "it redirects to ftp://127.0.0.1/a.model, which is not"),
        ("to file:///etc/passwd", "the server answers 302 .*not allowed"),
    ],
)
def test_what_is_no_model_is_refused_at_once(server, target, plan, message):
    server.plan = [plan]
    with pytest.raises(InputError, match=f"^{server.url()}: {message}"):
        download([server.url()], target)
    assert names(target.parent) == set()
    assert len(server.requests) == 1


def test_a_redirect_keeps_the_range(server, target):
    server.plan = ["cut 400000", "serve", f"to {server.url('elsewhere')}"]
    download([server.url()], target)
    assert target.read_bytes() == FILE
    assert server.paths[-1] == "/elsewhere"
    assert server.requests[-1] == "bytes=400000-"


@pytest.mark.parametrize("content", [PAGE * 100, FILE[:-200], b"PK\x03\x04" + bytes(1000)])
def test_what_only_looks_like_a_model_is_removed(server, target, content):
    server.content = content
    with pytest.raises(InputError, match=r"no model|cut short, or no file of torch\.save"):
        download([server.url()], target)
    assert names(target.parent) == set()


def test_the_size_and_the_hash_must_be_those_published(server, target):
    with pytest.raises(InputError, match=f"has {len(FILE)} bytes, the published file 1234$"):
        download([server.url()], target, n_bytes=1234)
    with pytest.raises(InputError, match=f"sha256 {digest(FILE)}, not {'0' * 64} as published"):
        download([server.url()], target, sha256="0" * 64)
    assert names(target.parent) == set()


def test_a_file_of_unknown_length(server, target):
    server.plan = ["nolength"]
    assert download([server.url()], target) == digest(FILE)
    server.plan = ["nolength"]
    server.content = FILE + bytes(10)
    with pytest.raises(InputError, match=r"cut short|as published"):
        download([server.url()], target, sha256=digest(FILE))


def test_a_server_without_ranges_sends_all_again(server, target):
    server.plan = ["cut 400000", "serve", "no"]
    assert download([server.url()], target) == digest(FILE)
    assert target.read_bytes() == FILE


def test_ranges_that_the_server_has_not(server, target):
    server.plan = ["cut 400000", "serve", "416"]
    assert download([server.url()], target) == digest(FILE)
    assert server.requests == [None, None, "bytes=400000-", None]


OTHER = torch_file(seed=1)


@pytest.mark.parametrize("etag", ['"first"', 'W/"first"', None])
@pytest.mark.parametrize("sha256", [digest(OTHER), None], ids=["with checksum", "without checksum"])
@pytest.mark.parametrize("when", [["swap"], ["serve", "swap"]], ids=["at once", "later"])
def test_a_file_that_changes_meanwhile_is_never_mixed(server, target, etag, sha256, when):
    """The two have the same length; without an ETag, the hash tells, or nothing is continued."""
    assert len(OTHER) == len(FILE)
    server.etag, server.next = etag, OTHER
    server.plan = ["cut 400000", *when]
    download([server.url()], target, sha256=sha256)
    assert target.read_bytes() in ((OTHER,) if sha256 else (OTHER, FILE))
    assert names(target.parent) == {"a.model"}


def test_a_part_that_is_complete_is_taken(server, target):
    server.plan = ["cut 400000", "serve"]
    with pytest.raises(KeyboardInterrupt):
        interrupt_at_the_end(server, target)
    assert parts(target) == [len(FILE)]
    server.requests.clear()
    assert download([server.url()], target) == digest(FILE)
    assert server.requests == [None]


def interrupt_at_the_end(server, target):
    def stop(path):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(downloading, "sha256_of", stop)
        download([server.url()], target)


def test_the_next_address_is_asked(server, target):
    server.plan = ["404"]
    assert download([server.url("old"), server.url("new")], target) == digest(FILE)
    assert server.paths == ["/old", "/new"]


def unused_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_a_host_without_an_answer_is_asked_once(server, target):
    closed = f"http://127.0.0.1:{unused_port()}"
    with pytest.raises(InputError) as error:
        download([f"{closed}/a", f"{closed}/b"], target)
    assert str(error.value) == f"{closed}/a: Connection refused"


@pytest.mark.parametrize("address", ["http://example.org/a.model", "file:///etc/hostname"])
def test_only_https_is_used(target, address):
    with pytest.raises(InputError, match="unknown url type"):
        download([address], target)


def test_the_proxy_of_the_environment_is_used(server, target, monkeypatch):
    monkeypatch.setenv("http_proxy", server.address)
    address = f"http://127.0.0.1:{unused_port()}/a.model"
    assert download([address], target) == digest(FILE)
    assert server.paths == [address]


def test_too_little_room_is_said_before(server, target, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10_000))
    with pytest.raises(StorageError, match="0 MB are free, 1 MB are needed; free space there"):
        download([server.url()], target)
    assert names(target.parent) == set()


def test_a_full_disk_leaves_what_can_be_continued(server, target):
    with limited_files(500_000), pytest.raises(StorageError, match=r"a\.model\..*\.part: file too"):
        download([server.url()], target)
    assert parts(target) == [500_000]
    server.requests.clear()
    download([server.url()], target)
    assert server.requests == [None, "bytes=500000-"]
    assert target.read_bytes() == FILE


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to mount a file system")
def test_a_disk_that_is_really_full(server, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"file systems cannot be mounted here: {done.stderr.strip()}")
    try:
        server.plan = ["nolength"]  # so that it is not known before
        with pytest.raises(StorageError, match="no space left on device") as error:
            download([server.url()], disk / "a.model")
        assert error.value.exit_code == 74
    finally:
        subprocess.run(["umount", str(disk)], check=True)
