"""The fit of the drift against numpy's."""

import doctest

import numpy as np
import pytest

from mace_train.calculators import drift


def test_a_line_is_found_beneath_oscillations():
    time = np.sort(np.random.default_rng(0).uniform(0, 3, 200))
    energy = -1234.5 + 8 * 0.002 * time + 8e-4 * np.cos(90 * time)
    found = drift.energy_drift(time, energy, n_atoms=8)
    slope, offset = np.polyfit(time, 1000 * (energy - energy[0]) / 8, 1)
    assert found["drift_meV_per_atom_per_ps"] == pytest.approx(slope, abs=1e-9)
    assert slope == pytest.approx(2.0, abs=0.05)
    rest = 1000 * (energy - energy[0]) / 8 - slope * time - offset
    assert found["fluctuation_meV_per_atom"] == pytest.approx(rest.std(), abs=1e-9)


def test_too_short_to_drift():
    assert set(drift.energy_drift([0.0], [-3.0], 2).values()) == {0.0}


def test_examples():
    assert doctest.testmod(drift).failed == 0


def test_plot(tmp_path):
    series = {
        "time_ps": [0.0, 0.1, 0.2],
        "total_energy_eV": [1.0, 1.1, 1.2],
        "temperature_K": [300, 310, 290],
    }
    path = tmp_path / "energy.png"
    drift.draw_energies({"one": series, "two": series}, {"one": 3, "two": 6}, path)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
