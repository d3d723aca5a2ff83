"""Parity plots: predicted against reference values, coloured by how many points lie nearby."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection, PolyCollection
from matplotlib.colors import Colormap, LogNorm
from numpy.typing import NDArray

from mace_train.data.structure import Structure

MANY = 3000  # points, of which hexagons show more than dots


@dataclass(frozen=True)
class Predicted:
    """Predictions for one structure."""

    energy: float  # eV, total
    forces: NDArray[np.float64]  # [n_atoms, 3] eV/Å
    stress: NDArray[np.float64]  # [3, 3] eV/Å^3


def energy_pairs(
    structures: Sequence[Structure], predicted: Mapping[int, Predicted], zero: NDArray[np.float64]
) -> NDArray[np.float64]:
    """[n, 2] reference and predicted energy per atom, eV, above ``zero`` [n_structures], eV."""
    pairs = [
        ((s.energy - zero[i]) / s.n_atoms, (predicted[i].energy - zero[i]) / s.n_atoms)
        for i, s in enumerate(structures)
        if s.energy is not None
    ]
    return np.array(pairs).reshape(-1, 2)


def force_pairs(
    structures: Sequence[Structure], predicted: Mapping[int, Predicted]
) -> NDArray[np.float64]:
    """[n, 2] reference and predicted force components, eV/Å."""
    pairs = [
        np.stack((s.forces.ravel(), predicted[i].forces.ravel()), axis=1)
        for i, s in enumerate(structures)
        if s.forces is not None
    ]
    return np.concatenate([np.zeros((0, 2)), *pairs])


def stress_pairs(
    structures: Sequence[Structure], predicted: Mapping[int, Predicted]
) -> NDArray[np.float64]:
    """[n, 2] reference and predicted stress components that are defined, eV/Å^3."""
    pairs = []
    for i, s in enumerate(structures):
        if s.stress is not None:
            mask = np.outer(s.pbc, s.pbc)
            pairs.append(np.stack((s.stress[mask], predicted[i].stress[mask]), axis=1))
    return np.concatenate([np.zeros((0, 2)), *pairs])


def draw_parity(
    axes: Axes, pairs: NDArray[np.float64], label: str, cmap: str | Colormap = "viridis"
) -> PathCollection | PolyCollection:
    """Draw (reference, predicted) ``pairs`` [n, 2], n > 0; returns what a colour bar takes."""
    low, high = float(pairs.min()), float(pairs.max())
    margin = 0.04 * (high - low) or 0.1
    limits = (low - margin, high + margin)
    line = axes.spines["bottom"].get_edgecolor()
    axes.plot(limits, limits, color=line, linewidth=0.8, linestyle="--", zorder=0)
    axes.set(xlim=limits, ylim=limits, aspect="equal")
    axes.set_xlabel(label)
    axes.set_ylabel("predicted")
    if len(pairs) > MANY:
        extent = (*limits, *limits)
        return axes.hexbin(
            *pairs.T, gridsize=60, bins="log", mincnt=1, extent=extent, cmap=cmap, linewidths=0.1
        )
    density = _density(pairs, limits)
    order = np.argsort(density, kind="stable")  # the densest on top
    reference, predicted = pairs[order].T
    return axes.scatter(
        reference,
        predicted,
        c=density[order],
        s=10,
        linewidths=0,
        cmap=cmap,
        norm=LogNorm(1, max(2.0, float(density.max()))),  # a scale, though all are alone
    )


def _density(pairs: NDArray[np.float64], limits: tuple[float, float]) -> NDArray[np.float64]:
    """[n] how many points share a point's cell of a 40 x 40 grid, itself included."""
    edges = np.linspace(*limits, 41)
    cells = np.clip(np.searchsorted(edges, pairs, side="right") - 1, 0, 39)
    cell_of = 40 * cells[:, 0] + cells[:, 1]
    return np.bincount(cell_of, minlength=1600)[cell_of].astype(np.float64)
