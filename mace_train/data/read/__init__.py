"""Reading structures from files, one at a time.

``files`` -> ``unpack`` (compressed files) -> ``formats`` -> ranges of a file -> ``structures``.
"""

from mace_train.data.read.files import check_files
from mace_train.data.read.structures import parsed_structures, read_atoms, read_structures

__all__ = ["check_files", "parsed_structures", "read_atoms", "read_structures"]
