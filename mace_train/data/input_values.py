"""Values of inputs beside the geometry: read with a structure, and given to a model.

A file holds what the user wrote; ``input_values`` reads it under its key, takes the default where
there is none (with a remark) and compares it with the range of all numbers. What a model takes is
``encoded``: the number of the class (value + offset), or the number itself. That is where values
meet the model's classes, so both the check before a training and loading call it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mace_train.data.label_values import numbers_in
from mace_train.data.notes import Notes
from mace_train.data.raw_structure import AtomsLike
from mace_train.errors import InputError, InvalidStructureError
from mace_train.settings.inputs import KEY_SETTINGS, PER, VALUE, InputKey, InputSpec

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class InputValues:
    """Inputs of one structure, by name."""

    graph: Mapping[str, float] = field(default_factory=dict)  # one number each
    atom: Mapping[str, Floats] = field(default_factory=dict)  # [n_atoms] each


NO_INPUTS = InputValues()


@dataclass(frozen=True)
class InputColumns:
    """Inputs of many structures, as shards hold them."""

    names: tuple[tuple[str, ...], tuple[str, ...]]  # per structure; per atom
    graph: Floats  # [n_structures, n] per structure
    atom: Floats  # [n_atoms, m] per atom

    def column(self, spec: InputSpec) -> Floats | None:
        """[n_structures] or [n_atoms] values of an input; None if there is no such column."""
        place = PER.index(spec.per)
        if spec.name not in self.names[place]:
            return None
        values: Floats = (self.graph, self.atom)[place][:, self.names[place].index(spec.name)]
        return values


def input_values(
    atoms: AtomsLike, keys: Sequence[InputKey], source: str, notes: Notes
) -> InputValues:
    """The inputs ``keys`` of a structure.

    Raises:
        InvalidStructureError: one that is missing and has no default, is no number or not one for
            each, is out of range, or stands under two keys with different values.
    """
    if not keys:
        return NO_INPUTS
    graph: dict[str, float] = {}
    atom: dict[str, Floats] = {}
    for key in keys:
        values = _values(atoms, key, source, notes)
        if key.per == "graph":
            graph[key.name] = float(values.reshape(()))
        else:
            atom[key.name] = values.reshape(len(atoms))
    return InputValues(graph, atom)


def _values(atoms: AtomsLike, key: InputKey, source: str, notes: Notes) -> Floats:
    """[] or [n_atoms] numbers."""
    per_atom = key.per == "atom"
    results: Mapping[str, Any] = getattr(atoms.calc, "results", {})  # HDF5 of mace-torch
    place: Mapping[str, Any] = {**results, **(atoms.arrays if per_atom else atoms.info)}
    n = len(atoms) if per_atom else 1
    found = {name: place[name] for name in key.keys if place.get(name) is not None}
    if not found:
        elsewhere = _elsewhere(atoms, key)
        if elsewhere and key.is_given:
            raise InvalidStructureError("place of an input", f"{source}: {elsewhere}")
        return np.full(n, _default(atoms, key, source, notes, elsewhere))
    arrays = {name: numbers_in(value, name, VALUE, source) for name, value in found.items()}
    for name, array in arrays.items():
        if array.size != n or (per_atom and len(array) != n):
            what = f"{n} atoms need one number each" if per_atom else "one number is needed"
            raise InvalidStructureError(
                "shape of an input",
                f"{source}: the input {key.name} ({name!r}) has shape {array.shape}; {what}, "
                "correct the file",
            )
    (first, values), *others = arrays.items()
    for name, array in others:
        if not np.array_equal(values.reshape(n), array.reshape(n)):
            raise InvalidStructureError(
                "two values of an input",
                f"{source}: the input {key.name} is {found[first]} under {first!r} and "
                f"{found[name]} under {name!r}; remove one of them",
            )
    return values.reshape(n)


def _elsewhere(atoms: AtomsLike, key: InputKey) -> str:
    """That a value stands per structure which is wanted per atom, or the reverse, if one does."""
    others: Mapping[str, Any] = atoms.info if key.per == "atom" else atoms.arrays
    name = next((name for name in key.keys if others.get(name) is not None), None)
    if name is None:
        return ""
    other = PER[1 - PER.index(key.per)]
    return (
        f"the input {key.name} is read per {_PLACES[key.per]}, but {name!r} is there per "
        f"{_PLACES[other]}; name it in {KEY_SETTINGS[other]}, with per: {other} in "
        "model.embedding_specs, or correct the file"
    )


def _default(
    atoms: AtomsLike, key: InputKey, source: str, notes: Notes, elsewhere: str = ""
) -> float:
    wanted = " or ".join(map(repr, key.keys))
    where = key.setting.removesuffix("_keys")
    if key.default is None:
        there = sorted(atoms.arrays if key.per == "atom" else atoms.info)
        raise InvalidStructureError(
            "no value of an input",
            f"{source}: no {wanted} ({where}) for the input {key.name}, which has no default; "
            f"{elsewhere or 'found ' + (', '.join(there) or 'no values')}; add it, name its key in "
            f"{where}_keys (of preprocess: data.{where}_keys), or give a default (of preprocess: "
            "data.input_defaults; default in model.embedding_specs)",
        )
    notes.add(
        f"no input {key.name}",
        source,
        f"no {wanted} ({where}) for the input {key.name}; taking its default, {key.default:g}"
        + (f": {elsewhere}" if elsewhere else ""),
    )
    return key.default


def encoded(
    specs: Sequence[InputSpec], columns: InputColumns | None, n_atoms: NDArray[np.int64]
) -> Floats:
    """[sum of n_atoms, n_specs] what a model takes of structures with ``n_atoms`` [n] atoms.

    Raises:
        InputOfStructureError: a column that is not there, or a value that the model has no class
            for.
    """
    total = int(n_atoms.sum())
    found = np.zeros((total, len(specs)))
    for i, spec in enumerate(specs if len(n_atoms) else ()):
        values = None if columns is None else columns.column(spec)
        if values is None:
            raise InputOfStructureError(0, missing_input(spec))
        wrong = first_wrong_value(spec, values)
        if wrong is not None:
            ends = np.cumsum(n_atoms)
            of = wrong if spec.per == "graph" else int(np.searchsorted(ends, wrong, side="right"))
            raise InputOfStructureError(of, wrong_value(spec, float(values[wrong])))
        numbers = values + spec.offset
        found[:, i] = np.repeat(numbers, n_atoms) if spec.per == "graph" else numbers
    return found


def check_inputs(
    specs: Sequence[InputSpec], values: InputValues, n_atoms: int, source: str
) -> None:
    """InputError that names ``source`` unless a model takes the inputs of a structure."""
    if not specs:
        return
    names = (tuple(values.graph), tuple(values.atom))
    graph, atom = np.array([[*values.graph.values()]]), [*values.atom.values()]
    of_atoms = np.stack(atom, axis=1) if atom else np.zeros((n_atoms, 0))
    try:
        encoded(specs, InputColumns(names, graph, of_atoms), np.array([n_atoms]))
    except InputOfStructureError as error:
        raise InputError(f"{source}: {error}") from None


class InputOfStructureError(ValueError):
    """An input of one structure cannot be used."""

    def __init__(self, structure: int, message: str) -> None:
        super().__init__(message)
        self.structure = structure  # number among those that were encoded


def first_wrong_value(spec: InputSpec, values: Floats) -> int | None:
    """Index of the first of values [n] that the model does not take; None if it takes all."""
    limits = spec.limits
    right = (values >= limits.minimum) & (values <= limits.maximum)
    if spec.is_class:
        right &= values == np.rint(values)
    return None if right.all() else int(np.argmin(right))


def wrong_value(spec: InputSpec, value: float) -> str:
    """What is wrong with a value, and what to do."""
    whole = "an integer, " if spec.is_class else ""
    return (
        f"the input {spec.name} is {value:g}, but the model takes {whole}{spec.limits}; correct "
        "the file or its key, or train a model with more classes (model.embedding_specs)"
    )


def missing_input(spec: InputSpec) -> str:
    """That there is no column of an input, and what to do."""
    setting = KEY_SETTINGS[spec.per]
    key = spec.key or spec.name
    named = f"[{spec.name}]" if key == spec.name else f"{{{spec.name}: {key}}}"
    return (
        f"no {spec.name}, which the model takes per {_PLACES[spec.per]}; preprocess again with "
        f"data.{setting}='{named}' (a mapping of inputs to names in the files)"
    )


_PLACES = {"graph": "structure (atoms.info)", "atom": "atom (atoms.arrays)"}
