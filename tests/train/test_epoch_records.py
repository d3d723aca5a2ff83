"""Damaged lines of metrics.jsonl are skipped, and named."""

import json
import re

import pytest

from mace_train.errors import InputError
from mace_train.evaluate.compare import read_metrics
from mace_train.train.epoch_records import checked_epoch_record

GOOD = {"epoch": 0, "step": 3, "stage": "one", "train_loss": None, "structures": 8, "epoch_s": 0.5}
GOOD |= {"total_s": 0.5, "valid_loss": 2.5, "noise_scale": None}


def test_a_record():
    assert checked_epoch_record(GOOD) == GOOD


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"epoch": 1.5}, "epoch=1.5 is not a whole number"),
        ({"epoch_s": None}, "epoch_s=None is not a number"),
        ({"structures": "8"}, "structures='8' is not a number"),
        ({"valid_loss": [1]}, r"valid_loss=\[1\] is not a number or a string or null"),
        ({"stage": 1}, "stage=1 is not a string"),
    ],
)
def test_what_is_no_record(changed, message, tmp_path, caplog):
    with pytest.raises(ValueError, match=message):
        checked_epoch_record(GOOD | changed)
    (tmp_path / "metrics.jsonl").write_text(f"{json.dumps(GOOD)}\n{json.dumps(GOOD | changed)}\n")
    assert read_metrics(tmp_path) == [GOOD]
    assert re.search(rf"line 2 is damaged \({message}\) and skipped", caplog.text)


def test_lines_that_are_no_json_and_a_cut_one(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{json.dumps(GOOD)}\n{{"epoch": 1')
    assert read_metrics(tmp_path) == [GOOD]
    path.write_bytes(json.dumps(GOOD).encode() + b"\n\xff\xfe\n")
    assert read_metrics(tmp_path) == [GOOD]
    assert "line 2 is damaged" in caplog.text
    path.write_text("[]\n")
    with pytest.raises(InputError, match="holds no epoch yet"):
        read_metrics(tmp_path)
    assert re.search(r"line 1 is damaged \(.* is no record", caplog.text)
    path.write_text(json.dumps({k: v for k, v in GOOD.items() if k != "step"}) + "\n")
    with pytest.raises(InputError, match="holds no epoch yet"):
        read_metrics(tmp_path)
    assert "step is missing" in caplog.text
