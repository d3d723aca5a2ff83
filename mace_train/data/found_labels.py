"""Where the labels of a structure stand: under the key of the settings, or under ASE's own name.

One function says what could be a label and which of it is read, for reading, for counting by key
and for comparing; so what is reported is what was read.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from mace_train.data.raw_structure import AtomsLike
from mace_train.settings import DataSettings, PredictionSettings

# an asymmetry of a stress up to this share of its largest component is rounding in the file
STRESS_ASYMMETRY = 1e-3
STRESS_ASYMMETRY_FLOOR = 1e-6  # eV/Å^3
# values that differ by less than this share of the largest, or this much, differ by rounding
_ROUNDING = {"energy": (1e-7, 1e-5), "forces": (1e-3, 1e-4), "stress": (1e-3, 1e-6)}
_OTHER_QUANTITIES = {"free_energy"}  # ASE's names of what is not the same as its energy
_UNITS = {"energy": "eV", "forces": "eV/Å", "stress": "eV/Å^3"}


@dataclass(frozen=True)
class LabelKeys:
    """Names of the labels in the files."""

    energy: str
    forces: str
    stress: str
    virials: str
    head: str = "head"

    @classmethod
    def of(cls, settings: DataSettings | PredictionSettings) -> Self:
        """The names that the settings give."""
        return cls(
            energy=settings.energy_key,
            forces=settings.forces_key,
            stress=settings.stress_key,
            virials=settings.virials_key,
            head=settings.head_key if isinstance(settings, DataSettings) else "head",
        )

    def wanted(self, label: str) -> tuple[tuple[str, str], ...]:
        """(kind, key) of what can be the ``label``, in the order of preference."""
        if label == "stress":
            return (("stress", self.stress), ("virials", self.virials))
        return ((label, getattr(self, label)),)


class FoundLabel(NamedTuple):
    """One value that is called like a label."""

    kind: str  # energy, forces, stress or virials
    key: str  # its name in the file
    value: Any
    parsed: bool  # under ASE's own name, not under the key of the settings


def candidates(atoms: AtomsLike, wanted: Sequence[tuple[str, str]]) -> Iterator[FoundLabel]:
    """All values for a label, the one that is read first.

    Args:
        atoms: As they were read.
        wanted: (kind, key of the settings), in the order of preference.
    """
    info, arrays = atoms.info, atoms.arrays
    results: Mapping[str, Any] = getattr(atoms.calc, "results", {})
    for kind, key in wanted:
        value = info.get(key)
        if value is None:
            value = arrays.get(key)
        if value is None:
            value = results.get(key)
        if value is not None:
            yield FoundLabel(kind, key, value, parsed=False)
        if key != kind and results.get(kind) is not None:
            yield FoundLabel(kind, kind, results[kind], parsed=True)


def difference(
    label: str,
    read: NDArray[np.float64],
    found: Sequence[FoundLabel],
    as_read: Callable[[FoundLabel], NDArray[np.float64] | None],
) -> tuple[str, str] | None:
    """(kind, message) of the first value that contradicts the one that is ``read``, or None.

    Args:
        label: energy, forces or stress.
        read: The label, of the structure.
        found: The ``candidates``.
        as_read: Makes of a candidate what ``read`` is; None where it cannot.
    """
    for other in [] if found[0].key in _OTHER_QUANTITIES else found[1:]:
        array = as_read(other)
        if array is None or array.shape != read.shape or not np.isfinite(array).all():
            continue
        distances = np.abs(array - read)
        relative, absolute = _ROUNDING[label]
        largest = max(np.abs(read).max(initial=0.0), np.abs(array).max(initial=0.0))
        if distances.max(initial=0.0) <= absolute + relative * largest:
            continue
        where = np.unravel_index(int(np.argmax(distances)), distances.shape)
        place = {"energy": "", "forces": f" on atom {where[0]}" if where else ""}.get(
            label, f" in component {tuple(int(i) for i in where)}"
        )
        of_virials = [
            "-virials / volume of " if f.kind == "virials" else "" for f in (found[0], other)
        ]
        return (
            f"{label} of {found[0].key} and {other.key}",
            f"two values of the {label} differ{place}: {of_virials[0]}{found[0].key!r} is "
            f"{read[where]:.8g} {_UNITS[label]} and is read, {of_virials[1]}{other.key!r} is "
            f"{array[where]:.8g} and is not read",
        )
    return None


def as_name(value: Any) -> str | None:
    """``value`` as the text that stands in the file; None if it holds control characters."""
    if isinstance(value, str) or np.ndim(value) != 1:
        text = str(value)
    else:
        text = " ".join(map(str, value))
    is_name = text.isprintable() or not any(c < " " or c == "\x7f" for c in text)
    return text if is_name else None


def is_asymmetric(stress: NDArray[Any]) -> bool:
    """Whether ``stress`` [3, 3] differs from its transpose by more than rounding."""
    asymmetry = float(np.abs(stress - stress.T).max())
    return asymmetry > max(STRESS_ASYMMETRY_FLOOR, STRESS_ASYMMETRY * float(np.abs(stress).max()))


def fallback_kind(label: str) -> str:
    """Kind of the note that a ``label`` is one that ASE parsed."""
    return f"fallback {label}"
