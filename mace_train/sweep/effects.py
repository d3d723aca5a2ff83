"""The plot of a sweep: validation error against each setting, one panel per setting."""

from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

_FEW = 12  # values of a setting through whose medians a line is drawn
_TICKS = 6  # values that are all written below the axis, side by side
_UNITS = {"A": "Å", "A3": "Å³"}


def draw_effects(rows: list[dict[str, Any]], names: list[str], by: str, path: Path) -> None:
    """One panel per setting: a point per job, and a line through the medians of each value."""
    rows = [row for row in rows if row["error"] is not None]
    figure = Figure(figsize=(1.0 + 3.6 * len(names), 3.6), layout="constrained")
    panels: list[Axes] = list(figure.subplots(1, len(names), sharey=True, squeeze=False)[0])
    for axes, name in zip(panels, names, strict=True):
        _panel(axes, [(row["settings"][name], row["error"]) for row in rows])
        axes.set_xlabel(name)
    panels[0].set_ylabel(_readable(by))
    if all(row["error"] > 0 for row in rows):
        panels[0].set_yscale("log")
        panels[0].yaxis.set_major_formatter("{x:g}")
        panels[0].yaxis.set_minor_formatter("{x:g}")
    figure.savefig(path, dpi=150)


def _panel(axes: Axes, points: list[tuple[str | None, float]]) -> None:
    numbers = _numbers([value for value, _ in points])
    if numbers is None or len(set(numbers)) <= _TICKS:
        order = float if numbers is not None else str
        labels = sorted({str(value) for value, _ in points}, key=order)
        x = [float(labels.index(str(value))) for value, _ in points]
        axes.set_xticks(range(len(labels)), labels)
        axes.set_xlim(-0.5, len(labels) - 0.5)
    else:
        x = numbers
        if min(numbers) > 0 and max(numbers) / min(numbers) >= 10:
            axes.set_xscale("log")
    errors = [error for _, error in points]
    axes.scatter(x, errors, s=22, alpha=0.7, linewidths=0)
    values = sorted(set(x))
    if 1 < len(values) <= _FEW:
        middle = [
            median(e for p, e in zip(x, errors, strict=True) if p == value) for value in values
        ]
        axes.plot(values, middle, linewidth=1.0, marker="_", markersize=14, color="black")
    axes.grid(alpha=0.3, linewidth=0.5)


def _readable(name: str) -> str:
    """A name of metrics.csv as human-readable text.

    >>> _readable("valid_forces_rmse_eV_per_A")
    'valid forces RMSE, eV/Å'
    """
    what, _, unit = name.partition("_eV_per_")
    text = what.replace("_", " ").replace("rmse", "RMSE").replace("mae", "MAE")
    return f"{text}, eV/{_UNITS.get(unit, unit)}" if unit else text


def _numbers(values: list[str | None]) -> list[float] | None:
    """All values as numbers; None if one of them is not a number."""
    try:
        return [float(str(value)) for value in values]
    except ValueError:
        return None
