"""Batches for the benchmarks of a training step: measured structures, and synthetic ones."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from mace_train._paths import EXAMPLE_DATA
from mace_train.data.graph import Graph
from mace_train.data.loading.loader import collate
from mace_train.data.read import read_structures
from mace_train.data.shards.shard_set import sample_of
from mace_train.data.structure import LabelKeys, Structure

R_MAX = 5.0
KEYS = LabelKeys("REF_energy", "REF_forces", "REF_stress", "REF_virials")
ELEMENTS = (1, 6, 7, 8, 9, 15, 16, 17, 35, 53)  # of organic molecules
MOST_ATOMS = 800
LARGEST_MOLECULE = 30
SPACING = 2.3  # Å, of the grid that atoms are near; some 40 neighbours within 5 Å in a crystal


def ten_structures(data: Path) -> list[Structure]:
    """The first ten of a file with more than one atom; molecules of 25 to 30 of our examples."""
    structures = [s for s in read_structures([str(data)], KEYS) if s.n_atoms > 1]
    if data.parent == EXAMPLE_DATA:
        structures = [s for s in structures if 25 <= s.n_atoms <= 30 and not s.pbc.any()]
    return structures[:10]


def first_structures(data: Path, n_atoms: int) -> list[Structure]:
    """The first structures of a file that together have at most so many atoms."""
    structures = list(read_structures([str(data)], KEYS))
    ends = np.cumsum([s.n_atoms for s in structures])
    return structures[: int(np.searchsorted(ends, n_atoms, side="right"))]


def mixed(n_atoms: int, seed: int = 0) -> list[Structure]:
    """Synthetic structures of 1 to 800 atoms with so many atoms in all, sizes log-uniform."""
    random = np.random.default_rng(seed)
    sizes: list[int] = []
    while (left := n_atoms - sum(sizes)) > 0:
        size = round(np.exp(random.uniform(0.0, np.log(MOST_ATOMS))))
        sizes.append(min(size, left))
    return [synthetic(size, random) for size in sizes]


def molecules(n: int, n_atoms: int, seed: int = 0) -> list[Structure]:
    """Synthetic molecules, all with as many atoms."""
    random = np.random.default_rng(seed)
    return [synthetic(n_atoms, random) for _ in range(n)]


def synthetic(n_atoms: int, random: np.random.Generator) -> Structure:
    """Atoms near the points of a grid; a crystal if there are more than a molecule has."""
    side = int(np.ceil(n_atoms ** (1 / 3)))
    shape = (side, side, -(-n_atoms // side**2))
    points = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1).reshape(-1, 3)
    points = points[np.sort(random.permutation(len(points))[:n_atoms])]
    is_crystal = n_atoms > LARGEST_MOLECULE
    return Structure(
        numbers=random.choice(np.array(ELEMENTS), n_atoms).astype(np.int64),
        positions=SPACING * points + random.uniform(-0.15, 0.15, (n_atoms, 3)),
        cell=_cell(shape) if is_crystal else np.zeros((3, 3)),
        pbc=np.full(3, is_crystal),
        energy=float(random.normal()),
        forces=random.normal(size=(n_atoms, 3)),
        stress=None,
    )


def _cell(shape: tuple[int, int, int]) -> NDArray[np.float64]:
    return SPACING * np.diag(np.array(shape, dtype=np.float64))


def batch_of(
    structures: list[Structure], dtype: torch.dtype, r_max: float = R_MAX
) -> tuple[Graph, tuple[int, ...]]:
    """All structures as one batch on the host, and their elements."""
    samples = [sample_of(structure, r_max) for structure in structures]
    numbers = tuple(sorted({z for s in samples for z in s.structure.numbers.tolist()}))
    ids = np.arange(len(samples))
    return collate(samples, ids, atomic_numbers=numbers, dtype=dtype), numbers
