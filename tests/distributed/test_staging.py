"""Shards copied to the node's own disk: the same bytes, once, removed at the end."""

import os

import pytest

from mace_train.distributed import staging
from mace_train.distributed.staging import staged
from mace_train.distributed.world import World
from mace_train.errors import InputError, StorageError
from tests.killed import limited_files


def files(folder):
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder): path.read_bytes() for path in paths}


def test_without_a_place_the_folder_itself_is_used(prepared):
    with staged(prepared, None, World()) as folder:
        assert folder == prepared


def test_the_copy_is_whole_and_temporary(prepared, tmp_path):
    with staged(prepared, str(tmp_path / "disk"), World()) as copy:
        assert copy.parent == tmp_path / "disk"
        assert files(copy) == files(prepared)
    assert list((tmp_path / "disk").iterdir()) == []


def test_what_a_killed_start_of_the_job_left_is_used_or_made_again(prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    with staged(prepared, str(tmp_path), World()) as copy:
        name = copy.name
    incomplete = tmp_path / f"{name}.incomplete"
    incomplete.mkdir()
    (incomplete / "half").write_text("x")
    with staged(prepared, str(tmp_path), World()) as copy:  # the half copy is not taken
        assert files(copy) == files(prepared)
        before = os.stat(copy).st_ino
        with staged(prepared, str(tmp_path), World()) as again:  # the whole one is
            assert os.stat(again).st_ino == before


def test_a_disk_that_is_full_or_refuses_is_an_error(prepared, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match=r"cluster.stage_to=.*cannot copy"),
        staged(prepared, str(tmp_path / "file"), World()),
    ):
        pass
    usage = staging.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda path: usage._replace(free=10))
    with (
        pytest.raises(StorageError, match=r"GB are needed, 0\.0 GB free"),
        staged(prepared, str(tmp_path / "disk"), World()),
    ):
        pass
    monkeypatch.undo()
    with (
        pytest.raises(StorageError, match=r"cannot copy .* there \(.*File too large"),
        limited_files(100),
        staged(prepared, str(tmp_path / "disk"), World()),
    ):
        pass
    assert list((tmp_path / "disk").iterdir()) == []
