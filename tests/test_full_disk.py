"""Every command on a disk that is full or may not be written: one line, nothing half-written.

A limit on the size of files makes writes fail in any container, for root too. Where file systems
can be mounted, the disk is really full. Afterwards the same command does its work.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mace_train.distributed.world import World
from mace_train.errors import InputError
from mace_train.settings import TrainSettings
from mace_train.train import checkpoint
from mace_train.train.setup import set_up
from mace_train.train.step import StepResult
from mace_train.train.train import fit, train
from tests.conftest import TINY_MODEL, run_command
from tests.killed import limited_files, small_disk
from tests.train.ranks import run_ranks
from tests.train.training import after_steps, assert_same_end, settings_for

REFERENCE = ("cluster=cpu", "cluster.kernels=reference")
CPU = ("device=cpu", "kernels=reference")
FULL, SOME = 74, 100


@pytest.fixture
def commands(xyz, prepared, trained, tmp_path) -> dict[str, list[str]]:
    """The words of every command that writes files, but for its output."""
    sweep = tmp_path / "sweep"
    (sweep / "0").mkdir(parents=True)
    record = {"state": "done", "overrides": ["seed=1"], "host": "node1", "process": 1}
    record |= {"started": 0.0, "ended": 1.0}
    (sweep / "0" / "job.json").write_text(json.dumps(record))
    (sweep / "0" / "metrics.jsonl").write_bytes((trained / "metrics.jsonl").read_bytes())
    model, data = f"checkpoint={trained}", f"data_dir={prepared}"
    return {
        "preprocess": [f"data.train_file={xyz}", "r_max=4.0", "data.valid_fraction=0.25"],
        "inspect": [str(prepared), "plots=true"],
        "balance": [data, "gpus=2"],
        "train": [data, "max_num_epochs=1", *REFERENCE, *TINY_MODEL],
        "evaluate": [model, data, "split=valid", "plots=false", *REFERENCE],
        "report": [str(trained), *REFERENCE],
        "compare": [str(trained)],
        "sweep": [str(sweep)],
        "md": [model, f"structure={xyz}", "index=9", "steps=2", *CPU],
        "relax": [model, f"structure={xyz}", "index=9", "max_steps=1", *CPU],
        "from-mace-config": ["--", "--name=x", f"--train_file={xyz}", "--r_max=4.0"],
    }


COMMANDS = (
    *("preprocess", "inspect", "balance", "train", "evaluate", "report", "compare", "sweep"),
    *("md", "relax", "from-mace-config"),
)


def with_output(name: str, words: list[str], output: Path) -> list[str]:
    """The words of a command that writes to ``output``; a sweep is summarised where it is."""
    place = [] if name == "sweep" else [f"output={output}"]
    at = words.index("--") if "--" in words else len(words)
    return [name, *words[:at], *place, *words[at:]]


def fails(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """(exit code, message) of a command that says one thing and ends."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run_command(*words)
    text = capsys.readouterr().err
    assert "Traceback" not in text
    assert text.count("mace-train: error: ") == 1, text
    message = text[text.index("mace-train: error: ") :].strip()
    assert len(message.splitlines()) == 1, message
    return int(stop.value.code or 0), message


def written(folder: Path) -> set[str]:
    """Files below ``folder`` that are not empty, but for locks and what preprocess keeps."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)
    names = {str(path.relative_to(folder)) for path in files}
    return {name for name in names if ".partial" not in name and not name.endswith(".lock")}


@pytest.mark.parametrize("name", COMMANDS)
def test_no_space_is_one_line_and_the_command_works_afterwards(name, commands, tmp_path, capsys):
    words = with_output(name, commands[name], tmp_path / "o")
    before = written(tmp_path)
    with limited_files(SOME):
        code, message = fails(words, capsys)
    assert code == FULL, message
    assert "file too large; raise the limit" in message
    assert str(tmp_path) in message
    assert written(tmp_path) == before
    run_command(*words, *(["restart_latest=true"] if name == "train" else []))
    assert len(written(tmp_path)) > len(before)
    assert not [path for path in tmp_path.rglob(".*") if path.name != ".lock"]


@pytest.mark.parametrize("form", ["state_dict", "export"])
def test_no_space_for_a_model_in_another_form(form, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mace_train.interop.export_model.has_mace_torch", lambda: False)
    target = tmp_path / ("o.safetensors" if form == "state_dict" else "o.pt2")
    words = ["export", str(trained), f"format={form}", f"output={target}"]
    with limited_files(SOME):
        code, message = fails(words, capsys)
    assert code == FULL, message
    assert "file too large; raise the limit" in message
    assert written(tmp_path) == set()
    run_command(*words)
    assert target.stat().st_size > SOME


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "sweep"])
@pytest.mark.parametrize(
    ("output", "words"),
    [("file", "file"), ("file/below", "Not a directory"), ("x" * 300, "too long")],
    ids=["a file", "below a file", "too long a name"],
)
def test_an_output_that_cannot_be_is_one_line(name, output, words, commands, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    before = written(tmp_path)
    code, message = fails(with_output(name, commands[name], tmp_path / output), capsys)
    assert code == 2
    assert "output" in message
    assert words.lower() in message.lower() or "File exists" in message
    assert written(tmp_path) == before


FILES = {"descriptors": ("d.h5", ["per_atom=true"]), "select": ("s.xyz", ["n=30"])}


@pytest.mark.parametrize("room", [SOME, 3_000, 9_000])
@pytest.mark.parametrize("name", FILES)
def test_a_file_without_room_is_one_line(name, room, trained, xyz, tmp_path, capsys):
    file, words = FILES[name]
    words = [name, f"checkpoint={trained}", f"structures={xyz}", *words, *REFERENCE]
    words.append(f"output={tmp_path / file}")
    with limited_files(room):
        code, message = fails(words, capsys)
    assert code == FULL, message
    assert f"{file}: file too large; raise the limit" in message
    assert not [*tmp_path.iterdir()]
    run_command(*words)
    assert [path.name for path in tmp_path.iterdir()] == [file]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", ["file/below", "x" * 300], ids=["below a file", "too long"])
def test_a_file_that_cannot_be_is_one_line(name, place, trained, xyz, tmp_path, capsys):
    file, words = FILES[name]
    (tmp_path / "file").write_text("mine")
    words = [name, f"checkpoint={trained}", f"structures={xyz}", *words, *REFERENCE]
    code, message = fails([*words, f"output={tmp_path / place / file}"], capsys)
    assert code == 2
    assert "ot a directory" in message or "ile name too long" in message
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("room", [8_000, 13_000, 30_000], ids=["no best", "no last", "no plot"])
def test_a_training_on_a_full_disk_continues_to_the_same_end(room, prepared, tmp_path, capsys):
    words = ["train", f"data_dir={prepared}", "max_num_epochs=2", "batching.batch_size=2"]
    words += ["default_dtype=float64", "checkpoints.every_steps=3", *REFERENCE, *TINY_MODEL]
    run_command(*words, f"output={tmp_path / 'whole'}")
    words += [f"output={tmp_path / 'run'}", "restart_latest=true"]
    with limited_files(room):
        code, message = fails(words, capsys)
    assert code == FULL
    assert "checkpoint" in message
    for path in (tmp_path / "run" / "checkpoints").glob("*.safetensors"):
        checkpoint.read(path)
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines(keepends=True):
        assert json.loads(line)
        assert line.endswith("\n")
    run_command(*words)
    assert_same_end(tmp_path / "whole", tmp_path / "run")


def on_a_full_disk(world: World, settings: TrainSettings, room: int) -> tuple[int, str]:
    """(exit code, message) of this rank, of which no file may be larger than ``room``."""
    try:
        with limited_files(room):
            fit(set_up(settings, world))
    except InputError as error:
        return error.exit_code, str(error)
    return 0, ""


def test_all_ranks_end_with_the_message_of_the_one_that_writes(prepared, tmp_path):
    settings = settings_for(prepared, tmp_path / "run", max_num_epochs=2)
    first, second = run_ranks(2, on_a_full_disk, tmp_path, settings, 8_000)
    assert first == second
    assert first[0] == FULL
    assert "cannot write a checkpoint" in first[1]


def test_a_folder_that_is_removed_during_the_run_is_named(prepared, tmp_path):
    output = tmp_path / "run"

    def remove(_: StepResult) -> None:
        if output.exists():
            output.rename(tmp_path / "moved")

    with after_steps(remove), pytest.raises(InputError, match=r"run/.* was removed") as error:
        train(settings_for(prepared, output, max_num_epochs=2))
    assert error.value.exit_code == 2
    assert not output.exists()


@pytest.mark.parametrize("name", ["preprocess", "evaluate", "report"])
@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to mount a file system")
def test_a_disk_that_is_really_full(name, commands, tmp_path, capsys):
    with small_disk(tmp_path / "disk", "60k"):
        words = with_output(name, commands[name], tmp_path / "disk" / "o")
        (tmp_path / "disk" / "filler").write_bytes(bytes(57_000))  # one page is left
        code, message = fails(words, capsys)
        assert code == FULL
        assert "no space left on device; free space there" in message
        left = written(tmp_path / "disk")
        assert left == {"filler"}


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to mount a file system")
@pytest.mark.parametrize("name", ["train", "evaluate", "preprocess"])
def test_a_file_system_that_is_read_only(name, commands, tmp_path, capsys):
    with small_disk(tmp_path / "disk", "1m"):
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path / "disk")], check=True)
        code, message = fails(with_output(name, commands[name], tmp_path / "disk" / "o"), capsys)
    assert code == 2
    assert "Read-only file system" in message or "no permission" in message


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /dev/full")
@pytest.mark.parametrize(
    ("words", "unbuffered"), [("--help", ""), ("inspect", ""), ("inspect", "1"), ("tune --cfg", "")]
)
def test_output_to_a_full_disk_is_one_line(words, unbuffered, prepared, tmp_path):
    command = [sys.executable, "-m", "mace_train", *words.split()]
    command += {"inspect": [str(prepared)], "tune --cfg": ["job"]}.get(words, [])
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path
        )
    assert done.returncode == FULL, done.stderr
    assert "the standard output: no space left on device; free space there" in done.stderr
    assert len(done.stderr.splitlines()) == 1


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
