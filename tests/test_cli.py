"""The command line: commands, help, sweeps, printed settings, exit codes of the real program."""

import json
import os
import pkgutil
import signal
import subprocess
import sys
import time

import pytest

from mace_train import __version__, cli
from tests.conftest import TINY_MODEL, run_command


def test_help_and_version(capsys):
    run_command("--version")
    assert capsys.readouterr().out.strip() == f"mace-train {__version__}"
    run_command("--help")
    text = capsys.readouterr().out
    assert all(words in text for words in ("preprocess", "evaluate", "torchrun"))
    for command in cli.COMMANDS:
        run_command(command, "--help")
        text = capsys.readouterr().out
        assert "Settings:" in text
    run_command("train", "--help")
    text = capsys.readouterr().out
    assert "model: density, large, medium, mp_0b2_large," in text
    assert "optimizer.lr: float = 0.01" in text


@pytest.mark.parametrize(("name", "command"), cli.COMMANDS.items())
def test_a_command_is_in_the_module_of_its_name(name, command):
    module, _, function = command.target.partition(":")
    keyword = {"import": "import_model"}  # no module can be called import
    assert module.rpartition(".")[2] == keyword.get(name, name.replace("-", "_"))
    target = pkgutil.resolve_name(command.target)
    assert target.__module__ == module
    assert target.__name__ == function
    settings = {*command.schema.__dataclass_fields__}
    short_ways = (command.leading, command.leading_list, command.trailing_list)
    assert {setting for setting in short_ways if setting} <= settings


@pytest.mark.parametrize(
    ("command", "words", "expected"),
    [
        ("report", ["runs/a", "worst=3"], ["run='runs/a'", "worst=3"]),
        ("report", ["run=runs/a"], ["run=runs/a"]),
        ("report", ["--cfg", "job"], ["--cfg", "job"]),
        ("train", ["seed=1"], ["seed=1"]),
        ("compare", ["a", "b", "output=c"], ["runs=['a','b']", "output=c"]),
        ("compare", ["runs=[a]"], ["runs=[a]"]),
        (
            "tune",
            ["trials=2", "--", "seed=1", "x=[1,2]"],
            ["trials=2", "training=['seed=1','x=[1,2]']"],
        ),
        ("import", ["a.model", "output=b"], ["model_file='a.model'", "output=b"]),
        ("import", ["model=a.model"], ["model_file=a.model"]),
        ("from-mace-config", ["--", "--r_max=5"], ["arguments=['--r_max=5']"]),
        ("from-mace-config", ["run.yaml"], ["config='run.yaml'"]),
        ("train", ["--job", "1", "seed=1,2", "output=s"], ["seed=2", "output='s/1'"]),
    ],
)
def test_short_command_lines(command, words, expected):
    assert cli._hydra_words(cli.COMMANDS[command], words) == expected


def test_cfg_prints_the_settings_and_runs_nothing(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_command("train", "--cfg", "job", "model=large", "optimizer.lr=0.5")
    text = capsys.readouterr().out
    assert "max_L: 2" in text
    assert "lr: 0.5" in text
    assert list(tmp_path.iterdir()) == []


def test_multirun_gives_every_job_its_folder(prepared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_command(
        "train",
        "--multirun",
        f"data_dir={prepared}",
        "output=sweep",
        "max_num_epochs=1",
        "cluster=cpu",
        "seed=1,2",
        *TINY_MODEL,
    )
    losses = []
    for job in ("0", "1"):
        folder = tmp_path / "sweep" / job
        assert json.loads((folder / "settings.json").read_text())["seed"] == int(job) + 1
        assert (folder / "checkpoints" / "best.safetensors").exists()
        losses.append(json.loads((folder / "metrics.jsonl").read_text())["train_loss"])
    assert losses[0] != losses[1]


def test_a_failing_job_does_not_end_a_sweep(prepared, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    settings = [f"data_dir={prepared}", "output=sweep", "max_num_epochs=1", "cluster=cpu"]
    with pytest.raises(SystemExit) as stop:
        run_command("train", "--multirun", *settings, "optimizer.lr=0.01,-1,0.02", *TINY_MODEL)
    message = capsys.readouterr().err
    assert stop.value.code == 2
    assert "job 1: optimizer.lr=-1" in message
    assert message.count("must be greater than 0") == 2  # when it happens, and at the end
    for job, finished in (("0", True), ("1", False), ("2", True)):
        path = tmp_path / "sweep" / job / "checkpoints" / "best.safetensors"
        assert path.exists() == finished


def test_sigterm_ends_with_a_checkpoint(prepared, tmp_path):
    settings = [f"data_dir={prepared}", f"output={tmp_path / 'run'}", "max_num_epochs=10000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "mace_train", "train", *settings, "cluster=cpu", *TINY_MODEL],
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while not (metrics.exists() and metrics.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, message = process.communicate(timeout=240)
    assert process.returncode == os.EX_TEMPFAIL
    assert "stopped by signal 15 after step" in message
    last = json.loads((tmp_path / "run" / "checkpoints" / "last.json").read_text())
    assert f"after step {last['progress']['step']};" in message
    assert "Traceback" not in message


def test_a_yaml_of_the_user(prepared, tmp_path, capsys):
    (tmp_path / "exp.yaml").write_text(
        "defaults: [train, {override model: tiny}, _self_]\nseed: 77\n"
    )
    run_command("train", "--config-dir", tmp_path, "--config-name", "exp", "--cfg", "job")
    text = capsys.readouterr().out
    assert "seed: 77" in text
    assert "num_channels: 32" in text


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--version"], 0, __version__),
        (["train", "loss.force_weight=1"], 2, "did you mean loss.forces_weight"),
        (["evaluate", "checkpoint=nowhere", "test_file=x.xyz"], 2, "x.xyz: no such file"),
    ],
)
def test_the_program_itself(arguments, code, words, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mace_train", *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert words in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


IMPORTED = """
import sys
from mace_train import cli
cli.main(["--help"])
cli.main(sys.argv[1:])
import mace_train.train.setup
heavy = [name for name in ("mpi4py", "ortools", "wandb", "e3nn") if name in sys.modules]
assert not heavy, heavy
"""


def test_packages_of_single_features_are_imported_where_they_are_used(prepared, tmp_path):
    """A start-up, the set-up of a training and a training import none of them."""
    settings = [f"data_dir={prepared}", "output=run", "max_num_epochs=1", "cluster=cpu"]
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED, "train", *settings, *TINY_MODEL],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "checkpoints" / "best.safetensors").exists()
