"""Reading structures from files: file -> ranges of structures -> structures, one at a time."""

from mace_train.data.read.files import check_files
from mace_train.data.read.structures import read_structures

__all__ = ["check_files", "read_structures"]
