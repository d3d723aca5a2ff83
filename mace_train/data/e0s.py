"""E0s: the energies of isolated atoms, eV, that the model's energies are counted from.

They are given (a mapping, a JSON file, a foundation model), taken from isolated-atom structures, or
fitted, for every head (level of theory) on its own. The fit: with
A[i, z] the number of atoms of element z in structure i and b[i] its energy, E0s minimise
||A E0s - b||^2, and are the shortest such vector where A does not determine them. A is never held
whole: its QR factorisation is updated chunk by chunk (Demmel et al., arXiv 0806.2159), which has
the accuracy of one factorisation of all, unlike normal equations, and costs O(n_elements^2) memory.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import atomic_numbers as number_of_symbol
from ase.data import chemical_symbols
from numpy.typing import NDArray

from mace_train.data.foundation_e0s import foundation_E0s
from mace_train.data.structure import LOGGER
from mace_train.errors import InputError
from mace_train.settings.ranges import ATOMIC_ENERGY

# energies of two isolated atoms of one element may differ by the rounding in the files
SAME_ENERGY = 1e-6  # eV
REMEDY = (
    "add isolated-atom structures to data.train_file, or set data.E0s=average or a mapping "
    "{Z: eV} or JSON file"
)


@dataclass(frozen=True)
class E0Source:
    """Where the E0s of one head come from."""

    source: str  # isolated, average, given or foundation
    given: dict[int, float] | None = None


class E0Sources:
    """The source of E0s that the settings give, for every head."""

    def __init__(
        self, E0s: Any, foundation_model: str | None = None, accept_licence: str | None = None
    ) -> None:
        """Read ``data.E0s``, ``data.foundation_model`` and ``data.accept_licence``.

        Raises:
            InputError: a file that cannot be read, or a key that is no element, or a value that
                is no energy.
        """
        self._by_head: dict[str, E0Source] | None = None
        if isinstance(E0s, Mapping) and not all(map(_is_energy_of_element, E0s.items())):
            self._by_head = {
                str(head): _E0_source(value, foundation_model, accept_licence, f"data.E0s.{head}")
                for head, value in E0s.items()
            }
        else:
            self._default = _E0_source(E0s, foundation_model, accept_licence, "data.E0s")

    def of(self, head: str) -> E0Source:
        """The source for one head; InputError if E0s are given by head and not for this one."""
        if self._by_head is None:
            return self._default
        if head not in self._by_head:
            raise InputError(
                f"data.E0s is given for the heads {', '.join(self._by_head)}, but there are "
                f"structures of the head {head}; add it"
            )
        return self._by_head[head]

    def given(self, heads: Iterable[str]) -> dict[str, dict[int, float]]:
        """E0s (eV by atomic number) of those heads for which the settings give them."""
        sources = {
            head: self.of(head) for head in heads if self._by_head is None or head in self._by_head
        }
        return {head: source.given for head, source in sources.items() if source.given is not None}


def _E0_source(
    value: Any, foundation_model: str | None, accept_licence: str | None, where: str
) -> E0Source:
    if value is None or (isinstance(value, str) and value.lower() == "isolatedatom"):
        return E0Source("isolated")
    if isinstance(value, str) and value.lower() == "average":
        return E0Source("average")
    if isinstance(value, str) and value.lower() == "foundation":
        if foundation_model is None:
            raise InputError(
                f"{where}=foundation needs data.foundation_model: a model of mace-torch or the "
                "output folder of a training"
            )
        return E0Source("foundation", foundation_E0s(foundation_model, accept_licence))
    if isinstance(value, str):
        where = f"{where}={value}"
        value = _read_json(value)
    if not isinstance(value, Mapping):
        raise InputError(f"{where} must be a mapping {{Z: eV}}, found {value!r}")
    return E0Source(
        "given", {_element(key, where): _energy(key, E0, where) for key, E0 in value.items()}
    )


def _is_energy_of_element(item: tuple[Any, Any]) -> bool:
    """Whether this is one E0, or was meant so, and not the E0s of a head."""
    key, value = item
    return isinstance(value, (int, float)) or not isinstance(key, str) or key in number_of_symbol


def _read_json(file: str) -> Any:
    try:
        return json.loads(Path(file).read_text())
    except OSError as error:
        raise InputError(
            f"data.E0s={file}: cannot read this file ({error.strerror}); E0s is null, 'average', "
            "a mapping {Z: eV} or a JSON file with one"
        ) from error
    except ValueError as error:
        raise InputError(f"data.E0s={file}: not JSON ({error}); correct the file") from error


def _element(key: Any, where: str) -> int:
    """The atomic number that a key means: 8, "8" or "O"."""
    if isinstance(key, str):
        key = number_of_symbol.get(key, int(key) if key.isdigit() else key)
    if not isinstance(key, int) or not 1 <= key < len(chemical_symbols):
        raise InputError(
            f"{where}: {key!r} is no element; keys are atomic numbers or symbols such as 8 or O"
        )
    return key


def _energy(key: Any, value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError(f"{where}: the energy of {key} is {value!r}, it must be a number in eV")
    ATOMIC_ENERGY.check(f"{where}: E0 of {key}", value)
    return float(value)


class IsolatedAtoms:
    """Energies of isolated atoms, by element, gathered while structures are read."""

    def __init__(self) -> None:
        self.n_structures = 0
        self.E0s: dict[int, float] = {}
        self._source: dict[int, str] = {}

    def add(self, element: int, energy: float | None, source: str) -> None:
        """Add an isolated atom; InputError if it contradicts an earlier one."""
        if energy is None:
            raise InputError(f"{source}: an isolated atom without energy; add it")
        self.n_structures += 1
        before = self.E0s.setdefault(element, energy)
        first = self._source.setdefault(element, source)
        if abs(before - energy) > SAME_ENERGY:
            raise InputError(
                f"{source}: isolated atom of {chemical_symbols[element]} with energy "
                f"{energy} eV, but {first} has {before} eV; keep one, the neutral ground state"
            )


def check_covered(
    E0s: Mapping[int, float],
    elements: Iterable[int],
    source: str,
    *,
    where: str = "",
    remedy: str = REMEDY,
) -> dict[int, float]:
    """The E0s of ``elements``; InputError naming those without one.

    Args:
        E0s: Energies, eV, by atomic number.
        elements: Atomic numbers that need one.
        source: Where ``E0s`` are from.
        where: The structure with these elements, if there is one to name.
        remedy: How to fix it.
    """
    missing = [z for z in elements if z not in E0s]
    if missing:
        names = ", ".join(f"{chemical_symbols[z]} ({z})" for z in missing)
        raise InputError(
            f"{where and f'{where}: '}no energy of an isolated atom (E0) for {names}; {source} "
            f"has {', '.join(chemical_symbols[z] for z in sorted(E0s)) or 'none'}; {remedy}"
        )
    return {z: E0s[z] for z in elements}


def triangle_of(counts: NDArray[np.float64], energies: NDArray[np.float64]) -> NDArray[np.float64]:
    """R [k, n_elements + 1] of the QR factorisation of (A [n, n_elements] | b [n] eV)."""
    rows = np.concatenate([counts, energies[:, None]], axis=1)
    return np.asarray(np.linalg.qr(rows, mode="r"), dtype=np.float64)


def fit_E0s(
    triangles: Iterable[NDArray[np.float64]], n_structures: int, elements: list[int]
) -> dict[int, float]:
    """Least-squares E0s (eV, by atomic number) of all ``n_structures`` structures.

    ``triangles`` are those of ``triangle_of``, [k, n_elements + 1] each.
    """
    n_elements = len(elements)
    if n_structures == 0:
        LOGGER.warning(
            "data.E0s=average: no structure has an energy of a weight above 0, so all E0s "
            "are 0; energies of a model of these data have no meaning, forces and stress have"
        )
        return dict.fromkeys(elements, 0.0)
    triangle = np.zeros((0, n_elements + 1))
    for part in triangles:
        stacked = np.concatenate([triangle, part])
        triangle = np.asarray(np.linalg.qr(stacked, mode="r"), dtype=np.float64)
    # rounding in the triangle hides singular values below this share of the largest one
    tolerance = max(1e-12, np.finfo(np.float64).eps * n_structures)
    solution, _, rank, _ = np.linalg.lstsq(triangle[:, :-1], triangle[:, -1], rcond=tolerance)
    if rank < n_elements:
        LOGGER.warning(
            "data.E0s=average: the compositions determine only %d of %d E0s. Single E0s are not "
            "meaningful (the shortest solution is taken), only their sums over compositions seen "
            "in training; energies of other compositions will be wrong. Give E0s of isolated "
            "atoms if you can",
            rank,
            n_elements,
        )
    return dict(zip(elements, solution.tolist(), strict=True))
