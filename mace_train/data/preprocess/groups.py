"""Groups of structures that a split does not divide: copies, and what the settings put together.

``data.group_key`` names a value in the files, such as the system or the trajectory: structures
with equal values are a group, in whichever files they are. ``data.structures_per_group`` cuts each
file into blocks of so many neighbouring structures, for frames of a trajectory, of which
neighbours are almost copies. Groups that hold copies of a structure (duplicates.py) are joined. A
structure has the number of its geometry and a key of 8 bytes for its group; O(n log n) for n.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from mace_train.data.raw_structure import AtomsLike
from mace_train.data.structure import LOGGER, names_in
from mace_train.errors import InvalidStructureError
from mace_train.settings import DataSettings

KEY_BYTES = 8


@dataclass(frozen=True)
class Grouping:
    """What the settings put into one group; by default nothing."""

    key: str | None = None
    n_neighbors: int = 1  # neighbouring structures of a file

    @classmethod
    def of(cls, data: DataSettings) -> "Grouping":
        """The grouping that the settings ask for."""
        return cls(data.group_key, data.structures_per_group)

    @property
    def setting(self) -> str:
        """The setting that asks for it, for messages; empty if none does."""
        if self.key is not None:
            return f"data.group_key={self.key}"
        if self.n_neighbors > 1:
            return f"data.structures_per_group={self.n_neighbors}"
        return ""

    def group_key(self, atoms: AtomsLike, file: str, index: int, *, isolated: bool) -> bytes:
        """[KEY_BYTES] the same for structures of one group; an isolated atom may have its own.

        Raises:
            InvalidStructureError: a structure without the value, whose group is not known.
        """
        if self.key is None:
            return _digest(file, str(index // self.n_neighbors))
        value = atoms.info.get(self.key)
        if value is not None:
            return _digest(str(_without_point(np.asarray(value).tolist())))
        if isolated:
            return _digest(file, str(index))
        raise InvalidStructureError(
            "no group",
            f"{file}, structure {index}: no {self.key!r} (data.group_key), so its group is not "
            f"known; found {', '.join(sorted(names_in(atoms))) or 'no values'}; add it, or choose "
            "another key",
        )


def _without_point(value: Any) -> Any:
    """``value``, or nested lists of them, with 3 in place of 3.0, which files write for one."""
    if isinstance(value, list):
        return [_without_point(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _digest(*parts: str) -> bytes:
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=KEY_BYTES).digest()


def groups_of(
    geometries: NDArray[np.int64], groups: NDArray[np.uint64] | None
) -> NDArray[np.int64]:
    """[n] number of the group of every structure, from its geometry [n] and key of a group [n]."""
    geometry = np.unique(geometries, return_inverse=True)[1].reshape(-1)
    if groups is None:
        return geometry
    group = np.unique(groups, return_inverse=True)[1].reshape(-1)
    n_geometries = int(geometry.max(initial=-1)) + 1
    n_nodes = n_geometries + int(group.max(initial=-1)) + 1
    links = (np.ones(len(group), dtype=np.int8), (geometry, n_geometries + group))
    _, joined = connected_components(coo_array(links, shape=(n_nodes, n_nodes)), directed=False)
    return joined[geometry].astype(np.int64)


def log_groups(
    geometries: NDArray[np.int64],
    groups: NDArray[np.uint64] | None,
    joined: NDArray[np.int64],
    setting: str,
) -> None:
    """Say how many copies there are and what ``setting`` grouped; ``joined`` is ``groups_of``."""
    of_geometry = np.unique(geometries, return_counts=True)[1]
    repeated = of_geometry[of_geometry > 1]
    if len(repeated):
        LOGGER.info(
            "train_file: %d geometries occur more than once (%d structures); the copies of one are "
            "all in training or all in validation",
            len(repeated),
            repeated.sum(),
        )
    if groups is None:
        return
    n_groups, sizes = len(np.unique(groups)), np.unique(joined, return_counts=True)[1]
    text = ""
    if len(sizes) < n_groups:
        text = f", {len(sizes)} after joining those that share copies of a structure"
    LOGGER.info(
        "train_file: %d groups by %s%s; none is divided, the largest holds %d of %d structures",
        n_groups,
        setting,
        text,
        sizes.max(),
        len(joined),
    )
