"""Ctrl-C: the real program ends in time, says so once, and leaves neither files nor processes."""

import os
import random
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from mace_train.sweep.job_status import read_record
from tests.conftest import TINY_MODEL
from tests.interrupted import PROGRAM, ROOT, interrupted
from tests.train.processes import LINUX, REFERENCE, records_so_far, wait_for

pytestmark = LINUX
FAST = ["cluster=cpu", "batching.batch_size=4", *TINY_MODEL]
KEPT = (".out.partial", *(".out.partial" + n * "/*" for n in range(1, 5)))


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.15])
def test_while_it_imports(tmp_path, delay):
    outcome = interrupted([*PROGRAM, "train", "data_dir=nowhere"], tmp_path, delay)
    assert outcome.problems() == []
    assert outcome.errors == "mace-train: interrupted\n"


def random_moments(name: str, seconds: float, n: int) -> list[float]:
    return [random.Random(f"{name} {i}").uniform(0, seconds) for i in range(n)]


@pytest.mark.parametrize("to", ["group", "process"])
@pytest.mark.parametrize("workers", [1, 2])
def test_preprocess(xyz, tmp_path, workers, to):
    command = ["preprocess", f"data.train_file={xyz}", "r_max=5", "output=out"]
    command += ["structures_per_shard=4", "data.valid_fraction=0.2", f"workers={workers}"]
    for i, delay in enumerate(random_moments(f"{workers} {to}", 5.0, 2)):
        folder = tmp_path / str(i)
        folder.mkdir()
        outcome = interrupted([*PROGRAM, *command], folder, delay, to=to, allowed=KEPT)
        assert outcome.problems() == [], outcome.errors


def training(prepared: Path, *more: str) -> list[str]:
    words = ["train", f"data_dir={prepared}", "output=out", "max_num_epochs=10000"]
    return [*PROGRAM, *words, *FAST, REFERENCE, *more]


@pytest.mark.parametrize("more", [(), ("cluster.num_workers=2",), ("checkpoints.every_steps=1",)])
def test_training_at_random_moments(prepared, tmp_path, more):
    for i, delay in enumerate(random_moments(str(more), 8.0, 2)):
        outcome = interrupted(training(prepared, *more), tmp_path / str(i), delay)
        assert outcome.problems() == [], outcome.errors
        assert outcome.code == 130


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (signal.SIGINT, 130, "interrupted after step"),
        (signal.SIGHUP, os.EX_TEMPFAIL, "stopped by signal 1 after step"),
    ],
)
def test_a_training_keeps_what_it_has_learned(prepared, tmp_path, number, code, words):
    from mace_train.train.checkpoint import read

    with open(tmp_path / "log", "w+") as log:
        process = subprocess.Popen(
            training(prepared), cwd=tmp_path, stderr=log, preexec_fn=_default_signals
        )
        wait_for((tmp_path / "out" / "checkpoints" / "last.safetensors").exists, process)
        process.send_signal(number)
        assert process.wait(60) == code
        log.seek(0)
        message = log.read()
    assert message.count("interrupted") == (code == 130)
    assert "Traceback" not in message
    _, header = read(tmp_path / "out" / "checkpoints" / "last.safetensors")
    if words in message:  # else a step took longer than there was time
        assert f"{words} {header['progress']['step']};" in message
    epochs = f"max_num_epochs={header['progress']['epoch'] + 2}"
    command = training(prepared, epochs, "restart_latest=true")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


BEHIND_THE_RECORD = """
import signal
from mace_train.train import train
log = train._log_epoch
def interrupted_log(*arguments):
    log(*arguments)
    signal.raise_signal(signal.SIGINT)
train._log_epoch = interrupted_log
from mace_train.__main__ import run
run()
"""


def test_between_a_record_and_its_checkpoint_the_epoch_is_kept(prepared, tmp_path):
    command = [sys.executable, "-c", BEHIND_THE_RECORD, *training(prepared)[len(PROGRAM) :]]
    done = subprocess.run(
        command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=_default_signals
    )
    assert done.returncode == 130
    assert done.stderr.count("interrupted after step") == 1
    assert (tmp_path / "out" / "checkpoints" / "last.safetensors").exists()


def _default_signals() -> None:
    """As in a shell; where & has started the tests, SIGINT is ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_a_sweep_ends_with_its_job(prepared, tmp_path):
    command = training(prepared, "seed=1,2,3")
    command.insert(command.index("train") + 1, "--multirun")
    process = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=_default_signals
    )
    wait_for(lambda: records_so_far(tmp_path / "out" / "0"), process)
    process.send_signal(signal.SIGINT)
    assert "Traceback" not in process.communicate(timeout=60)[1]
    assert process.returncode == 130
    record = read_record(tmp_path / "out" / "0")
    assert record is not None
    assert record["state"] == "stopped"
    assert not (tmp_path / "out" / "1").exists()


# compilers that never end, and have a child that does the work
COMPILER = """#!/bin/sh
case "$*" in *--version*|*-dM*|*-S*) exec {real} "$@";; esac
touch {started}
while [ $# -gt 1 ]; do shift; done
touch "$1"
sleep 600
"""


@pytest.mark.parametrize("to", ["group", "process"])
def test_while_kernels_are_compiled(prepared, tmp_path, monkeypatch, to):
    import shutil

    real = shutil.which("c++") or shutil.which("g++")
    if real is None:
        pytest.skip("no C++ compiler")
    (tmp_path / "bin").mkdir()
    compiler = tmp_path / "bin" / "c++"
    compiler.write_text(COMPILER.format(real=real, started=tmp_path / "started"))
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    command = [word for word in training(prepared) if word != REFERENCE]
    outcome = interrupted(
        command, tmp_path, 0.1, to=to, after=lambda: (tmp_path / "started").exists()
    )
    assert outcome.problems() == [], outcome.errors
    assert outcome.code == 130


def test_the_trainings_of_a_search_end_too(prepared, tmp_path):
    words = [f"data_dir={prepared}", "max_num_epochs=10000", *FAST, REFERENCE, "seed=1,2"]
    command = [*PROGRAM, "tune", "trials=2", "output=out", "--", *words]
    metrics = tmp_path / "out" / "0" / "metrics.jsonl"
    outcome = interrupted(command, tmp_path, 0.0, to="process", after=metrics.exists)
    assert outcome.problems() == [], outcome.errors
    assert outcome.code == 130
    log = (tmp_path / "out" / "0" / "log.txt").read_text()
    assert log.count("interrupted") == 1
    assert (read_record(tmp_path / "out" / "0") or {})["state"] == "stopped"


SCRIPT = """
import hashlib, sys, threading, time
from pathlib import Path
from mace_train import interrupts
from mace_train.child_process import run_child

class SlowDestructor:  # which swallows KeyboardInterrupt
    def __del__(self):
        time.sleep(1.0)

def work(how):
    Path("ready").touch()
    if how == "destructor":
        SlowDestructor()
    if how == "in C":
        hashlib.pbkdf2_hmac("sha256", b"x", b"y", 2**31 - 1)
    if how == "child":
        run_child(["sh", "-c", "sleep 600 & sleep 600"])
    if how == "slow cleaning":
        try:
            time.sleep(60)
        finally:
            time.sleep(60)
    if how == "thread":
        threading.Thread(target=time.sleep, args=(600,)).start()
    time.sleep(60)

interrupts.install()
interrupts.begin_work()
try:
    with interrupts.unfinished("unfinished.tmp"):
        Path("unfinished.tmp").touch()
        work(sys.argv[1])
except KeyboardInterrupt:
    Path("unfinished.tmp").unlink()
    interrupts.say()
    interrupts.end_work(130)
    sys.exit(130)
"""


@pytest.mark.parametrize("how", ["destructor", "in C", "child", "slow cleaning", "thread"])
def test_what_does_not_end_by_itself(tmp_path, how):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "script.py", how]
    outcome = interrupted(command, tmp_path, 0.1, after=(tmp_path / "ready").exists)
    assert outcome.problems() == [], outcome.errors
    assert outcome.code == 130


def test_a_second_one_ends_at_once(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, "script.py", "slow cleaning"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        preexec_fn=_default_signals,
    )
    wait_for((tmp_path / "ready").exists, process)
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert time.monotonic() - begin < 1.4  # not the end of the time that cleaning has


def test_one_that_is_ignored_stays_ignored(tmp_path):
    code = """
import os, signal
from mace_train import interrupts
signal.signal(signal.SIGINT, signal.SIG_IGN)
interrupts.install()
os.kill(os.getpid(), signal.SIGINT)
print("goes on")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "goes on\n"


def test_a_reader_that_ends(prepared, tmp_path):
    for command in (["inspect", str(prepared)], ["--help"], ["train", "--help"]):
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            [*PROGRAM, *command], stdout=writer, stderr=subprocess.PIPE, cwd=tmp_path, check=False
        )
        os.close(writer)
        assert done.stderr == b""
        assert done.returncode == 141


def test_both_ways_to_start_begin_alike():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"]["mace-train"] == "mace_train.__main__:run"
