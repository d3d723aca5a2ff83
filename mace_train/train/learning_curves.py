"""Learning curves of runs: losses and errors against the epoch, forces against time too."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from mace_train.atomic_files import replaced
from mace_train.shown_text import plot_label

Record = dict[str, Any]
Value = Callable[[Record], float | None]

# title of a panel -> (curves as style and value, what is along x)
_PANELS: list[tuple[str, str, list[tuple[str, Value]], Value]] = [
    (
        "loss (dashed: training)",
        "epoch",
        [("--", lambda r: r["train_loss"]), ("-", lambda r: r.get("valid_loss"))],
        lambda r: r["epoch"] + 1,
    ),
    (
        "energy RMSE, meV/atom",
        "epoch",
        [("-", lambda r: _milli(r, "valid_energy_rmse_eV_per_atom"))],
        lambda r: r["epoch"] + 1,
    ),
    (
        "force RMSE, meV/Å",
        "epoch",
        [("-", lambda r: _milli(r, "valid_forces_rmse_eV_per_A"))],
        lambda r: r["epoch"] + 1,
    ),
    (
        "force RMSE, meV/Å",
        "training time, min",
        [("-", lambda r: _milli(r, "valid_forces_rmse_eV_per_A"))],
        lambda r: r.get("total_s", 0.0) / 60,
    ),
]
_MARGINS = {"left": 0.045, "right": 0.99, "bottom": 0.15, "top": 0.9, "wspace": 0.25}


def _milli(record: Record, key: str) -> float | None:
    value = record.get(key)
    return None if value is None else 1000 * float(value)


def draw_learning(runs: dict[str, list[Record]], path: Path) -> None:
    """Write ``path`` (PNG) with the curves of every run, by name."""
    figure = Figure(figsize=(13, 3.2))
    # fixed margins and titles: a layout takes longer than all the rest, and drawing holds up the
    # other ranks
    axes = figure.subplots(1, len(_PANELS), gridspec_kw=_MARGINS)
    for axis, (title, along, curves, x) in zip(axes, _PANELS, strict=True):
        _draw_panel(axis, runs, curves, x)
        axis.set_title(title, fontsize=9, y=1.02)
        axis.set_xlabel(along)
    if len(runs) > 1:
        axes[-1].legend(fontsize=7)
    with replaced(path, durable=False) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def _draw_panel(
    axis: Axes, runs: dict[str, list[Record]], curves: list[tuple[str, Value]], x: Value
) -> None:
    positive = False
    for number, (name, records) in enumerate(runs.items()):
        for style, value in curves:
            points = [(x(record), value(record)) for record in records]
            known = [(a, b) for a, b in points if b is not None]
            if not known:
                continue
            positive = positive or any(b > 0 for _, b in known)
            first, second = zip(*known, strict=True)
            mark = "." if len(known) == 1 else None
            label, colour = plot_label(name), f"C{number % 10}"
            axis.plot(first, second, style, color=colour, label=label, marker=mark)
    if positive:
        axis.set_yscale("log")
        for ticks in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
            ticks(LogFormatter())
    axis.tick_params(which="both", labelsize=8)
