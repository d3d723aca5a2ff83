"""From files that ASE reads to batches as tensors.

``read`` -> ``raw_structure`` -> ``structure`` (checked) -> ``neighbors`` -> ``preprocess`` ->
``shards`` and ``statistics`` -> ``loading`` -> ``graph``.
"""
