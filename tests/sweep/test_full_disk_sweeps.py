"""--multirun and tune on a full disk: exit code 74, and the same command continues."""

import json
from pathlib import Path

import pytest

from tests.conftest import TINY_MODEL, run_command
from tests.killed import limited_files
from tests.test_full_disk import FULL, REFERENCE, fails

ROOM = 8_000  # a checkpoint needs more, the records of a sweep less


def states(sweep: Path) -> list[str]:
    """What the records of the jobs say, in their order."""
    return [json.loads((sweep / f"{job}/job.json").read_text())["state"] for job in (0, 1)]


def test_a_multirun_on_a_full_disk(prepared, tmp_path, capsys):
    sweep = tmp_path / "sweep"
    words = ["train", "--multirun", f"data_dir={prepared}", "max_num_epochs=1", "seed=1,2"]
    words += [f"output={sweep}", "restart_latest=true", *REFERENCE, *TINY_MODEL]
    with limited_files(ROOM):
        code, message = fails(words, capsys)
    assert code == FULL
    assert "job 0: " in message
    assert "job 1: " in message
    assert "cannot write a checkpoint" in message
    assert states(sweep) == ["failed", "failed"]
    run_command(*words)
    assert states(sweep) == ["done", "done"]


@pytest.mark.parametrize(
    "launch", ["", pytest.param("torchrun --nproc-per-node=1", marks=pytest.mark.slow)]
)
def test_a_search_on_a_full_disk(launch, prepared, tmp_path, capsys):
    pytest.importorskip("optuna")
    sweep = tmp_path / "search"
    words = ["tune", "trials=2", f"output={sweep}", *([f"launch='{launch}'"] if launch else [])]
    words += ["--", f"data_dir={prepared}", "max_num_epochs=1", "seed=1,2", *REFERENCE, *TINY_MODEL]
    with limited_files(ROOM):
        code, message = fails(words, capsys)
    assert code == FULL
    assert f"trial in {sweep}/0: " in message
    assert "cannot write a checkpoint" in message
    assert not (sweep / "1").exists()  # the first continues, before another is drawn
    run_command(*words)
    assert states(sweep) == ["done", "done"]
