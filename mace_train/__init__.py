"""mace-train: train MACE interatomic potentials on whole clusters.

``data`` -> ``balance`` -> ``train`` (``model``, ``ops``) -> ``evaluate``, ``calculators``.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("mace-train")
except PackageNotFoundError:  # a bare checkout that was never installed
    __version__ = "0.1.0+checkout"

__all__ = ["__version__"]
