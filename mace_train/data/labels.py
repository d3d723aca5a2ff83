"""Which labels a set of structures has, and warnings about those that are missing.

A label that is missing is not trained on, which is right where it was never computed and wrong
where its key is misspelt. So the labels are counted while structures are read, a missing one is
logged with the names in the files that look like it, and a key that the user gave but that no
structure has is an error. Stress counts relative to periodic structures that can have it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from mace_train.data.raw_structure import AtomsLike
from mace_train.data.stress_components import stress_mask
from mace_train.data.structure import LOGGER, LabelKeys, Structure, names_in
from mace_train.errors import InputError
from mace_train.settings import DataSettings

# what names of a label have in common, in lower case
_LOOKS_LIKE = {
    "energy": ("energy", "energies"),
    "forces": ("force", "gradient"),
    "stress": ("stress", "virial"),
}
_SETTINGS = {
    "energy": ("energy_key",),
    "forces": ("forces_key",),
    "stress": ("stress_key", "virials_key"),
}


@dataclass
class LabelCounts:
    """How many structures have each label."""

    n_structures: int = 0
    n_periodic: int = 0  # those that can have a stress, see stress_components.py
    energy: int = 0
    forces: int = 0
    stress: int = 0
    partial_stress: int = 0  # of structures that are periodic in one or two directions

    @classmethod
    def of_shards(cls, shards: Iterable[Mapping[str, NDArray[Any]]]) -> Self:
        """The counts of the arrays of shards, see arrays.LAYOUT."""
        counts = cls()
        for arrays in shards:
            counts.n_structures += len(arrays["has_energy"])
            counts.n_periodic += _n_periodic(arrays)
            counts.energy += int(np.count_nonzero(arrays["has_energy"]))
            counts.forces += int(np.count_nonzero(arrays["has_forces"]))
            counts.stress += int(np.count_nonzero(arrays["has_stress"]))
            partial = ~np.all(arrays["pbc"], axis=1)
            counts.partial_stress += int(np.count_nonzero(arrays["has_stress"][partial]))
        return counts

    def __add__(self, other: Self) -> Self:
        return type(self)(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def add(self, structure: Structure) -> None:
        """Count one more structure."""
        self.n_structures += 1
        self.n_periodic += bool(stress_mask(structure.cell, structure.pbc).any())
        self.energy += structure.energy is not None
        self.forces += structure.forces is not None
        self.stress += structure.stress is not None
        self.partial_stress += structure.stress is not None and not structure.pbc.all()

    def summary(self) -> str:
        """One line of text.

        >>> LabelCounts(40, 8, 40, 20, 3).summary()
        'labels: energy 40/40, forces 20/40, stress 3/8 periodic'
        """
        n = self.n_structures
        parts = [f"energy {self.energy}/{n}", f"forces {self.forces}/{n}"]
        if self.n_periodic:
            some = "" if self.n_periodic == n else " periodic"
            parts.append(f"stress {self.stress}/{self.n_periodic}{some}")
        return "labels: " + ", ".join(parts)


def _n_periodic(arrays: Mapping[str, NDArray[Any]]) -> int:
    """The number of structures in a shard that can have a stress."""
    pbc = arrays["pbc"].astype(bool)
    partial = np.flatnonzero(pbc.any(1) & ~pbc.all(1))
    n = sum(bool(stress_mask(arrays["cell"][i].astype(float), pbc[i]).any()) for i in partial)
    return int(pbc.all(1).sum()) + n


class LabelReport:
    """What was found while files were read: counts of labels, and all names of values."""

    def __init__(self, keys: LabelKeys) -> None:
        self.keys = keys
        self.counts = LabelCounts()
        self.names: set[str] = set()

    def add(self, atoms: AtomsLike, structure: Structure) -> None:
        """Count a structure and the ``atoms`` it was made from."""
        self.counts.add(structure)
        self.names |= names_in(atoms)

    def check_given_keys(self, where: str) -> None:
        """InputError for a key that is not the default and that no structure of ``where`` has.

        Of stress_key and virials_key one is enough, and neither matters without a structure that
        can have a stress.
        """
        for label in _SETTINGS:
            if label == "stress" and self.counts.n_periodic == 0:
                continue
            keys = self._keys(label)
            given = {name: key for name, key in keys.items() if key != getattr(DataSettings, name)}
            if given and not self.names & set(given.values()):
                raise InputError(
                    f"{where}: none of the {self.counts.n_structures} structures has "
                    f"{' or '.join(f'{key!r} ({name})' for name, key in given.items())}; found "
                    f"{', '.join(sorted(self.names)) or 'no labels'}; correct the key, or leave "
                    "it out"
                )

    def warn_missing(self, where: str) -> None:
        """Log a warning for every label that structures of ``where`` lack.

        Stress is optional: it is missing if other periodic structures have it, or if something
        in the files is called like it.
        """
        counts = self.counts
        found = {"energy": counts.energy, "forces": counts.forces, "stress": counts.stress}
        for label, n_found in found.items():
            n = counts.n_periodic if label == "stress" else counts.n_structures
            similar = self._similar(label)
            if n_found == n or (label == "stress" and n_found == 0 and not similar):
                continue
            keys = ", ".join(f"{name}={key}" for name, key in self._keys(label).items())
            LOGGER.warning(
                "%s: %d of %d%s structures have no %s (%s) and are used without%s",
                where,
                n - n_found,
                n,
                " periodic" if label == "stress" else "",
                label,
                keys,
                f"; similar names found: {', '.join(similar)}" if similar else "",
            )

    def log_partial_stress(self, where: str) -> None:
        """Log how many slabs and wires have a stress, of which only a part is used."""
        if self.counts.partial_stress:
            LOGGER.info(
                "%s: %d structures with a stress are periodic in one or two directions; of these "
                "only components along periodic directions are used",
                where,
                self.counts.partial_stress,
            )

    def _keys(self, label: str) -> dict[str, str]:
        """The names of ``label`` in the files, by the setting that gives them."""
        return {name: getattr(self.keys, name.removesuffix("_key")) for name in _SETTINGS[label]}

    def _similar(self, label: str) -> list[str]:
        """Names in the files that look like ``label`` but are not read."""
        in_use = set(vars(self.keys).values())
        return sorted(
            name
            for name in self.names - in_use
            if any(part in name.lower() for part in _LOOKS_LIKE[label])
            and not name.lower().endswith("weight")
        )
