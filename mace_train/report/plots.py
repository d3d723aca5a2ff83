"""The figures of a report; every function returns those of one section."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis, XAxis
from matplotlib.ticker import (
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    PercentFormatter,
)
from numpy.typing import NDArray

from mace_train.evaluate.parity_plot import draw_parity, energy_pairs, force_pairs, stress_pairs
from mace_train.report.error_tables import Errors, number
from mace_train.report.pictures import Picture, Theme, picture
from mace_train.report.run_folder import BinFill, RunFolder
from mace_train.shown_text import plot_label
from mace_train.train.timing import PHASES

Record = dict[str, Any]
Curve = tuple[str, list[float], list[float]]  # label, x, y

# ending of a key of the metrics -> title, unit, factor
_ERRORS = {
    "energy_rmse_eV_per_atom": ("Energy", "RMSE, meV/atom", 1000.0),
    "forces_rmse_eV_per_A": ("Forces", "RMSE, meV/Å", 1000.0),
    "stress_rmse_eV_per_A3": ("Stress", "RMSE, meV/Å³", 1000.0),
}


def learning(run: RunFolder) -> list[Picture]:
    """Loss, validation errors and learning rate against the epoch."""
    epochs, best = run.epochs, run.best
    losses = [_curve(epochs, "train_loss", "training"), _curve(epochs, "valid_loss", "validation")]
    pictures = [
        _learning("loss", "Loss", "loss", losses, best, run, "Training and validation loss.")
    ]
    for ending, (title, unit, factor) in _ERRORS.items():
        keys = sorted({k for r in epochs for k in r if k.startswith("valid_") and ending in k})
        curves = [_curve(epochs, key, _label(key, ending), factor) for key in keys]
        if any(x for _, x, _ in curves):
            text = f"Validation {title.lower()} RMSE (EMA weights where an EMA is kept)."
            name = f"learning_{title.lower()}"
            pictures.append(_learning(name, title, unit, curves, best, run, text))
    rates = [_curve(epochs, "lr", "learning rate")]
    text = "Learning rate at the end of every epoch."
    pictures.append(
        _learning("learning_rate", "Learning rate", "learning rate", rates, best, run, text)
    )
    return pictures


def _label(key: str, ending: str) -> str:
    """What distinguishes a key from others with its ending: nothing, or the name of a head."""
    return (key.removeprefix("valid_").replace(ending, "") or "validation").strip("_ ")


def _curve(epochs: list[Record], key: str, label: str, factor: float = 1.0) -> Curve:
    points = [(r["epoch"] + 1.0, factor * r[key]) for r in epochs if r.get(key) is not None]
    return plot_label(label), [x for x, _ in points], [y for _, y in points]


def _learning(
    name: str,
    title: str,
    unit: str,
    curves: list[Curve],
    best: Record,
    run: RunFolder,
    text: str,
) -> Picture:
    def draw(axes: Axes, theme: Theme) -> None:
        _stages(axes, run.epochs, theme)
        axes.axvline(best["epoch"] + 1, color=theme.text, lw=0.8, ls=":", label="best epoch")
        for (label, x, y), colour in zip(curves, theme.series * 4, strict=False):
            axes.plot(x, y, color=colour, label=label, marker="o" if len(x) < 3 else None, ms=4)
        values = [value for _, _, y in curves for value in y]
        _log_if_wide(axes, values)
        axes.set(ylabel=unit)
        _epochs(axes, run.epochs)
        axes.legend()

    return picture(name, title, text, draw)


def _epochs(axes: Axes, epochs: list[Record]) -> None:
    """Epochs along x, as whole numbers."""
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if len(epochs) < 3:
        axes.set_xlim(epochs[0]["epoch"] + 0.4, epochs[-1]["epoch"] + 1.6)


def _stages(axes: Axes, epochs: list[Record], theme: Theme) -> None:
    """Shade every other stage of the training."""
    starts = [0] + [
        i for i in range(1, len(epochs)) if epochs[i]["stage"] != epochs[i - 1]["stage"]
    ]
    for first, following in zip(starts[1::2], [*starts[2::2], len(epochs)], strict=False):
        begin, end = epochs[first]["epoch"] + 0.5, epochs[following - 1]["epoch"] + 1.5
        axes.axvspan(begin, end, color=theme.faint, alpha=0.6, lw=0, zorder=0)


def _log_if_wide(axes: Axes, values: list[float]) -> None:
    """A logarithmic axis where values span more than a factor of three."""
    if values and min(values) > 0 and max(values) > 3 * min(values):
        axes.set_ylim(bottom=max(0.8 * min(values), 1e-5 * max(values)), top=1.25 * max(values))
        _log(axes.yaxis, min(values), max(values))


def _log(axis: Axis, low: float, high: float) -> None:
    """A logarithmic axis of values from ``low`` to ``high``, labelled in plain numbers."""
    axis.axes.set(**{"xscale" if isinstance(axis, XAxis) else "yscale": "log"})
    if low >= 1e-3 and high < 1e5:
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    if high < 10 * low:
        axis.set_minor_locator(LogLocator(subs=(2, 3, 5, 7)))
        axis.set_minor_formatter(axis.get_major_formatter())
    else:
        axis.set_minor_formatter(NullFormatter())


def parity(errors: Errors, prefix: str) -> list[Picture]:
    """Predicted against reference values of every quantity that has labels."""
    zero, row = errors.composition_energies(), errors.all()
    panels = [
        (
            "energy",
            "reference, eV/atom",
            energy_pairs(errors.structures, errors.predicted, zero),
            row.energy_rmse,
            "meV/atom",
            "Energy per atom, above a least-squares sum of one energy per element.",
        ),
        (
            "forces",
            "reference, eV/Å",
            force_pairs(errors.structures, errors.predicted),
            row.forces_rmse,
            "meV/Å",
            "Components of forces.",
        ),
        (
            "stress",
            "reference, eV/Å³",
            stress_pairs(errors.structures, errors.predicted),
            row.stress_rmse,
            "meV/Å³",
            "Components of stress.",
        ),
    ]
    return [
        _parity(f"{prefix}parity_{name}", name.capitalize(), label, pairs, rmse, unit, text)
        for name, label, pairs, rmse, unit, text in panels
        if rmse is not None
    ]


def _parity(
    name: str,
    title: str,
    label: str,
    pairs: NDArray[np.float64],
    rmse: float,
    unit: str,
    text: str,
) -> Picture:
    def draw(axes: Axes, theme: Theme) -> None:
        drawn = draw_parity(axes, pairs, label, theme.cmap)
        bar = axes.figure.colorbar(drawn, ax=axes, shrink=0.8, pad=0.02)
        bar.ax.set_title("points", fontsize=9, pad=6)
        bar.formatter = FuncFormatter(lambda value, _: f"{value:,.6g}")
        bar.minorformatter = NullFormatter()
        bar.outline.set_visible(False)
        axes.text(
            0.04, 0.96, f"RMSE {number(1000 * rmse)} {unit}", transform=axes.transAxes, va="top"
        )

    return picture(name, title, f"{text} Colour: how many points lie nearby.", draw, height=0.88)


def distribution(errors: Errors, prefix: str) -> list[Picture]:
    """Histogram of force errors; errors of structures against their size."""
    pictures = []
    magnitudes = errors.force_error_magnitudes
    if magnitudes.size:
        quantiles = np.quantile(magnitudes, (0.5, 0.95))

        def histogram(axes: Axes, theme: Theme) -> None:
            shown = 1000 * np.maximum(magnitudes, max(magnitudes.max() * 1e-5, 1e-12))
            edges = np.geomspace(shown.min() * 0.95, shown.max() * 1.05, 46)
            axes.hist(shown, bins=edges.tolist(), color=theme.series[0], alpha=0.9)
            for value, name, style in zip(quantiles, ("median", "95 %"), ("-", "--"), strict=True):
                label = f"{name}: {number(1000 * value)} meV/Å"
                axes.axvline(1000 * value, color=theme.series[1], ls=style, lw=1.4, label=label)
            axes.set(xlabel="force error magnitude, meV/Å", ylabel="atoms")
            _log(axes.xaxis, shown.min(), shown.max())
            axes.legend(loc="upper left")
            axes.set_ylim(top=1.28 * axes.get_ylim()[1])

        text = f"Force error magnitudes of {magnitudes.size:,} atoms; the largest is "
        text += f"{1000 * magnitudes.max():,.0f} meV/Å."
        pictures.append(picture(f"{prefix}force_errors", "Force errors", text, histogram))
        pictures.append(
            _by_size(
                f"{prefix}forces_by_size",
                "Forces and size",
                "force RMSE of a structure, meV/Å",
                errors,
                1000 * errors.forces_rmse,
            )
        )
    if np.isfinite(errors.energy).any():
        pictures.append(
            _by_size(
                f"{prefix}energy_by_size",
                "Energy and size",
                "energy error of a structure, meV/atom",
                errors,
                1000 * np.abs(errors.energy),
            )
        )
    return pictures


def _by_size(
    name: str, title: str, label: str, errors: Errors, values: NDArray[np.float64]
) -> Picture:
    config_types = [s.config_type for s in errors.structures]
    names = sorted(set(config_types), key=lambda name: -config_types.count(name))
    of_type = {name: np.array([t == name for t in config_types]) for name in names[:5]}
    rest = ~np.any(list(of_type.values()), axis=0)
    if rest.any():
        of_type["others"] = rest

    def draw(axes: Axes, theme: Theme) -> None:
        known = np.isfinite(values) & (values > 0)
        for (label_of_type, own), colour in zip(of_type.items(), theme.series, strict=False):
            axes.plot(
                errors.n_atoms[own & known],
                values[own & known],
                "o",
                ms=4,
                mew=0,
                alpha=0.65,
                color=colour,
                label=plot_label(label_of_type),
            )
        axes.set(xlabel="atoms of a structure", ylabel=label)
        if known.any():
            _log(axes.yaxis, values[known].min(), values[known].max())
        if errors.n_atoms.max() > 20 * errors.n_atoms.min():
            _log(axes.xaxis, errors.n_atoms.min(), errors.n_atoms.max())
        else:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(of_type) > 1:
            axes.legend(
                fontsize=8,
                handletextpad=0.2,
                loc="best",
                framealpha=0.7,
                frameon=True,
                edgecolor="none",
            )

    return picture(name, title, "Every structure, coloured by config_type.", draw)


def balance(run: RunFolder, fill: BinFill | None) -> list[Picture]:
    """Straggler ratio by epoch; fill of the bins of the last epoch."""
    measured = [r for r in run.epochs if r.get("straggler") is not None]
    pictures = []
    if measured:

        def straggler(axes: Axes, theme: Theme) -> None:
            for key, label, colour in (
                ("straggler", "measured", theme.series[1]),
                ("imbalance", "predicted", theme.series[0]),
            ):
                _, x, y = _curve(measured, key, label)
                axes.plot(x, y, color=colour, label=label, marker="o" if len(x) < 3 else None, ms=4)
            axes.axhline(1, color=theme.text, lw=0.8)
            axes.set(ylabel="slowest rank / mean rank")
            _epochs(axes, run.epochs)
            axes.legend()

        text = "1 is a perfect balance. Predicted from atoms and edges, measured as computing time."
        pictures.append(picture("straggler", "Straggler ratio", text, straggler))
    if fill is not None:
        edges = np.linspace(0, max(1.0, fill.atoms.max(), fill.edges.max()), 41)

        def filled(axes: Axes, theme: Theme) -> None:
            for values, name, colour in (
                (fill.atoms, "atoms", theme.series[0]),
                (fill.edges, "edges", theme.series[1]),
            ):
                label = f"{name}, mean {values.mean():.0%}"
                axes.hist(values, bins=edges.tolist(), color=colour, alpha=0.6, label=label)
            axes.axvline(1, color=theme.text, lw=0.8)
            axes.set(xlabel="of the capacity", ylabel="bins")
            axes.xaxis.set_major_formatter(PercentFormatter(1))
            axes.legend(loc="upper left")

        text = f"{len(fill.atoms):,} bins of the last epoch, each the step of one rank."
        pictures.append(picture("fill", "Fill of bins", text, filled))
    return pictures


def time(run: RunFolder) -> list[Picture]:
    """Where the time of every epoch went."""
    shares = phase_seconds(run.epochs)
    if not shares:
        return []

    def draw(axes: Axes, theme: Theme) -> None:
        x = [r["epoch"] + 1 for r in run.epochs]
        if len(x) < 3:
            below = np.zeros(len(x))
            for (name, seconds), colour in zip(shares.items(), theme.series, strict=False):
                axes.bar(x, seconds, bottom=below, color=colour, label=name, width=0.6)
                below += seconds
        else:
            axes.stackplot(x, *shares.values(), labels=list(shares), colors=theme.series, lw=0)
        axes.set(ylabel="seconds")
        _epochs(axes, run.epochs)
        axes.set_ylim(0, 1.35 * max(sum(column) for column in zip(*shares.values(), strict=True)))
        axes.legend(loc="upper left", ncols=3, columnspacing=1.0, handlelength=1.2)

    return [picture("time", "Time of epochs", "Mean over ranks; validation is not in it.", draw)]


def phase_seconds(epochs: list[Record]) -> dict[str, NDArray[np.float64]]:
    """Seconds [n_epochs] of every phase, and the rest of the epochs; {} if they are not known."""
    if not all(record.get("compute_s") is not None for record in epochs):
        return {}
    result = {name: np.array([r[f"{name}_s"] for r in epochs]) for name in PHASES}
    order = sorted(result, key=lambda name: -result[name].sum())
    result = {name: result[name] for name in order}
    whole = np.array([record["epoch_s"] for record in epochs])
    rest = np.maximum(whole - np.sum(list(result.values()), axis=0), 0.0)
    return {**result, "other": rest}
