"""Records and journals of which a full disk or a loss of power has left half a line, or zeros."""

import pytest

from mace_train.train.log import read_records


def test_damaged_lines_of_metrics_are_skipped_with_a_warning(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    assert read_records(path) == []
    path.write_bytes(b'{"epoch": 0}\n' + bytes(20) + b'\n[3]\n{"epoch": 1}\n{"epoch": 2, "st')
    assert read_records(path) == [{"epoch": 0}, {"epoch": 1}]
    assert "metrics.jsonl: line 2 is damaged and skipped (2 such)" in caplog.text


@pytest.mark.parametrize("content", [b"", b"{}\n", b'{}\n{"op_co', b'{"op'])
def test_half_a_line_of_the_journal_of_a_search_is_cut_off(content, tmp_path):
    pytest.importorskip("optuna")
    from mace_train.sweep.tune import _complete

    path = tmp_path / "search.journal"
    path.write_bytes(content)
    _complete(path)
    assert path.read_bytes() == content[: content.rfind(b"\n") + 1]
    assert list(tmp_path.iterdir()) == [path]
