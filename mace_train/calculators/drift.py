"""How well dynamics conserves energy: the drift of the total energy, by a linear fit."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

Series = Mapping[str, Sequence[float]]


def energy_drift(time_ps: ArrayLike, total_energy: ArrayLike, n_atoms: int) -> dict[str, float]:
    """The slope of the total energy (eV) over time, and the RMS residual.

    Returns:
        drift_meV_per_atom_per_ps, the slope of a least-squares line; fluctuation_meV_per_atom, the
        RMS distance from it; both zero if there are fewer than two points.

    >>> energy_drift([0.0, 1.0, 2.0], [5.0, 5.002, 5.004], n_atoms=2)["drift_meV_per_atom_per_ps"]
    1.0
    """
    time, energy = np.asarray(time_ps, dtype=float), np.asarray(total_energy, dtype=float)
    slope = residual = 0.0
    if len(time) > 1:
        per_atom = 1000 * (energy - energy[0]) / n_atoms
        centred = time - time.mean()
        slope = float(centred @ (per_atom - per_atom.mean()) / (centred @ centred))
        residual = float(np.sqrt(np.mean((per_atom - per_atom.mean() - slope * centred) ** 2)))
    return {
        "drift_meV_per_atom_per_ps": round(slope, 12),
        "fluctuation_meV_per_atom": round(residual, 12),
    }


def draw_energies(runs: Mapping[str, Series], n_atoms: Mapping[str, int], path: Path) -> None:
    """Total energy per atom with its fit, and temperature, over time; one column per run.

    A run has ``time_ps``, ``total_energy_eV`` and ``temperature_K``.
    """
    figure = Figure(figsize=(5.0 * len(runs), 5.0), layout="constrained")
    axes = figure.subplots(2, len(runs), sharex="col", squeeze=False)
    for column, (name, run) in enumerate(runs.items()):
        _draw_total(axes[0, column], name, run, n_atoms[name])
        axes[1, column].plot(run["time_ps"], run["temperature_K"], linewidth=0.8)
        axes[1, column].set(xlabel="time, ps", ylabel="temperature, K")
    figure.savefig(path, dpi=130)


def _draw_total(axis: Axes, name: str, run: Series, n_atoms: int) -> None:
    time, energy = np.asarray(run["time_ps"]), np.asarray(run["total_energy_eV"])
    per_atom = 1000 * (energy - energy[0]) / n_atoms
    fit = energy_drift(time, energy, n_atoms)
    slope = fit["drift_meV_per_atom_per_ps"]
    axis.plot(time, per_atom, linewidth=0.8)
    axis.plot(time, per_atom.mean() + slope * (time - time.mean()), "--", color="black")
    axis.set_ylabel("total energy - start, meV/atom")
    axis.set_title(f"{name}: drift {slope:.3g} meV/atom/ps", fontsize=10)
