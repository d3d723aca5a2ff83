"""Which files of a folder or an archive are taken for structures: those with a known name."""

from pathlib import PurePath

_SUFFIXES = {".xyz", ".extxyz", ".traj", ".db", ".aselmdb", ".lmdb", ".h5", ".hdf5", ".cif"}
_STEMS = ("OUTCAR", "vasprun", "XDATCAR")
_PACKED = {".gz", ".bz2", ".xz", ".zst"}
_ARCHIVES = {".tar", ".tgz", ".tbz2", ".txz", ".zip"}


def is_structure_file(name: str) -> bool:
    """Whether the name is one that structures are kept under.

    >>> [is_structure_file(name) for name in ("a/b.xyz.gz", "OUTCAR.3", "README.md", ".a.xyz")]
    [True, True, False, False]
    """
    path = PurePath(name)
    if path.name.startswith("."):
        return False
    stem = path.with_suffix("") if path.suffix in _PACKED else path
    return (
        stem.suffix in _SUFFIXES | _ARCHIVES
        or path.suffix in _ARCHIVES
        or stem.name.startswith(_STEMS)
    )
