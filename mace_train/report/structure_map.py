"""A map: structures in the plane along which the descriptors of the training set vary most.

The mean descriptors of structures (evaluate/set_descriptors.py) are projected on the two principal
components of those of the training set. Structures that are alike to the model lie close together,
so a map shows what the data cover, and where errors are large because nothing alike was trained on.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from mace_train.data.shards.shard_set import sample_of
from mace_train.data.statistics import open_split
from mace_train.distributed.world import World
from mace_train.evaluate.evaluate import SamplesInMemory
from mace_train.evaluate.set_descriptors import mean_descriptors, model_for
from mace_train.model.mace import MACE
from mace_train.report.error_tables import Errors
from mace_train.report.pictures import Picture, Theme, picture
from mace_train.report.run_folder import RunFolder
from mace_train.settings import ReportSettings, StructureSetSettings
from mace_train.shown_text import plot_label

LOGGER = logging.getLogger("mace_train")

Floats = NDArray[np.float64]
MOST_TYPES = 7


@dataclass(frozen=True)
class Plane:
    """The two principal components of a set of descriptors."""

    mean: Floats  # [n_columns]
    axes: Floats  # [n_columns, 2], orthonormal
    shares: tuple[float, float]  # of the variance

    @classmethod
    def of(cls, descriptors: Floats) -> "Plane":
        """The plane of descriptors [n, n_columns]; the largest entry of an axis is positive.

        >>> points = np.array([[0.0, 0, 1], [2, 0, 1], [4, 0, 1], [2, 1, 1], [2, -1, 1]])
        >>> plane = Plane.of(points)
        >>> plane.shares
        (0.8, 0.2)
        >>> plane.positions(points)[1].tolist()
        [0.0, 0.0]
        """
        mean = descriptors.mean(axis=0)
        centred = descriptors - mean
        values, vectors = np.linalg.eigh(centred.T @ centred)
        n_missing = max(2 - len(values), 0)
        values = np.pad(np.maximum(values[::-1][:2], 0.0), (0, n_missing))
        axes = np.pad(vectors[:, ::-1][:, :2], ((0, 0), (0, n_missing)))
        largest = axes[np.abs(axes).argmax(axis=0), [0, 1]]
        total = float((centred**2).sum()) or 1.0
        first, second = (round(float(value) / total, 12) for value in values)
        return cls(mean, axes * np.where(largest < 0, -1.0, 1.0), (first, second))

    def positions(self, descriptors: Floats) -> Floats:
        """Where structures with descriptors [n, n_columns] lie, [n, 2]."""
        projected: Floats = (descriptors - self.mean) @ self.axes
        return projected


@dataclass(frozen=True)
class StructureMap:
    """Training structures and those of one set of errors in the same plane."""

    plane: Plane
    training: Floats  # [n_training, 2]; none where the training data are gone
    training_types: Sequence[str]  # [n_training] config_type
    ids: NDArray[np.int64]  # [n] index of the shown structures in the set of errors
    positions: Floats  # [n, 2]


def structure_maps(
    run: RunFolder, settings: ReportSettings, sets: Sequence[Errors], world: World
) -> list[StructureMap]:
    """A map for every set of errors, of at most ``settings.map_structures`` structures each."""
    chosen = StructureSetSettings(default_dtype=settings.default_dtype, cluster=settings.cluster)
    model = model_for(str(run.path), chosen, world)
    training, types = _training(run, model, settings)
    maps, plane = [], None if not len(training) else Plane.of(training)
    for errors in sets:
        ids = _some(len(errors.structures), settings.map_structures)
        samples = [sample_of(errors.structures[i], model.data.r_max) for i in ids.tolist()]
        every = np.arange(len(samples))
        found = mean_descriptors(model, SamplesInMemory(samples), every, settings.batching)
        own = Plane.of(found) if plane is None else plane
        on_plane = own.positions(training) if len(training) else np.empty((0, 2))
        maps.append(StructureMap(own, on_plane, types, ids, own.positions(found)))
    return maps


def _training(run: RunFolder, model: MACE, settings: ReportSettings) -> tuple[Floats, list[str]]:
    """Descriptors [n, n_columns] of training structures, and their config_types."""
    if not (run.data_dir / "train").is_dir():
        LOGGER.warning(
            "map: %s, which the run was trained on, is not here; the map is of the evaluated "
            "structures alone",
            run.data_dir,
        )
        return np.empty((0, 0)), []
    shards = open_split(run.data_dir, "train")
    ids = _some(len(shards), settings.map_structures)
    types = shards.config_types
    found = mean_descriptors(model, shards, ids, settings.batching)
    return found, [types[i] for i in ids.tolist()]


def _some(n: int, most: int) -> NDArray[np.int64]:
    """All of n ids, or ``most`` of them at random, ascending."""
    if n <= most:
        return np.arange(n)
    return np.sort(np.random.default_rng(0).choice(n, most, replace=False)).astype(np.int64)


def map_pictures(errors: Errors, found: StructureMap, prefix: str) -> list[Picture]:
    """The map coloured by config_type, and by the errors of structures that have any."""
    pictures = [_by_type(errors, found, prefix)]
    for values, label, unit in (
        (errors.forces_rmse, "force RMSE of a structure", "meV/Å"),
        (np.abs(errors.energy), "energy error of a structure", "meV/atom"),
    ):
        shown = 1000 * values[found.ids]
        if np.isfinite(shown).any():
            name = f"{prefix}map_{label.split()[0]}_errors"
            pictures.append(_by_error(name, found, shown, label, unit))
    return pictures


def _by_type(errors: Errors, found: StructureMap, prefix: str) -> Picture:
    types, positions = list(found.training_types), found.training
    what = f"{len(types):,} training structures"
    if not types:
        types = [errors.structures[i].config_type for i in found.ids.tolist()]
        positions, what = found.positions, f"{len(types):,} evaluated structures"
    names, counts = np.unique(np.array(types), return_counts=True)
    order = [str(names[i]) for i in np.argsort(-counts, kind="stable")]
    masks = {name: np.array([t == name for t in types]) for name in order[:MOST_TYPES]}
    rest = ~np.any(list(masks.values()), axis=0)
    if rest.any():
        masks[f"{len(order) - MOST_TYPES} others"] = rest

    def draw(axes: Axes, theme: Theme) -> None:
        for (name, own), colour in zip(masks.items(), theme.series, strict=False):
            axes.plot(*positions[own].T, "o", ms=3.5, mew=0, alpha=0.65, color=colour,
                      label=plot_label(name))  # fmt: skip
        _axes(axes, found.plane)
        if len(masks) > 1:
            axes.legend(fontsize=8, handletextpad=0.2, loc="best", framealpha=0.7, frameon=True,
                        edgecolor="none")  # fmt: skip

    text = f"Mean descriptors of {what}, coloured by config_type."
    return picture(f"{prefix}map_config_types", "Map: config_type", text, draw, height=0.88)


def _by_error(name: str, found: StructureMap, values: Floats, label: str, unit: str) -> Picture:
    known = np.isfinite(values)
    shown = values[known]
    high = max(float(shown.max()), 1e-6)
    # a single structure without any error would leave one colour to all others
    low = min(max(float(np.quantile(shown, 0.1)), 1e-3 * high), 0.5 * high)
    order = np.argsort(shown, kind="stable")  # the largest on top

    def draw(axes: Axes, theme: Theme) -> None:
        if len(found.training):
            axes.plot(*found.training.T, "o", ms=3, mew=0, color=theme.text, alpha=0.13, zorder=1)
            _legend(axes, {"training": theme.text, "evaluated": theme.cmap(0.6)})
        drawn = axes.scatter(
            found.positions[known][order, 0],
            found.positions[known][order, 1],
            c=np.maximum(shown[order], low),
            s=16,
            linewidths=0,
            cmap=theme.cmap,
            norm=LogNorm(low, high),
            zorder=2,
        )
        _axes(axes, found.plane)
        bar = axes.figure.colorbar(drawn, ax=axes, shrink=0.8, pad=0.02, extend="min")
        bar.ax.set_title(unit, fontsize=9, pad=6)
        bar.minorticks_off()
        bar.set_ticks(_ticks(low, high), labels=_labels(low, high, bool((shown < low).any())))
        bar.outline.set_visible(False)

    text = f"The same plane: evaluated structures, coloured by {label}"
    text += ", on the training structures (grey)." if len(found.training) else "."
    quantity = label.split()[0].capitalize()
    return picture(name, f"Map: {quantity.lower()} errors", text, draw, height=0.88)


def _legend(axes: Axes, colours: dict[str, Any]) -> None:
    """What points of a colour are, above the axes: everywhere in them may be points."""
    handles = [
        Line2D([], [], ls="", marker="o", ms=4, mew=0, color=colour, label=name,
               alpha=0.35 if name == "training" else 1.0)
        for name, colour in colours.items()
    ]  # fmt: skip
    axes.legend(handles=handles, fontsize=8, handletextpad=0.2, loc="lower left", ncols=2,
                bbox_to_anchor=(0, 1), borderaxespad=0)  # fmt: skip


def _ticks(low: float, high: float) -> list[float]:
    """Both ends of a logarithmic bar, and 1, 2 and 5 times powers of ten that are far from others.

    >>> _ticks(3.0, 240.0)
    [3.0, 10.0, 20.0, 50.0, 100.0, 240.0]
    """
    least = 0.15 * np.log(high / low)  # apart, for labels that do not touch
    powers = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)))
    ticks = [low, high]
    for factor in (1.0, 5.0, 2.0):
        ticks += [
            float(tick)
            for tick in factor * powers
            if low < tick < high and all(abs(np.log(tick / other)) > least for other in ticks)
        ]
    return sorted(ticks)


def _labels(low: float, high: float, some_are_lower: bool) -> list[str]:
    """Labels of ``_ticks``, with two digits of the ends; of a few structures the lowest is "≤"."""
    first, *others = (f"{float(f'{tick:.2g}'):,.6g}" for tick in _ticks(low, high))
    return [f"≤ {first}" if some_are_lower else first, *others]


def _axes(axes: Axes, plane: Plane) -> None:
    first, second = (f"{share:.0%} of the variance" for share in plane.shares)
    axes.set(xlabel=f"component 1 ({first})", ylabel=f"component 2 ({second})")
