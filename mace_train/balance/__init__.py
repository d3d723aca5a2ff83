"""Which structures one GPU takes in one step.

``costs`` of structures -> ``packers`` (window by window) -> ``plan`` of an epoch -> ``sampler``:
the bins of one rank. ``simulate`` predicts the time of such epochs; ``balance`` is the command.
"""
