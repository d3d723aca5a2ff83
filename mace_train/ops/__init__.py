"""Fused equivariant operations: polynomials, programs made from them, and compiled kernels."""
