"""Farthest-point sampling against brute force, and what it promises."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mace_train.evaluate import farthest_points as module
from mace_train.evaluate.farthest_points import farthest_points, random_projection
from tests.evaluate.brute_force import brute_force


@given(
    n_points=st.integers(1, 60),
    n_columns=st.integers(1, 40),
    n=st.integers(1, 70),
    seed=st.integers(0, 5),
)
@settings(deadline=None, max_examples=60)
def test_it_is_brute_force(n_points, n_columns, n, seed):
    points = np.random.default_rng(seed).standard_normal((n_points, n_columns)).astype(np.float32)
    chosen, distances = farthest_points(points, n, seed)
    assert len(chosen) == min(n, n_points)
    expected, expected_distances = brute_force(points, len(chosen), int(chosen[0]))
    assert chosen.tolist() == expected
    np.testing.assert_allclose(distances, expected_distances, rtol=1e-5)
    assert (np.diff(distances[1:]) <= 1e-6).all()


def test_the_seed_gives_the_first_and_the_threads_nothing(monkeypatch):
    monkeypatch.setattr(module, "_ROWS_PER_TASK", 7)
    points = np.random.default_rng(1).standard_normal((100, 33)).astype(np.float32)
    one, several = (farthest_points(points, 40, 3, n_threads=k)[0].tolist() for k in (1, 4))
    assert one == several == farthest_points(points, 40, 3)[0].tolist()
    assert len({int(farthest_points(points, 1, seed)[0][0]) for seed in range(20)}) > 10


def test_the_first_of_equals_is_taken_and_copies_of_a_chosen_one_are_not(monkeypatch):
    monkeypatch.setattr(module, "_ROWS_PER_TASK", 2)
    points = np.zeros((9, 3), dtype=np.float32)
    points[[3, 5, 7], 0] = 1.0
    chosen, distances = farthest_points(points, 9, 0)
    assert len(chosen) == len(distances) == 2
    first = int(chosen[0])
    assert int(chosen[1]) == (0 if first in (3, 5, 7) else 3)
    assert distances.tolist() == [np.inf, 1.0]


def test_half_of_the_best_cover():
    """No choice of k points leaves less than half of the distance that this one leaves."""
    points = np.random.default_rng(2).uniform(size=(14, 2)).astype(np.float32)
    every = np.linalg.norm(points[:, None] - points[None], axis=2)
    chosen, _ = farthest_points(points, 3, 0)
    left = every[:, chosen].min(axis=1).max()
    triples = [(i, j, k) for i in range(14) for j in range(i) for k in range(j)]
    best = min(every[:, triple].min(axis=1).max() for triple in triples)
    assert best <= left <= 2 * best + 1e-6


def test_every_row_is_counted():
    calls = []
    points = np.arange(20, dtype=np.float32)[:, None]
    farthest_points(points, 6, 0, advance=lambda: calls.append(1))
    assert len(calls) == 6


@pytest.mark.parametrize("n_kept", [16, 64])
def test_a_projection_keeps_distances(n_kept):
    points = np.random.default_rng(3).standard_normal((60, 500)).astype(np.float32)
    projected = points @ random_projection(500, n_kept, seed=0)
    i, j = np.triu_indices(60, 1)
    before = np.linalg.norm(points[i] - points[j], axis=1)
    after = np.linalg.norm(projected[i] - projected[j], axis=1)
    assert abs((after / before).mean() - 1) < 0.05
    assert (after / before).std() == pytest.approx(1 / np.sqrt(2 * n_kept), rel=0.25)
    same = random_projection(500, n_kept, seed=0)
    assert (same == random_projection(500, n_kept, seed=0)).all()
    assert (same != random_projection(500, n_kept, seed=1)).any()
