"""A damaged record of a job is named."""

import json

import pytest

from mace_train.errors import InputError
from mace_train.sweep.job_status import FILE, read_record

GOOD = {"state": "done", "overrides": ["seed=1"], "host": "a", "process": 1, "started": 1.0}
GOOD |= {"ended": 2.0, "log": None}


def test_a_record(tmp_path):
    assert read_record(tmp_path) is None
    (tmp_path / FILE).write_text(json.dumps(GOOD))
    assert read_record(tmp_path) == GOOD


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"state": None}, "state=None is not a string"),
        ({"overrides": "seed=1"}, "overrides='seed=1' is not a list"),
        ({"started": "now"}, "started='now' is not a number"),
        ({"process": True}, "process=True is not a whole number"),
    ],
)
def test_what_is_none(changed, message, tmp_path):
    (tmp_path / FILE).write_text(json.dumps(GOOD | changed))
    with pytest.raises(InputError, match=message):
        read_record(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "1"])
def test_another_file(content, tmp_path):
    (tmp_path / FILE).write_text(content)
    with pytest.raises(InputError, match=FILE):
        read_record(tmp_path)
