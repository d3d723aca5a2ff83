"""Balanced batches of PyTorch Geometric graphs: our sampler in PyG's own DataLoader.

    python scripts/examples/pyg_data.py            (pip install torch-geometric)

Prints the spread of the work of the ranks with PyG's usual batches of a fixed number of graphs
and with balanced ones.
"""

import torch
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader

from mace_train.balance.batch_sampler import BalancedBatchSampler

N_RANKS = 4


def graphs(n: int = 600) -> list[Data]:
    """Random graphs of 2 to 150 nodes with 10 to 40 edges per node."""
    generator = torch.Generator().manual_seed(0)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=generator))

    result = []
    for i in range(n):
        n_nodes = draw(2, 150)
        edges = torch.randint(0, n_nodes, (2, n_nodes * draw(10, 40)), generator=generator)
        features = torch.randn(n_nodes, 3, generator=generator)
        result.append(Data(x=features, edge_index=edges, id=torch.tensor(i)))
    return result


def work_of_ranks(data: list[Data], loaders: list[DataLoader]) -> tuple[float, list[int]]:
    """(straggler ratio, ids seen): slowest rank over mean, summed over steps."""
    slowest = total = 0.0
    seen = []
    for batches in zip(*loaders, strict=True):
        work = [batch.num_nodes + batch.num_edges / 30 for batch in batches]
        slowest, total = slowest + max(work), total + sum(work) / len(work)
        seen += [int(i) for batch in batches for i in batch.id]
    return slowest / total, sorted(seen)


def main() -> tuple[float, float, list[int]]:
    """(straggler ratio of fixed numbers, of balanced batches, ids seen in the balanced epoch)."""
    data = graphs()
    n_nodes = [graph.num_nodes for graph in data]
    n_edges = [graph.num_edges for graph in data]
    shares = [data[rank::N_RANKS] for rank in range(N_RANKS)]
    fixed = [DataLoader(share, batch_size=10) for share in shares]
    balanced = [
        DataLoader(
            data,
            batch_sampler=BalancedBatchSampler(
                n_nodes, n_edges, batch_size=10, world_size=N_RANKS, rank=rank, seed=1
            ),
        )
        for rank in range(N_RANKS)
    ]
    before, _ = work_of_ranks(data, fixed)
    after, seen = work_of_ranks(data, balanced)
    print(f"straggler ratio on {N_RANKS} ranks: 10 graphs each {before:.3f}, balanced {after:.3f}")
    return before, after, seen


if __name__ == "__main__":
    main()
