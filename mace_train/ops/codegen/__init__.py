"""What a kernel computes.

``polynomial`` -> ``program`` -> ``derivative`` -> ``kernel_spec`` (which loop) ->
``instruction_order`` -> ``statements``.
"""
