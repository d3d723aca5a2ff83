"""neighbors: equal to brute force over images, symmetric, sorted, half-open at r_max."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mace_train.data import neighbors
from mace_train.data.neighbors import DENSE, EdgeList, neighbor_list
from mace_train.errors import InputError

NO_PBC = np.zeros(3, dtype=bool)
PBC = np.ones(3, dtype=bool)
NO_CELL = np.zeros((3, 3))


def brute_force(positions, cell, pbc, r_max) -> list[tuple[int, ...]]:
    """Sorted (receiver, sender, shift...) by trying every image that could be in reach."""
    periodic = cell[pbc]
    reach = np.zeros(3, dtype=int)
    if len(periodic):
        # |S| <= (r_max + extent) * |row of the pseudo-inverse|, as S = pinv(P).T (R - r)
        inverse = np.linalg.pinv(periodic)
        spread = np.linalg.norm(np.ptp(positions, axis=0))
        reach[pbc] = np.ceil((r_max + spread) * np.linalg.norm(inverse, axis=0))
    found = []
    for shift in itertools.product(*[range(-n, n + 1) for n in reach]):
        vectors = positions[None] - positions[:, None] + np.array(shift) @ cell
        for i, j in np.argwhere(np.linalg.norm(vectors, axis=-1) < r_max).tolist():
            if i != j or any(shift):
                found.append((j, i, *shift))
    return sorted(found)


def listed(edges: EdgeList) -> list[tuple[int, ...]]:
    """The edges in their own order, in the same form."""
    columns = (edges.receivers, edges.senders, *edges.shifts.T)
    return list(zip(*(column.tolist() for column in columns), strict=True))


@st.composite
def systems(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n_atoms = draw(st.integers(1, 7))
    pbc = np.array(draw(st.tuples(st.booleans(), st.booleans(), st.booleans())))
    cell = np.diag(rng.uniform(1.2, 6, 3)) + rng.uniform(-0.9, 0.9, (3, 3))
    if draw(st.booleans()):
        cell[~pbc] = 0
    if draw(st.booleans()):
        cell = -cell  # left-handed
    positions = rng.uniform(-8, 8, (n_atoms, 3))  # also outside of the cell
    return positions, cell, pbc, draw(st.floats(0.5, 5.0))


@settings(deadline=None, max_examples=150)
@given(systems())
def test_equals_brute_force(system):
    positions, cell, pbc, r_max = system
    edges = neighbor_list(positions, cell, pbc, r_max)
    assert listed(edges) == brute_force(positions, cell, pbc, r_max)
    assert edges.senders.dtype == edges.receivers.dtype == edges.shifts.dtype == np.int64
    assert edges.shifts.shape == (edges.n_edges, 3)


@settings(deadline=None, max_examples=30)
@given(systems())
def test_every_edge_has_its_reverse(system):
    edges = listed(neighbor_list(*system))
    assert len(set(edges)) == len(edges)
    assert sorted((i, j, -a, -b, -c) for j, i, a, b, c in edges) == edges


def test_one_atom_sees_its_images():
    edges = neighbor_list(np.zeros((1, 3)), np.eye(3), PBC, 1.1)
    assert edges.n_edges == 6
    assert not (edges.shifts == 0).all(axis=1).any()
    dense = neighbor_list(np.zeros((1, 3)), np.eye(3), PBC, 4.0)
    grid = np.array(list(itertools.product(range(-4, 5), repeat=3)))
    assert dense.n_edges == (np.linalg.norm(grid, axis=1) < 4.0).sum() - 1


def test_no_atoms_in_reach():
    for positions in (np.zeros((1, 3)), np.array([[0.0, 0, 0], [0, 0, 9]])):
        edges = neighbor_list(positions, NO_CELL, NO_PBC, 5.0)
        assert edges.n_edges == 0
        assert edges.shifts.shape == (0, 3)
    assert neighbor_list(np.zeros((1, 3)), np.eye(3) * 20, PBC, 5.0).n_edges == 0


def test_half_open_at_r_max():
    positions = np.array([[0.0, 0, 0], [0, 0, 2.0]])
    assert neighbor_list(positions, NO_CELL, NO_PBC, 2.0).n_edges == 0
    assert neighbor_list(positions, NO_CELL, NO_PBC, np.nextafter(2.0, 3)).n_edges == 2
    assert neighbor_list(np.zeros((1, 3)), np.eye(3) * 2, PBC, 2.0).n_edges == 0
    assert neighbor_list(np.zeros((1, 3)), np.eye(3) * 2, PBC, np.nextafter(2.0, 3)).n_edges == 6


def test_a_lattice_at_the_cutoff_keeps_edges_and_reverses_together():
    # fcc shells at exactly r_max, in coordinates that do not round evenly
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    cell = 3.7 * np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]) @ rotation
    for r_max in 3.7 * np.sqrt([0.5, 1, 1.5, 2]):
        edges = listed(neighbor_list(np.full((1, 3), 0.1), cell, PBC, float(r_max)))
        assert sorted((i, j, -a, -b, -c) for j, i, a, b, c in edges) == edges


@pytest.mark.parametrize(
    ("positions", "cell", "pbc"),
    [
        ([[0, 0, 0], [0, 0, 0]], NO_CELL, NO_PBC),
        ([[0, 0, 0], [1e-7, 0, 0]], NO_CELL, NO_PBC),
        ([[0, 0, 0], [3.0, 0, 0]], np.eye(3) * 3, PBC),
        ([[0, 0, 0], [0, 3.0, 0]], np.diag([0, 3.0, 0]), np.array([False, True, False])),
    ],
)
def test_atoms_at_the_same_place(positions, cell, pbc):
    with pytest.raises(InputError, match=r"a\.xyz, structure 1: atoms 0 and 1 are .* same place"):
        neighbor_list(np.array(positions, dtype=float), cell, pbc, 2.0, "a.xyz, structure 1")


def test_a_cell_in_wrong_units():
    with pytest.raises(InputError, match="is the cell in Å"):
        neighbor_list(np.zeros((8, 3)), np.eye(3) * 0.1, PBC, 5.0)


@pytest.mark.parametrize("length", [300.0, 1e3, 3e3])
@pytest.mark.parametrize("axes", [1, 2, 3])
def test_long_thin_regions(length, axes):
    """Regions of such shapes kill vesin 0.6 (SIGFPE) when searched with r_max itself."""
    positions = np.array([[0.0, 0, 0], [length, length, 0], [length, length - 1.0, 0]])
    pbc = np.array([axes > 2, axes > 1, True])
    cell = np.diag([length + 9, length + 9, 3.0]) * pbc[:, None]
    edges = neighbor_list(positions, cell, pbc, 2.0)
    assert listed(edges) == brute_force(positions, cell, pbc, 2.0)


@pytest.mark.parametrize("n_atoms", [40, 140])  # all distances, and a search
def test_a_large_flat_molecule(n_atoms):
    rng = np.random.default_rng(1)
    positions = rng.uniform(0, 1e4, (n_atoms, 3)) * [1, 1, 0]
    positions[1] = positions[0] + [1, 0, 0]
    edges = neighbor_list(positions, NO_CELL, NO_PBC, 2.0)
    assert listed(edges) == [(0, 1, 0, 0, 0), (1, 0, 0, 0, 0)]


def test_a_region_too_long_to_search():
    positions = np.linspace(0, 1e7, DENSE + 1)[:, None] * [1, 1, 0]
    with pytest.raises(InputError, match="too thin and long"):
        neighbor_list(positions, NO_CELL, NO_PBC, 2.0)


def test_sorting_survives_shifts_of_any_size():
    positions = np.array([[0.0, 0, 0], [2.0e9 + 1, 0, 0], [1.0, 1.0, 0]])
    edges = neighbor_list(positions, np.eye(3) * 4, PBC, 2.0)
    assert listed(edges) == sorted(listed(edges))
    assert edges.n_edges > 0


def test_all_distances_equal_a_search(monkeypatch):
    positions = np.random.default_rng(2).uniform(0, 8, (60, 3))
    dense = neighbor_list(positions, NO_CELL, NO_PBC, 3.0)
    monkeypatch.setattr(neighbors, "DENSE", 0)
    assert listed(dense) == listed(neighbor_list(positions, NO_CELL, NO_PBC, 3.0))
    assert dense.n_edges > 200
