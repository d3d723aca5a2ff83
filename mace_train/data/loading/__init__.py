"""From shards to batches: bins of structure ids -> Graphs of tensors, prefetched by workers.

``edge_indices`` -> ``packed`` (one block of memory) -> ``padding`` -> ``shared_memory`` ->
``loader``.
"""

from mace_train.data.loading.loader import batches, collate

__all__ = ["batches", "collate"]
