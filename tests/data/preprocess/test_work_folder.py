"""work_folder: whole or nothing, and what is finished stays for the next run."""

import pytest

from mace_train.data.preprocess.work_folder import (
    cached_json,
    fingerprint,
    work_folder,
    write_json,
)
from mace_train.errors import InputError

EXPECTED = frozenset({"a", "b"})


def make(output, content="new", *, overwrite=False, error=None, finished=0):
    with work_folder(output, EXPECTED, overwrite=overwrite) as folder:
        (folder / "result").mkdir()
        (folder / "result" / "a").write_text(content)
        assert not (output / "a").exists() or (output / "a").read_text() != content
        for part in range(finished):
            (folder / "blocks" / f"{part}.json").write_text("{}")
        if error:
            raise error


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_appears_at_the_end(tmp_path):
    make(tmp_path / "x" / "out")
    assert names(tmp_path / "x") == ["out"]
    assert (tmp_path / "x" / "out" / "a").read_text() == "new"


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(1)])
def test_nothing_stays_after_an_error(tmp_path, error):
    with pytest.raises(type(error)):
        make(tmp_path / "out", error=error)
    assert names(tmp_path) == []
    make(tmp_path / "out", "old")
    with pytest.raises(type(error)):
        make(tmp_path / "out", overwrite=True, error=error)
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "a").read_text() == "old"


def test_overwrite(tmp_path):
    make(tmp_path / "out", "old")
    with pytest.raises(InputError, match="already holds data; set overwrite=true"):
        make(tmp_path / "out")
    make(tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "a").read_text() == "new"
    assert names(tmp_path) == ["out"]


def test_a_link_stays_a_link(tmp_path):
    make(tmp_path / "real", "old")
    (tmp_path / "out").symlink_to(tmp_path / "real")
    make(tmp_path / "out", overwrite=True)
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "real" / "a").read_text() == "new"
    assert names(tmp_path) == ["out", "real"]


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "out").mkdir()
    make(tmp_path / "out")
    assert names(tmp_path / "out") == ["a"]


def test_other_files_are_never_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match=r"holds other files \(thesis\.tex\)"):
        make(tmp_path / "out", overwrite=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        make(tmp_path / "file", overwrite=True)
    with pytest.raises(InputError, match="cannot write there"):
        make(tmp_path / "file" / "below")
    assert names(tmp_path) == ["file", "out"]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(143)])
def test_finished_parts_stay_for_the_next_run(tmp_path, error, caplog):
    caplog.set_level("INFO", logger="mace_train")
    with pytest.raises(type(error)):
        make(tmp_path / "out", error=error, finished=1)
    assert names(tmp_path) == [".out.partial"]
    assert "finished parts (1) are kept in" in caplog.text
    with work_folder(tmp_path / "out", EXPECTED, overwrite=False) as folder:
        assert (folder / "blocks" / "0.json").exists()
        assert (folder / "result" / "a").exists()
    assert names(tmp_path) == ["out"]


def test_one_process_at_a_time(tmp_path):
    with work_folder(tmp_path / "out", EXPECTED, overwrite=False) as folder:
        (folder / "result").mkdir()
        with pytest.raises(InputError, match=r"output=.* is in use by process"):
            make(tmp_path / "out")
    assert names(tmp_path) == ["out"]


def test_what_was_moved_away_is_restored(tmp_path):
    old = tmp_path / ".out.partial" / "replaced"
    old.mkdir(parents=True)
    (old / "a").write_text("old")
    with pytest.raises(InputError, match="already holds data"):
        make(tmp_path / "out")
    assert (tmp_path / "out" / "a").read_text() == "old"


def test_json_files_are_whole(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1})
    assert cached_json(tmp_path / "a.json", lambda: 1 / 0) == {"a": 1}
    assert cached_json(tmp_path / "b.json", lambda: [2]) == [2]
    assert names(tmp_path) == ["a.json", "b.json"]
    assert fingerprint(1, "a") != fingerprint(1, "b")
