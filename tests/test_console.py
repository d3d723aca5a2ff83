"""Names from files on terminals and in figures: text, whatever they hold."""

import io
import logging

import matplotlib.pyplot as plt
import pytest
from rich.table import Table

from mace_train import cli
from mace_train.console import Console
from mace_train.shown_text import plot_label, printable

HARMFUL = "\x1b]0;title\x07\x1b[2J[/] [link=http://x]y :smile: \x9b\u202e$\\frac{"


def test_ordinary_text_stays():
    for text in ("bulk-Cu_α é 金\n", "eV/Å³", "", "a\tb"):
        assert printable(text) == text


def test_control_characters_are_shown():
    shown = printable(HARMFUL)
    assert shown.isprintable()
    assert shown.startswith(r"\x1b]0;title\x07\x1b[2J[/]")
    assert r"\x9b\u202e" in shown


def test_a_console_takes_no_markup():
    file = io.StringIO()
    console = Console(file=file, width=200)
    table = Table(HARMFUL, title=HARMFUL)
    table.add_row(HARMFUL)
    console.print(table)
    console.print(HARMFUL)
    assert not set(file.getvalue()) & {"\x1b", "\x07", "\x9b", "\u202e"}
    assert file.getvalue().count("[/] [link=http://x]y :smile:") == 4


def test_messages_have_none(capsys):
    record = logging.LogRecord("x", logging.WARNING, "", 0, "%s holds", (HARMFUL,), None)
    assert "\x1b" not in cli._Formatter().format(record)
    with pytest.raises(SystemExit):
        cli._fail(f"head {HARMFUL}")
    message = capsys.readouterr().err
    assert "\x1b" not in message
    assert message.startswith(r"mace-train: error: head \x1b]0;title")


@pytest.mark.parametrize("name", [HARMFUL, "$x", "_hidden", "a$b$c"])
def test_labels_of_figures_are_no_formulas(name):
    figure, axes = plt.subplots()
    axes.plot([0, 1], label=plot_label(name))
    legend = axes.legend()
    figure.canvas.draw()
    (text,) = legend.get_texts()
    assert text.get_text().strip() == plot_label(name).strip()
    plt.close(figure)
