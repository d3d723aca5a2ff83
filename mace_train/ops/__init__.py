"""Fused equivariant operators for PyTorch, with first and second derivatives.

``codegen`` (programs and their derivatives) -> ``cpp``, ``cuda`` (compiled kernels) -> ``dispatch``
by device -> operators: ``symmetric_contraction``, ``convolution``, ``segmented_polynomial``, ...
"""
