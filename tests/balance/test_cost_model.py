"""Cost models: fits recover what they were made from; files; memory as a capacity."""

import numpy as np
import pytest
from scipy.optimize import nnls

from mace_train.balance.cost_model import (
    CostModel,
    fit_linear_costs,
    fit_memory,
    fit_times,
    read_cost_model,
    with_cost_model,
    write_cost_model,
)
from mace_train.balance.costs import Costs, capacity_of
from mace_train.errors import InputError
from mace_train.settings import BatchingSettings

TRUTH = CostModel(0.03, 2e-4, 8e-6, 1e8, 3e5, 2e4)


def bins(n: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    atoms = random.integers(50, 3000, n)
    return atoms, atoms * random.integers(15, 60, n)


def test_a_fit_recovers_the_coefficients():
    atoms, edges = bins()
    noise = 1 + 0.01 * np.random.default_rng(1).normal(size=40)
    fitted = fit_times(atoms, edges, TRUTH.seconds(atoms, edges) * noise)
    assert fitted.fixed_s == pytest.approx(TRUTH.fixed_s, rel=0.2)
    assert fitted.atom_s == pytest.approx(TRUTH.atom_s, rel=0.05)
    assert fitted.edge_s == pytest.approx(TRUTH.edge_s, rel=0.05)
    assert 0.005 < fitted.residual < 0.015
    assert fitted.edges_per_atom == pytest.approx(25, abs=2)
    peak = TRUTH.fixed_bytes + TRUTH.atom_bytes * atoms + TRUTH.edge_bytes * edges
    memory = fit_memory(fitted, atoms, edges, peak)
    assert memory.edge_bytes == pytest.approx(TRUTH.edge_bytes, rel=1e-6)
    assert memory.atom_s == fitted.atom_s


def test_coefficients_are_never_negative():
    atoms, edges = bins()
    fitted = fit_times(atoms, edges, 1e-6 * edges - 1e-6 * atoms)
    assert min(fitted.fixed_s, fitted.atom_s, fitted.edge_s) >= 0
    assert fitted.edge_s > 0
    with pytest.raises(InputError, match="at least three"):
        fit_times(atoms[:2], edges[:2], [1.0, 2.0])


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("noise", [0.01, 0.5])
def test_the_fit_is_the_non_negative_least_squares_of_scipy(relative, noise):
    n_zero = 0
    for seed in range(30):
        atoms, edges = bins(12, seed)
        random = np.random.default_rng(seed)
        truth = random.uniform(size=3) * (random.uniform(size=3) > 0.3) * [1e8, 3e5, 2e4]
        values = truth[0] + truth[1] * atoms + truth[2] * edges + 1e6
        values *= np.exp(noise * random.normal(size=12))
        weight = 1 / values if relative else np.full(12, 1 / values.mean())
        terms = np.stack([np.ones(12), atoms, edges], axis=1) * weight[:, None]
        scale = terms.max(axis=0)
        expected, error = nnls(terms / scale, values * weight)
        fit = fit_linear_costs(atoms, edges, values, relative=relative)
        found = np.array([fit.fixed, fit.per_atom, fit.per_edge]) * scale
        assert (found >= 0).all()
        np.testing.assert_allclose(found, expected, atol=1e-9 * expected.max())
        own_error = np.linalg.norm(terms / scale @ found - values * weight)
        assert own_error == pytest.approx(error, rel=1e-9)
        n_zero += int((expected == 0).any())
    assert n_zero > 5  # the bound matters


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("{", "is not JSON"),
        ('{"fixed_s": 1.0}', "must hold fixed_s, atom_s, edge_s"),
        ('{"fixed_s": 1, "atom_s": 1, "edge_s": 1, "colour": 1}', "may hold"),
        ('{"fixed_s": 1, "atom_s": -1, "edge_s": 1}', "at least 0"),
    ],
)
def test_files_that_are_no_cost_model(tmp_path, text, word):
    (tmp_path / "costs.json").write_text(text)
    with pytest.raises(InputError, match=word):
        read_cost_model(str(tmp_path / "costs.json"))


def test_memory_of_a_file_limits_bins(tmp_path):
    path = tmp_path / "costs.json"
    write_cost_model(path, TRUTH)
    assert read_cost_model(str(path)) == TRUTH
    sizes = Costs(np.array([100, 200]), np.array([3000, 8000]))
    settings = BatchingSettings(max_atoms=400, cost_model=str(path), max_memory_gb=0.33)
    costs = with_cost_model(sizes, settings)
    assert costs.edges_per_atom == 25
    assert costs.memory.tolist() == [90_000, 220_000]  # kB
    assert capacity_of(costs, settings).max_memory == 330_000 - 100_000
    small = BatchingSettings(cost_model=str(path), max_memory_gb=0.31)
    with pytest.raises(InputError, match=r"structure 1 has 0.22 GB .*max_memory_gb=0.21"):
        capacity_of(with_cost_model(sizes, small), small)
    with pytest.raises(InputError, match="not above what a step takes"):
        capacity_of(costs, BatchingSettings(cost_model=str(path), max_memory_gb=0.05))
    with pytest.raises(InputError, match=r"needs batching\.capacity=auto, or batching\.cost_model"):
        BatchingSettings(max_memory_gb=1.0)
