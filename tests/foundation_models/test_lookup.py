"""Names, licences and caches; processes that want the same file, or are interrupted."""

import hashlib
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mace_train.errors import InputError
from mace_train.foundation_models import lookup
from mace_train.foundation_models.lookup import (
    cache_folder,
    check_licence,
    imported_checkpoint,
    model_file,
    named,
)
from mace_train.foundation_models.table import LICENCES, MODELS, TO_ACCEPT, FoundationModel
from mace_train.settings import DataSettings, FoundationSettings, ImportSettings
from tests.conftest import run_command
from tests.foundation_models.server import WITH_TINY, names, serving, torch_file
from tests.interrupted import ROOT, interrupted
from tests.killed import small_disk
from tests.train.processes import LINUX

FILE = torch_file()
SECOND = torch_file(seed=1)


@pytest.fixture(autouse=True)
def logger():
    """Without handlers that commands of other tests have left."""
    logging.getLogger("mace_train").handlers.clear()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Our cache and mace-torch's, which are empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "cache" / "mace").mkdir(parents=True)
    return tmp_path / "cache"


@pytest.fixture
def server():
    with serving(FILE) as state:
        yield state


def model_of(server, name="tiny", licence="MIT", sha256=None) -> FoundationModel:
    return FoundationModel(name, "of a test", licence, (server.url(),), None, sha256)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_the_table():
    for name, model in MODELS.items():
        assert model.name == name
        assert model.licence in LICENCES
        assert all(address.startswith("https://") for address in model.addresses)
        assert {address.rpartition("/")[2] for address in model.addresses} == {model.file}
        assert model.file.endswith(".model")
        assert model.n_bytes is None or 10**6 < model.n_bytes < 10**9
        assert model.sha256 is None or len(bytes.fromhex(model.sha256)) == 32
    assert len({model.file for model in MODELS.values()}) == len(MODELS)
    academic = {name for name, model in MODELS.items() if model.licence in TO_ACCEPT}
    assert {"small", "medium-0b3", "medium-mpa-0"} & academic == set()
    assert {"medium-omat-0", "mace-matpes-pbe-0", "mh-1", "mace_omol", "large_off"} < academic


@pytest.mark.filterwarnings("ignore")
def test_names_and_addresses_are_those_of_mace_torch():
    from tests.model.mace_torch import import_mace

    try:
        import_mace()
    except ImportError:
        pytest.skip("mace-torch is not installed")
    from mace.calculators import foundations_models as theirs

    expected = dict(theirs.mace_mp_urls)
    expected |= {f"{size}_off": url for size, url in theirs.mace_off_urls.items()}
    found = {name: model.addresses[0] for name, model in MODELS.items() if name != "mace_omol"}
    assert found == expected
    assert lookup.NOT_READ.keys() == theirs.polar_model_urls.keys()


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("medium-mpa-0", "medium-mpa-0"),
        ("mace_omol", "mace_omol"),
        ("runs/small", None),
        ("small.model", None),
        ("./small", None),
        ("nowhere", None),
        ("", None),
        ("a" * 5000, None),
    ],
)
def test_what_is_a_name_and_what_a_path(value, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = named("checkpoint", value)
    assert (found and found.name) == name


def test_a_folder_with_the_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert named("checkpoint", "small") is MODELS["small"]
    (tmp_path / "small").mkdir()
    assert named("checkpoint", "small") is None
    assert imported_checkpoint("small") == Path("small")


@pytest.mark.parametrize(
    ("value", "near"),
    [
        ("medium-mpa0", "medium-mpa-0"),
        ("mpa-0-medium", "medium-mpa-0"),
        ("MH-1", "mh-1"),
        ("off_small", "small_off"),
        ("mace-omol", "mace_omol"),
        ("medium_omat_0", "medium-omat-0"),
        ("mpa-0", "medium-mpa-0"),
    ],
)
def test_the_nearest_name_is_in_the_message(value, near):
    with pytest.raises(InputError, match=rf"model_file={value}: no such .* mean {near}\?\); `mace"):
        named("model_file", value)


def test_a_model_that_cannot_be_read_is_not_downloaded():
    with pytest.raises(InputError, match="model_file=polar-1-m: a PolarMACE, whose long-range"):
        named("model_file", "polar-1-m")


def test_an_academic_licence_is_accepted_by_its_name():
    model = MODELS["mh-1"]
    check_licence(MODELS["medium-mpa-0"], None, "accept_licence")
    check_licence(model, "ASL", "accept_licence")
    for accepted in (None, "MIT"):
        words = r"not permit commercial use; .* foundation\.accept_licence=ASL$"
        with pytest.raises(InputError, match=rf"mh-1 \(MACE-MH-1\) .* Software License .*{words}"):
            check_licence(model, accepted, "foundation.accept_licence")
    with pytest.raises(InputError, match=r"^MIT is not its licence: mh-1"):
        check_licence(model, "MIT", "foundation.accept_licence")
    with pytest.raises(InputError, match=r"`mace-train import mh-1 accept_licence=ASL output=FOL"):
        imported_checkpoint("mh-1")
    for make in (ImportSettings, DataSettings, FoundationSettings):
        with pytest.raises(InputError, match=r"accept_licence='yes' is not known.* MIT, ASL"):
            make(accept_licence="yes")
    with pytest.raises(InputError, match=r"needs foundation\.checkpoint"):
        FoundationSettings(accept_licence="ASL")


def test_a_licence_that_is_not_the_models_is_said(cache, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "mace_train"):
        for accepted in (None, "MIT"):
            check_licence(MODELS["medium-mpa-0"], accepted, "accept_licence")
        check_licence(MODELS["mh-1"], "ASL", "accept_licence")
        check_licence(None, None, "accept_licence")
    assert caplog.messages == []
    with caplog.at_level(logging.WARNING, "mace_train"):
        check_licence(MODELS["medium-mpa-0"], "ASL", "foundation.accept_licence")
        imported_checkpoint(tmp_path, "ASL")
    assert caplog.messages == [
        "foundation.accept_licence=ASL is not used: medium-mpa-0 is published under the MIT "
        "licence",
        "accept_licence=ASL is not used: it is for foundation models by their names",
    ]
    with pytest.raises(InputError, match=r"^data\.accept_licence: needs data\.foundation_model"):
        DataSettings(accept_licence="ASL")


def test_commands_ask_for_the_licence(cache, prepared, xyz, tmp_path, capsys):
    output = f"output={tmp_path / 'out'}"
    train = ("train", f"data_dir={prepared}", "foundation.checkpoint=mh-1", "cluster=cpu", output)
    data = ("preprocess", f"data.train_file={xyz}", "data.E0s=foundation")
    for words, setting in (
        (("import", str(xyz), "accept_licence=ASL", output), "accept_licence=ASL is not used"),
        (("import", "mh-1", output), "say so with accept_licence=ASL"),
        (train, "say so with foundation.accept_licence=ASL"),
        ((*data, "data.foundation_model=mh-1", output), "say so with data.accept_licence=ASL"),
        (("export", "mh-1", output), "mace-train import mh-1 accept_licence=ASL output=FOLDER"),
    ):
        with pytest.raises(SystemExit):
            run_command(*words)
        assert setting in capsys.readouterr().err
    assert names(cache) == {"mace"}


def test_a_file_is_downloaded_once_and_its_hash_kept(cache, server, caplog):
    model = model_of(server)
    with caplog.at_level(logging.INFO, "mace_train"):
        path = model_file(model)
    assert path == cache_folder() / "a.model"
    assert path.read_bytes() == FILE
    assert caplog.messages == [f"downloading {server.url()} (? MB, MIT) to {path}"]
    assert names(path.parent) == {"a.model", "a.model.sha256", ".a.model.lock"}
    record = (path.parent / "a.model.sha256").read_text()
    assert record == f"{digest(FILE)}  a.model\n"  # as sha256sum writes it
    assert model_file(model) == path
    assert server.requests == [None]
    path.write_bytes(SECOND)
    words = rf"a\.model: its sha256 is {digest(SECOND)}, not {digest(FILE)}; remove it and a\.mod"
    with pytest.raises(InputError, match=words):
        model_file(model)
    (path.parent / "a.model.sha256").write_text("")
    with pytest.raises(InputError, match=r"a\.model\.sha256, cannot be read"):
        model_file(model)
    path.unlink()
    (path.parent / "a.model.sha256").unlink()
    assert model_file(model).read_bytes() == FILE


def test_a_file_that_somebody_put_there_is_compared_with_the_table(cache, server):
    cache_folder().mkdir(parents=True)
    (cache_folder() / "a.model").write_bytes(FILE)
    assert model_file(model_of(server, sha256=digest(FILE))).read_bytes() == FILE
    with pytest.raises(InputError, match=f"not {digest(SECOND)}"):
        model_file(model_of(server, sha256=digest(SECOND)))
    (cache_folder() / "a.model").write_text("<html>")
    with pytest.raises(InputError, match="no model of PyTorch, or cut short; remove it"):
        model_file(model_of(server))
    assert server.requests == []


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("https://h/2023-12-03-mace-128-L1_epoch-199.model", "20231203mace128L1_epoch199model"),
        ("https://h/MACE-OFF23_medium.model", "MACE-OFF23_medium.model"),
    ],
)
def test_the_cache_of_mace_torch_is_looked_into(address, name, cache, caplog):
    model = FoundationModel("tiny", "of a test", "MIT", (address,), None, digest(FILE))
    place = cache / "mace" / name
    place.write_bytes(FILE)
    assert model_file(model) == place
    assert lookup.found_file(model) == place
    assert names(cache) == {"mace"}


@pytest.mark.parametrize("content", [SECOND, FILE[:5000], b""])
def test_a_damaged_file_of_mace_torch_is_left_alone(content, cache, server, caplog):
    place = cache / "mace" / "a.model"
    place.write_bytes(content)
    assert model_file(model_of(server, sha256=digest(FILE))) == cache_folder() / "a.model"
    assert place.read_bytes() == content
    assert caplog.messages[0].startswith(f"{place} is not used: it")


def test_offline_the_message_says_what_to_do(cache, server):
    server.plan = ["404"]
    with pytest.raises(InputError) as error:
        model_file(model_of(server))
    target = cache_folder() / "a.model"
    assert str(error.value) == (
        f"tiny cannot be downloaded: {server.url()}: the server answers 404 Not Found; download "
        f"a.model from {server.url()} yourself, elsewhere if need be, and put it to {target}, or "
        "give its path instead of tiny"
    )
    target.write_bytes(FILE)
    assert model_file(model_of(server)) == target


def test_a_cache_that_is_a_file(cache, server):
    (cache / "mace-train").write_text("")
    words = r"tiny: the cache .* cannot be written \(Not a directory\); set XDG_CACHE_HOME to a fo"
    with pytest.raises(InputError, match=words):
        model_file(model_of(server))


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to mount a file system")
def test_a_cache_that_is_read_only(tmp_path, monkeypatch, server):
    with small_disk(tmp_path / "disk", "4m"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "disk"))
        (tmp_path / "disk" / "mace").mkdir()
        (tmp_path / "disk" / "mace" / "a.model").write_bytes(FILE)
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path / "disk")], check=True)
        assert model_file(model_of(server, sha256=digest(FILE))).parent.name == "mace"
        with pytest.raises(InputError, match=r"cannot be written \(Read-only file system\); set X"):
            model_file(model_of(server, sha256=digest(SECOND)))
        monkeypatch.setitem(MODELS, "tiny", model_of(server))
        with pytest.raises(InputError, match="or import it elsewhere: mace-train import tiny outp"):
            imported_checkpoint("tiny")


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to mount a file system")
def test_a_cache_that_is_full(tmp_path, monkeypatch, server):
    with small_disk(tmp_path / "disk", "500k"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "disk"))
        with pytest.raises(InputError, match="0 MB are free, 1 MB are needed") as error:
            model_file(model_of(server))
        assert error.value.exit_code == 74
        assert names(cache_folder()) == {".a.model.lock"}


def program(server, *words: str) -> list[str]:
    return [sys.executable, "-c", WITH_TINY, server.url(), *words]


def test_two_processes_download_a_file_once(cache, server, tmp_path):
    server.plan = ["slow"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    running = [
        subprocess.Popen(
            program(server, "import", "tiny", f"output={tmp_path / str(i)}"),
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    messages = [process.communicate(timeout=100)[1] for process in running]
    assert server.requests == [None], messages
    assert (cache_folder() / "a.model").read_bytes() == FILE
    assert sum("downloading" in message for message in messages) == 1
    assert any("waiting for the download of a.model in another process" in m for m in messages)
    for message in messages:  # the file is noise
        assert "cannot be read without running what is in it" in message


@LINUX
def test_an_interrupt_leaves_what_can_be_continued(server, tmp_path):
    server.plan = ["stall 400000"]
    folder = tmp_path / "cache" / "mace-train" / "foundation_models"

    def begun() -> bool:
        return any(path.stat().st_size == 400_000 for path in folder.glob(".*.part"))

    command = program(server, "import", "tiny", "output=out")
    ended = interrupted(command, tmp_path, 0.1, after=begun, allowed=(".a.model.*.part",))
    assert ended.problems() == [], ended.errors
    assert ended.code == 130
    (part,) = folder.glob(".*.part")
    assert names(folder) == {part.name, ".a.model.lock"}
    assert not (tmp_path / "out").exists()
    environment = os.environ | {
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "continuing after 0 of 1 MB" in done.stderr
    assert server.requests == [None, None, "bytes=400000-"]
    assert (folder / "a.model").read_bytes() == FILE
    assert names(folder) == {"a.model", "a.model.sha256", ".a.model.lock"}


def test_import_alone_lists_the_names(cache, capsys):
    (cache / "mace" / "macempa0mediummodel").write_bytes(FILE)
    run_command("import")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "model", "licence", "MB", "here"]
    assert len(lines) == 1 + len(MODELS)
    by_name = {line.split()[0]: line.split() for line in lines[1:]}
    assert by_name["medium-mpa-0"] == ["medium-mpa-0", "MACE-MPA-0", "medium", "MIT", "79", "yes"]
    assert by_name["mh-0"] == ["mh-0", "MACE-MH-0", "ASL", "?"]
    assert max(map(len, lines)) <= 80
