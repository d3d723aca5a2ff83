"""``mace-train preprocess``: files -> shards with neighbour lists, and statistics.

``file_blocks`` (tasks) -> ``read_block`` (checks, edges) -> ``selection``, ``split`` ->
``assemble``.
"""
