"""From shards to batches: bins of structure ids -> Graphs of tensors, read ahead by workers."""

from mace_train.data.loading.loader import batches, collate

__all__ = ["batches", "collate"]
