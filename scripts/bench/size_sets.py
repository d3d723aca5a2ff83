"""Sizes of synthetic data sets for the balancer: atoms and edges per structure.

- paper: the classes of the data set of arXiv 2504.10700 (crystals as in MPtrj, water clusters,
  layered chalcogenides, zeolites, high-entropy alloys, copper-nickel, liquid water), up to 768;
- qm9: small molecules, 3 to 29 atoms, nearly complete graphs;
- heavy: a truncated Pareto distribution of atoms, 8 to 3072, exponent 1.2.

The real mixture is not synthetic: ``mixture`` counts the edges of all files of a folder once,
keeps them in a cache file, and repeats the structures to the number asked for.
"""

import gzip
import hashlib
import io
import tempfile
from pathlib import Path

import ase
import ase.io
import numpy as np
import vesin
from numpy.typing import NDArray

from mace_train.balance.costs import Costs

N = 2_650_000
CLASSES = {  # share of N
    "crystals": 1_580_000 / N,
    "clusters": 460_000 / N,
    "layers": 220_000 / N,
    "zeolites": 100_000 / N,
    "alloys": 25_000 / N,
    "metals": 75_000 / N,
    "water": 190_000 / N,
}


def paper(n: int = N, seed: int = 0) -> Costs:
    """The classes of the paper by share."""
    random = np.random.default_rng(seed)
    counts = {name: round(share * n) for name, share in CLASSES.items()}
    counts["crystals"] += n - sum(counts.values())
    crystals = np.exp(random.normal(np.log(22), 0.8, counts["crystals"])).round()
    clusters = 3 * random.integers(3, 26, counts["clusters"])
    parts = [
        (np.clip(crystals, 1, 444), 44.0, 0.27),
        (clusters, 9.0 + 0.28 * clusters, 0.08),
        (random.integers(24, 76, counts["layers"]), 38.0, 0.12),
        (random.integers(203, 409, counts["zeolites"]), 30.0, 0.08),
        (random.integers(200, 301, counts["alloys"]), 60.0, 0.04),
        (random.integers(492, 501, counts["metals"]), 55.0, 0.02),
        (np.full(counts["water"], 768), 36.0, 0.02),
    ]
    atoms = np.concatenate([sizes for sizes, _, _ in parts]).astype(np.int64)
    density = np.concatenate(
        [random.lognormal(np.log(mean), spread, len(sizes)) for sizes, mean, spread in parts]
    )
    return _shuffled(atoms, atoms * density, random)


def qm9(n: int = N, seed: int = 0) -> Costs:
    """Molecules whose atoms nearly all see each other."""
    random = np.random.default_rng(seed)
    atoms = np.clip(random.normal(18, 2.95, n).round(), 3, 29).astype(np.int64)
    share = random.normal(0.94, 0.03, n).clip(0.7, 1.0)
    return _shuffled(atoms, atoms * (atoms - 1) * share, random)


def heavy(n: int = N, seed: int = 0) -> Costs:
    """Many small structures and a few giants."""
    random = np.random.default_rng(seed)
    least, most, exponent = 8.0, 3073.0, 1.2
    tail = 1 - (least / most) ** exponent
    atoms = (least * (1 - tail * random.random(n)) ** (-1 / exponent)).astype(np.int64)
    spread = 0.45 * (least / atoms) ** 0.2  # large structures differ less
    density = np.clip(30 * np.exp(random.normal(0, 1, n) * spread), 5, 90)
    density = np.where(atoms > 1000, density.clip(max=36), density)
    return _shuffled(atoms, atoms * density, random)


def _shuffled(
    atoms: NDArray[np.int64], edges: NDArray[np.float64], random: np.random.Generator
) -> Costs:
    order = random.permutation(len(atoms))
    return Costs(atoms[order], edges.astype(np.int64)[order])


def mixture(folder: Path, n: int = N, r_max: float = 5.0, seed: int = 0) -> Costs:
    """The structures of all extxyz files below a folder, repeated to n.

    Edges are counted once and kept in the system's folder for temporary files.
    """
    cache = Path(tempfile.gettempdir()) / f"mace-train-mixture-{r_max}-{_name(folder)}.npz"
    if not cache.exists():
        counts = [_counts(atoms, r_max) for path in _files(folder) for atoms in _frames(path)]
        atoms, edges = np.array(counts).T
        np.savez(cache, atoms=atoms, edges=edges)
    kept = np.load(cache)
    chosen = np.random.default_rng(seed).permutation(np.resize(np.arange(len(kept["atoms"])), n))
    return Costs(kept["atoms"][chosen], kept["edges"][chosen])


def _name(folder: Path) -> str:
    return hashlib.blake2b(str(folder.resolve()).encode(), digest_size=4).hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*xyz*") if p.is_file())


def _frames(path: Path) -> list[ase.Atoms]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt") as handle:
        return ase.io.read(io.StringIO(handle.read()), ":", format="extxyz")


def _counts(atoms: ase.Atoms, r_max: float) -> tuple[int, int]:
    neighbours = vesin.ase_neighbor_list("i", atoms, r_max)
    return len(atoms), len(neighbours)
