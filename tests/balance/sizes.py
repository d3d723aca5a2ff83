"""Synthetic data sets: atoms and edges per structure, ordinary and adversarial."""

import numpy as np
from hypothesis import strategies as st

from mace_train.balance.costs import Capacity, Costs

WORLD_SIZES = st.one_of(st.integers(1, 9), st.sampled_from([16, 64, 739, 740]))


def paper_like(n: int, seed: int = 0) -> Costs:
    """The classes of the data set of arXiv 2504.10700, by share: 2 to 768 atoms."""
    random = np.random.default_rng(seed)

    def count(share: float) -> int:
        return round(share * n)

    def classes() -> list[tuple[np.ndarray, np.ndarray]]:
        bulk = np.clip(random.lognormal(np.log(22), 0.8, count(0.596)), 2, 444)
        clusters = 3 * random.integers(3, 26, count(0.174))
        layers = random.integers(24, 76, count(0.083))
        zeolites = random.integers(203, 409, count(0.038))
        alloys = random.integers(200, 301, count(0.009))
        metals = random.integers(492, 501, count(0.028))
        water = np.full(count(0.072), 768)
        density = np.clip(random.lognormal(np.log(40), 0.45, len(bulk)), 5, 90)
        others = [(clusters, 20.0), (layers, 35.0), (zeolites, 30.0), (alloys, 60.0)]
        others += [(metals, 55.0), (water, 36.0)]
        return [(bulk, density), *((sizes, np.full(len(sizes), d)) for sizes, d in others)]

    parts = classes()
    atoms = np.concatenate([sizes.astype(np.int64) for sizes, _ in parts])
    edges = (atoms * np.concatenate([density for _, density in parts])).astype(np.int64)
    order = random.permutation(len(atoms))
    return Costs(atoms[order], edges[order])


@st.composite
def data_sets(draw: st.DrawFn, most: int = 120) -> Costs:
    """Data sets that are hard for packers; edges independent of atoms, or not, or none at all."""
    n = draw(st.integers(1, most))
    kind = draw(st.sampled_from(["any", "equal", "giant", "powers", "distinct", "halves"]))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    atoms = {
        "any": random.integers(1, 200, n),
        "equal": np.full(n, random.integers(1, 50)),
        "giant": np.append(random.integers(1, 4, n - 1), 5000),
        "powers": 2 ** random.integers(0, 12, n),
        "distinct": np.arange(1, n + 1),
        "halves": random.choice([50, 51], n),
    }[kind]
    edges = {
        "proportional": 30 * atoms,
        "free": random.integers(0, 10_000, n),
        "none": np.zeros(n, np.int64),
        "opposite": 40 * (atoms.max() - atoms),
    }[draw(st.sampled_from(["proportional", "free", "none", "opposite"]))]
    return Costs(atoms.astype(np.int64), edges)


@st.composite
def capacities(draw: st.DrawFn, costs: Costs) -> Capacity:
    """Capacities from the tightest that holds the largest structure on."""
    atoms, edges = int(costs.n_atoms.max()), int(costs.n_edges.max())
    loose = st.sampled_from([1.0, 1.01, 1.5, 3.0, 40.0])
    batch_size = draw(st.one_of(st.none(), st.integers(1, 20)))
    return Capacity(int(atoms * draw(loose)), int(edges * draw(loose)), batch_size)
