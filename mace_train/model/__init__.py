"""MACE in PyTorch.

``radial`` and ``spherical_harmonics`` of the edges -> ``convolution`` -> ``contraction`` (together
a layer of ``blocks``) -> energies (``mace``) -> forces and stress (``derivatives``).
"""
