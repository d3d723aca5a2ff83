"""wandb and TensorBoard on a full disk: one line, and the training's own record goes on."""

import json
import logging
import threading
from pathlib import Path

import pytest

from mace_train import interrupts
from mace_train.errors import StorageError
from mace_train.settings import LoggerSettings
from mace_train.train.boards import Board
from mace_train.train.log import MetricsLog
from tests.killed import limited_files


def record(epoch: int) -> dict[str, float]:
    """Many numbers, each of which is an entry in TensorBoard's file."""
    return {"epoch": epoch, "step": epoch + 1} | {f"x{i}": 1.0 for i in range(60)}


@pytest.fixture
def warnings(caplog, monkeypatch):
    """A function that gives the messages of warnings so far."""
    monkeypatch.setattr(logging.getLogger("mace_train"), "propagate", True)
    return lambda: [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(28, "No space left on device"), "runs/a/x: no space left on device; free space"),
        (RuntimeError("a thread has ended"), "runs/a/x: RuntimeError: a thread has ended"),
    ],
)
def test_a_board_that_fails_is_left_with_one_line(error, words, warnings):
    written: list[int] = []

    def write(numbers: dict[str, int]) -> None:
        if numbers["step"] == 2:
            raise error
        written.append(numbers["step"])

    def close(exit_code: int) -> None:
        written.append(100 + exit_code)
        raise error

    board = Board(Path("runs/a/x"), write, close)
    for step in (1, 2, 3):
        board.write({"step": step})
    board.close(1)
    assert written == [1, 101]
    (message,) = warnings()
    assert message.startswith(f"no more numbers: {words}")


@pytest.mark.filterwarnings("ignore")  # of its thread, which fails as well
def test_tensorboard_on_a_full_disk(tmp_path, warnings):
    pytest.importorskip("tensorboard", reason="needs the extra loggers")
    log = MetricsLog(LoggerSettings(tensorboard=True), tmp_path, "test", {})
    log.keep_until(-1, 0)
    log.write(record(0))
    (events,) = (tmp_path / "tensorboard").iterdir()
    with limited_files(events.stat().st_size + 100):
        for epoch in (1, 2):
            log.write(record(epoch))
    log.write(record(3))
    log.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [0, 1, 2, 3]
    (message,) = [text for text in warnings() if "no more numbers" in text]
    assert f"{tmp_path / 'tensorboard'}: file too large; raise the limit" in message


def test_a_thread_that_meets_a_full_disk_prints_one_line(capfd, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", interrupts._of_thread)

    def fail() -> None:
        raise OSError(28, "No space left on device", "o/x")

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    text = capfd.readouterr().err
    assert text == "warning: a thread failed: [Errno 28] No space left on device: 'o/x'\n"


@pytest.mark.filterwarnings("ignore")
def test_wandb_that_cannot_start_leaves_nothing_open(tmp_path):
    pytest.importorskip("wandb", reason="needs the extra loggers")
    before = list(logging.getLogger("mace_train").handlers)
    with limited_files(4), pytest.raises(StorageError, match="wandb_id: file too large"):
        MetricsLog(LoggerSettings(wandb=True), tmp_path, "test", {})
    assert logging.getLogger("mace_train").handlers == before
    assert {path.name for path in tmp_path.iterdir()} == {"train.log"}
