"""How large the chunks of compressed shards should be: reading at random and in order, and size.

    python scripts/bench/chunks.py [--structures 4000]

Structures of 10 to 200 atoms with 40 edges per atom in one shard; CPU time of one process, page
cache warm. The contiguous, mapped layout stands beside it.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from mace_train.data.neighbors import EdgeList
from mace_train.data.shards import hdf5
from mace_train.data.shards.arrays import Sample, Storage
from mace_train.data.shards.shard_set import ShardSet, shard_path, write_shard
from mace_train.data.structure import Structure

EDGES_PER_ATOM = 40


def main() -> None:
    """Print one line per layout."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--structures", type=int, default=4000)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    samples = [sample(rng) for _ in range(arguments.structures)]
    print("layout               MB   random structures/s   in order structures/s")
    for compression, chunk in [
        (None, 0),
        *((kind, 1 << k) for kind in ("gzip", "lzf") for k in (12, 14, 16, 18, 20)),
    ]:
        hdf5.CHUNK_BYTES = chunk or hdf5.CHUNK_BYTES
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_shard(shard_path(folder, 0), samples, 5.0, Storage(compression=compression))
            size = shard_path(folder, 0).stat().st_size / 1e6
            order = rng.permutation(len(samples) // 32 * 32)[: 50 * 32].reshape(-1, 32)
            rates = [
                rate(folder, ids) for ids in (order, np.sort(order.reshape(-1)).reshape(-1, 32))
            ]
        label = "contiguous" if compression is None else f"{compression} {chunk >> 10} KiB"
        print(f"{label:16s} {size:8.1f} {rates[0]:16.0f} {rates[1]:22.0f}", flush=True)


def sample(rng: np.random.Generator) -> Sample:
    """A structure with numbers as compressible as real ones: sorted receivers, small shifts."""
    n_atoms = int(rng.integers(10, 200))
    n_edges = EDGES_PER_ATOM * n_atoms
    receivers = np.repeat(np.arange(n_atoms), EDGES_PER_ATOM)
    structure = Structure(
        numbers=rng.choice([1, 6, 8], n_atoms),
        positions=rng.uniform(0, 20, (n_atoms, 3)),
        cell=np.eye(3) * 20,
        pbc=np.ones(3, dtype=bool),
        energy=float(rng.normal()),
        forces=rng.normal(size=(n_atoms, 3)),
        stress=None,
    )
    shifts = rng.choice([0, 0, 0, 0, 0, 0, 1, -1], (n_edges, 3))
    senders = (receivers + rng.integers(-20, 20, n_edges)) % n_atoms
    return Sample(structure, EdgeList(senders, receivers, shifts))


def rate(folder: Path, bins: np.ndarray) -> float:
    """Structures per CPU second, opening included."""
    start = time.process_time()
    shards = ShardSet(folder)
    for ids in bins:
        shards.batch(ids)
    return bins.size / (time.process_time() - start)


if __name__ == "__main__":
    main()
