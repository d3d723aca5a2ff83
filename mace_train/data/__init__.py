"""From files that ASE reads to shards with neighbour lists, statistics, and batches as tensors."""
