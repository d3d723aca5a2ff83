"""Records of a run: JSON lines, CSV, wandb offline and TensorBoard."""

import csv
import json
import math

import pytest

from mace_train.settings import LoggerSettings
from mace_train.train.log import MetricsLog, epoch_line


def record(epoch: int, **more: float) -> dict[str, float]:
    base = {
        "epoch": epoch,
        "step": 10 * (epoch + 1),
        "train_loss": 1.0 / (epoch + 1),
        "valid_loss": 2.0,
        "atoms_per_s": 1234.5,
        "imbalance": 1.01,
        "time_to_go_s": 3725.0,
        "stage": "1",
        "structures": 8.0,
        "epoch_s": 1.0,
        "total_s": 1.0 + epoch,
    }
    return base | more


def test_json_lines_and_csv_hold_the_same(tmp_path):
    log = MetricsLog(LoggerSettings(), tmp_path, "test", {})
    for epoch in range(3):
        log.write(record(epoch, grad_norm=math.inf if epoch == 1 else 0.5, extra=1.0))
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    with open(tmp_path / "metrics.csv") as handle:
        rows = list(csv.DictReader(handle))
    assert [line["epoch"] for line in lines] == [int(row["epoch"]) for row in rows] == [0, 1, 2]
    assert [line["train_loss"] for line in lines] == [float(row["train_loss"]) for row in rows]
    assert lines[1]["grad_norm"] is None  # JSON has no infinity
    assert lines[0]["extra"] == 1.0


def test_a_resumed_run_continues_its_record(tmp_path):
    log = MetricsLog(LoggerSettings(), tmp_path, "test", {})
    for epoch in range(3):
        log.write(record(epoch))
    with open(tmp_path / "metrics.jsonl", "a") as handle:
        handle.write('{"epoch": 3, "tra')  # killed while writing
    log.close()
    again = MetricsLog(LoggerSettings(), tmp_path, "test", {})
    again.keep_until(1, 20)
    again.write(record(2, train_loss=7.0))
    again.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    assert lines[2]["train_loss"] == 7.0
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 4


def test_epoch_line_says_what_people_watch():
    line = epoch_line(
        record(
            1,
            valid_energy_rmse_eV_per_atom=0.0123,
            valid_forces_rmse_eV_per_A=0.0456,
            valid_stress_rmse_eV_per_A3=0.001,
        ),
        5,
    )
    for words in ("epoch 2/5", "12.30 meV/atom", "45.6 meV/Å", "1234 atoms/s", "1.010", "1:02:05"):
        assert words in line


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard", reason="needs the extra loggers")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = MetricsLog(LoggerSettings(tensorboard=True), tmp_path, "test", {})
    log.keep_until(-1, 0)
    log.write(record(0))
    log.write(record(1))
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("train_loss")] == [10, 20]
    assert [e.value for e in events.Scalars("train_loss")] == [1.0, 0.5]


@pytest.mark.filterwarnings("ignore")
def test_wandb_offline(tmp_path):
    log = MetricsLog(LoggerSettings(wandb=True), tmp_path, "test", {"a": 1})
    log.write(record(0))
    log.close()
    runs = list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(runs) == 1
    assert runs[0].stat().st_size > 0
    again = MetricsLog(LoggerSettings(wandb=True), tmp_path, "test", {"a": 1})
    again.close()
    names = {path.name for path in tmp_path.glob("wandb/offline-run-*/run-*.wandb")}
    assert names == {runs[0].name}  # a resumed training goes on with the same run
