"""Shards as data sets of other libraries."""
