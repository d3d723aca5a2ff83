"""Records and journals of which a full disk or a loss of power has left half a line, or zeros."""

import json
import re

import pytest

from mace_train.train.log import read_records

GOOD = {"step": 3, "stage": "one", "train_loss": None, "structures": 8, "epoch_s": 0.5}
GOOD |= {"total_s": 0.5}


def test_damaged_lines_of_metrics_are_skipped_with_a_warning(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    assert read_records(path) == []
    zero, one = (GOOD | {"epoch": epoch} for epoch in (0, 1))
    lines = (json.dumps(zero).encode(), bytes(20), b"[3]", json.dumps(one).encode(), b'{"epoch": 2')
    path.write_bytes(b"\n".join(lines))
    assert read_records(path) == [zero, one]
    assert re.search(r"metrics.jsonl: line 2 is damaged \(.*\) and skipped \(2 such\)", caplog.text)


@pytest.mark.parametrize("content", [b"", b"{}\n", b'{}\n{"op_co', b'{"op'])
def test_half_a_line_of_the_journal_of_a_search_is_cut_off(content, tmp_path):
    pytest.importorskip("optuna")
    from mace_train.sweep.tune import _complete

    path = tmp_path / "search.journal"
    path.write_bytes(content)
    _complete(path)
    assert path.read_bytes() == content[: content.rfind(b"\n") + 1]
    assert list(tmp_path.iterdir()) == [path]
