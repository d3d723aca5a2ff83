"""Shards as data sets of other libraries: a ``ShardSet`` -> structures of PyG or of mace-torch."""
