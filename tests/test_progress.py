"""The one progress bar: on terminals a bar, in logs a line now and then."""

import io

from rich.console import Console

from mace_train import progress
from mace_train.progress import ProgressBar


def test_lines_in_a_log(caplog, monkeypatch):
    caplog.set_level("INFO", logger="mace_train")
    times = iter([0.0, 10.0, 31.0, 35.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(times))
    with ProgressBar("reading train_file", 1000, counted="structures", log=True) as bar:
        for _ in range(3):
            bar.advance(250, 31)
    assert caplog.messages == [
        "reading train_file: 50 %, 62 structures, 2 structures/s, 0.5 min to go"
    ]


def test_a_bar_on_a_terminal(monkeypatch):
    shown = io.StringIO()
    terminal = Console(file=shown, force_terminal=True, force_interactive=True, width=100)
    monkeypatch.setattr(progress, "Console", lambda **_: terminal)
    bar = ProgressBar("epoch 1", 3)
    for step in bar.over(range(3)):
        bar.note(f"loss {step}")
    assert bar.done == 3
    assert "epoch 1" in shown.getvalue()
    assert "3/3" in shown.getvalue()
    assert "loss 2" in shown.getvalue()


def test_nothing_is_shown_where_it_is_off(capsys):
    bar = ProgressBar("epoch 1", 2, enabled=False)
    assert list(bar.over("ab")) == ["a", "b"]
    bar = ProgressBar("reading", 2, counted="structures")  # no terminal, no log
    with bar:
        bar.advance(2, 2)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
