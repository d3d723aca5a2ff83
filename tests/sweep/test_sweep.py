"""Sweeps in this process and their summary; searches with Optuna that are cut off and continue."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mace_train.errors import InputError
from mace_train.settings import SweepSettings
from mace_train.sweep.job_status import read_record, recorded
from mace_train.sweep.sweep import summarise
from tests.conftest import TINY_MODEL, run_command

FAST = (*TINY_MODEL, "cluster=cpu", "cluster.kernels=reference", "batching.batch_size=4")


@pytest.mark.slow
def test_a_sweep_is_summarised_and_continues(prepared, tmp_path, capsys):
    settings = [f"data_dir={prepared}", f"output={tmp_path}/sweep", *FAST, "restart_latest=true"]
    swept = ["optimizer.lr=0.01,-1", "seed=1,2", "max_num_epochs=1"]
    with pytest.raises(SystemExit) as end:
        run_command("train", "--multirun", *settings, *swept)
    assert end.value.code == 2
    assert "job 2: optimizer.lr=-1" in capsys.readouterr().err
    assert [read_record(tmp_path / f"sweep/{k}")["state"] for k in range(4)] == [
        *["done"] * 2,
        *["failed"] * 2,
    ]
    run_command("sweep", tmp_path / "sweep")
    shown = capsys.readouterr().out
    rows = json.loads((tmp_path / "sweep/sweep.json").read_text())["jobs"]
    errors = [row["error"] for row in rows]
    assert errors[:2] == sorted(errors[:2])
    assert errors[2:] == [None, None]
    for row in rows[:2]:  # the numbers are those that the trainings wrote
        record = json.loads((tmp_path / f"sweep/{row['job']}/metrics.jsonl").read_text())
        assert row["error"] == record["valid_loss"]
        assert row["settings"].keys() == {"optimizer.lr", "seed"}
    assert "job 2 failed: " in shown
    assert "must be greater than" in shown
    table = (tmp_path / "sweep/sweep.csv").read_text().splitlines()
    assert table[0].startswith("job,optimizer.lr,seed,valid_loss")
    assert len(table) == 5
    assert (tmp_path / "sweep/sweep.png").stat().st_size > 5000
    # again: what is done is left alone
    weights = (tmp_path / "sweep/0/checkpoints/last.safetensors").read_bytes()
    run_command("train", "--multirun", *settings, "optimizer.lr=0.01", "seed=1,2", swept[2])
    assert (tmp_path / "sweep/0/checkpoints/last.safetensors").read_bytes() == weights
    with pytest.raises(InputError, match=r"mean valid_loss\?\); they have: valid_loss, valid_en"):
        summarise(SweepSettings(folder=str(tmp_path / "sweep"), by="valid_los"))
    with pytest.raises(InputError, match="holds no jobs of a sweep"):
        summarise(SweepSettings(folder=str(prepared)))


def test_a_killed_job_is_listed_with_the_last_line_of_its_log(tmp_path, capsys):
    folder = tmp_path / "0"
    program = (
        "import os, pathlib, sys\n"
        "from mace_train.sweep.job_status import recorded\n"
        f"with recorded(pathlib.Path({str(folder)!r}), ['seed=1']):\n"
        "    print('the last words', file=sys.stderr, flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    with open(tmp_path / "log.txt", "w") as log:
        subprocess.run([sys.executable, "-c", program], stderr=log)
    (row,) = summarise(SweepSettings(folder=str(tmp_path)))
    assert row["state"] == "killed or starting"
    assert row["why"] == f"the last words ({tmp_path}/log.txt)"
    capsys.readouterr()


@pytest.mark.parametrize(
    ("error", "state", "why"),
    [
        (SystemExit(75), "stopped", None),
        (SystemExit(143), "stopped", None),
        (KeyboardInterrupt(), "stopped", None),
        (SystemExit(3), "failed", "code 3"),
        (RuntimeError("first\nlast"), "failed", "last"),
        (InputError("what, where, remedy"), "failed", "what, where, remedy"),
    ],
)
def test_a_record_tells_a_stop_from_a_failure(error, state, why, tmp_path):
    with pytest.raises(type(error)), recorded(tmp_path / "x", []):
        raise error
    record = read_record(tmp_path / "x")
    assert (record["state"], record.get("error")) == (state, why)


def tune(prepared: Path, output: Path, *words: str) -> list[str]:
    space = ["optimizer.lr=tag(log,interval(0.001,0.1))", "loss=weighted,universal"]
    training = [f"data_dir={prepared}", "max_num_epochs=1", *FAST, *space]
    return ["tune", f"output={output}", "by=valid_forces_rmse_eV_per_A", *words, "--", *training]


@pytest.mark.slow
def test_a_search_continues_where_it_was_cut_off(prepared, tmp_path, capsys):
    pytest.importorskip("optuna")
    output = tmp_path / "tune"
    command = [sys.executable, "-m", "mace_train", *tune(prepared, output, "trials=1")]
    cut_off = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    while not (output / "0/log.txt").exists():
        assert cut_off.poll() is None
        time.sleep(0.05)
    os.killpg(cut_off.pid, signal.SIGKILL)
    cut_off.wait()
    assert read_record(output / "0")["state"] == "running"
    proposed = read_record(output / "0")["overrides"]
    run_command(*tune(prepared, output, "trials=1"))
    (row,) = json.loads((output / "sweep.json").read_text())["jobs"]
    assert (row["job"], row["state"]) == ("0", "done")
    assert row["error"] > 0
    settings = read_record(output / "0")["overrides"]
    assert settings == proposed
    (lr,) = [word for word in settings if word.startswith("optimizer.lr=")]
    assert 0.001 <= float(lr.partition("=")[2]) <= 0.1
    run_command(*tune(prepared, output, "trials=1"))  # the search is complete
    assert not (output / "1").exists()
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--", "data_dir=x", "seed=1"], "nothing to search"),
        (["--", "data_dir=x", "seed=1,2", "output=y"], "tune sets this for each trial"),
        (["trials=0", "--", "seed=1,2"], "at least 1"),
        ([], "tune needs training"),
    ],
)
def test_a_wrong_search_is_an_error(words, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run_command("tune", f"output={tmp_path}/tune", *words)
    assert message in capsys.readouterr().err
