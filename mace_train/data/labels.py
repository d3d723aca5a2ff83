"""Which labels a set of structures has, and warnings about those that are missing.

A label that is missing is not trained on, which is right where it was never computed and wrong
where its key is misspelt. So the labels are counted while structures are read, a missing one is
logged with the names in the files that look like it, and a key that the user gave but that no
structure has is an error. Stress counts relative to periodic structures that can have it.
They are counted by key, too: one label under two keys is often two levels of theory.
"""

from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, field
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mace_train.data.found_labels import candidates, fallback_kind
from mace_train.data.notes import Notes
from mace_train.data.raw_structure import AtomsLike
from mace_train.data.stress_components import stress_mask
from mace_train.data.structure import LOGGER, LabelKeys, Structure, names_in
from mace_train.errors import InputError
from mace_train.settings import DataSettings
from mace_train.settings.inputs import CALCULATOR_KEYS, InputKey

LabelKeyCounts: TypeAlias = "dict[str, dict[str, dict[str, int]]]"  # by head, label and key

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


@dataclass
class KeyCount:
    """How many structures have a label under one key, and the first of them."""

    n_structures: int = 0
    first: str = ""


@dataclass
class LabelReport:
    """What was found while files were read: counts of labels by key, names of values, remarks."""

    keys: LabelKeys
    counts: LabelCounts = field(default_factory=LabelCounts)
    names: set[str] = field(default_factory=set)
    by_key: dict[str, dict[str, dict[str, KeyCount]]] = field(default_factory=dict)
    """By head, label (energy, forces, stress) and key in the file."""
    notes: Notes = field(default_factory=Notes)

    def add(self, atoms: AtomsLike, structure: Structure) -> None:
        """Count a structure and the ``atoms`` it was made from."""
        self.counts.add(structure)
        self.names |= names_in(atoms)
        of_head = self.by_key.setdefault(structure.head, {})
        for label in _SETTINGS:
            if getattr(structure, label) is None:
                continue
            found = next(candidates(atoms, self.keys.wanted(label)), None)
            if found is None:  # forces of a single atom, which are zero without being in the file
                continue
            counts = of_head.setdefault(label, {})
            if found.key in counts:
                counts[found.key].n_structures += 1
            else:
                counts[found.key] = KeyCount(1, structure.source)

    def merge(self, other: "LabelReport") -> None:
        """Add the report of structures that come after these."""
        self.counts = self.counts + other.counts
        self.names |= other.names
        self.notes.merge(other.notes)
        for head, labels in other.by_key.items():
            for label, keys in labels.items():
                mine = self.by_key.setdefault(head, {}).setdefault(label, {})
                for key, count in keys.items():
                    known = mine.setdefault(key, KeyCount(0, count.first))
                    known.n_structures += count.n_structures

    def content(self) -> dict[str, Any]:
        """All but the keys of the settings as plain values, for JSON."""
        return {
            "counts": astuple(self.counts),
            "names": sorted(self.names),
            "by_key": {
                head: {
                    label: {key: astuple(count) for key, count in keys.items()}
                    for label, keys in labels.items()
                }
                for head, labels in self.by_key.items()
            },
            "notes": self.notes.content(),
        }

    @classmethod
    def of_content(cls, keys: LabelKeys, content: Mapping[str, Any]) -> Self:
        """The inverse of ``content``."""
        by_key = {
            head: {
                label: {key: KeyCount(*count) for key, count in counts.items()}
                for label, counts in labels.items()
            }
            for head, labels in content["by_key"].items()
        }
        counts, notes = LabelCounts(*content["counts"]), Notes.of_content(content["notes"])
        return cls(keys, counts, set(content["names"]), by_key, notes)

    def numbers_by_key(self) -> LabelKeyCounts:
        """Structures by head, label and key, see ``Statistics.label_keys``."""
        return {
            head: {
                label: {key: count.n_structures for key, count in keys.items()}
                for label, keys in labels.items()
            }
            for head, labels in self.by_key.items()
        }

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

    def check_inputs(self, inputs: Iterable[InputKey], where: str) -> None:
        """InputError for a given key of an input that is not its name and that no structure has.

        Under its own name, and the model's keys, it may be missing everywhere: its default is
        taken, with a remark.
        """
        known = {*CALCULATOR_KEYS, *CALCULATOR_KEYS.values()}
        unread = self.names & known - {name for key in inputs for name in key.keys}
        if unread:
            LOGGER.info(
                "%s: %s, in the files, is not read; info_keys names the inputs of a model",
                where,
                ", ".join(sorted(unread)),
            )
        for key in inputs:
            is_name = key.keys == (key.name,)
            if key.is_given and not is_name and not self.names & set(key.keys):
                n = self.counts.n_structures  # 0 where labels are not read
                raise InputError(
                    f"{where}: {f'none of the {n} structures' if n else 'no structure'} has "
                    f"{' or '.join(map(repr, key.keys))} for the input {key.name}; found "
                    f"{', '.join(sorted(self.names)) or 'no values'}; correct the key "
                    "(data.info_keys, data.arrays_keys), or leave it out"
                )

    def warn(self, where: str) -> None:
        """Log all that may be wrong with the labels of ``where``, each once with its count."""
        self.notes.log(but=[fallback_kind(label) for label in self._warn_mixed(where)])
        self.warn_missing(where)

    def _warn_mixed(self, where: str) -> set[str]:
        """Log every label that one head has under several keys; these labels."""
        mixed = set()
        for head, labels in self.by_key.items():
            for label, keys in labels.items():
                if len(keys) < 2:
                    continue
                mixed.add(label)
                LOGGER.warning(
                    "%s: the %s%s comes from %d keys, so that two levels of theory may be mixed: "
                    "%s; %s",
                    where,
                    label,
                    _of_head(head),
                    len(keys),
                    ", ".join(
                        f"{key!r} in {count.n_structures} structures (first: {count.first})"
                        for key, count in keys.items()
                    ),
                    _remedy(label),
                )
        return mixed

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
        for labels in self.by_key.values():
            for keys in labels.values():
                in_use |= keys.keys()
        return sorted(
            name
            for name in self.names - in_use
            if any(part in name.lower() for part in _LOOKS_LIKE[label])
            and not name.lower().endswith("weight")
        )


def warn_of_other_keys(reports: Mapping[str, LabelReport]) -> None:
    """Log every label that the first of the ``reports``, by files, has under another key.

    A label that has several keys within one report is not compared: that is logged by its ``warn``.
    """
    (where, first), *others = reports.items()
    for head, labels in first.by_key.items():
        for label, keys in labels.items():
            for other_where, other in others:
                theirs = other.by_key.get(head, {}).get(label, {})
                if len(keys) == len(theirs) == 1 and keys.keys() != theirs.keys():
                    LOGGER.warning(
                        "the %s%s is %r in %s and %r in %s, so that two levels of theory may be "
                        "compared; %s",
                        label,
                        _of_head(head),
                        *keys,
                        where,
                        *theirs,
                        other_where,
                        _remedy(label),
                    )


def keys_in_words(counts: LabelKeyCounts) -> str:
    """How many structures have each label under each key, in one line.

    >>> keys_in_words({"Default": {"energy": {"REF_energy": 3, "energy": 2}}, "pbe": {}})
    'energy: REF_energy 3, energy 2'
    >>> keys_in_words({"a": {"energy": {"E": 3}}, "b": {"energy": {"E": 4}, "forces": {"F": 4}}})
    'a (energy: E 3), b (energy: E 4; forces: F 4)'
    """
    by_head = {
        head: "; ".join(
            f"{label}: {', '.join(f'{key} {n}' for key, n in keys.items())}"
            for label, keys in labels.items()
        )
        for head, labels in counts.items()
    }
    shown = {head: text for head, text in by_head.items() if text}
    if list(shown) == ["Default"]:
        return shown["Default"]
    return ", ".join(f"{head} ({text})" for head, text in shown.items()) or "none"


def _of_head(head: str) -> str:
    return "" if head == "Default" else f" of the head {head}"


def _remedy(label: str) -> str:
    settings = " or ".join(f"data.{name}" for name in _SETTINGS[label])
    return f"if so, give each its head, or correct the names in the files or {settings}"
