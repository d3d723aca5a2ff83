"""mace-train: train MACE interatomic potentials on whole clusters.

``data`` -> ``balance`` -> ``train`` (``model``, ``ops``) -> ``evaluate``, ``calculators``.
"""

__all__ = ["__version__"]


def __getattr__(name: str) -> str:
    """``__version__``, when it is asked for: the program starts sooner without."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        found = version("mace-train")
    except PackageNotFoundError:  # a bare checkout that was never installed
        found = "0.1.0+checkout"
    globals()[name] = found
    return found
