"""Where the folders ``configs/`` and ``kernels/`` are: in a checkout or inside a wheel."""

from pathlib import Path


def _folder(name: str) -> Path:
    """The folder ``name`` of an installed wheel, else of the checkout that this file lies in."""
    installed = Path(__file__).parent / name
    return installed if installed.is_dir() else Path(__file__).parents[1] / name


CONFIGS = _folder("configs")
KERNELS = _folder("kernels")
EXAMPLE_DATA = Path(__file__).parent / "example_data"
