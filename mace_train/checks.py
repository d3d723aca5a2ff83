"""Checks of single settings, each with the message a user needs."""

import difflib
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

from mace_train.errors import InputError

_PER_CORE = 16  # threads or processes
_ON_ANY_HOST = 64  # which any host may have, for tests of many processes
_SYNONYMS = {  # in lower case, without -, _ and blanks: other words for choices and settings
    "node": ("atom",),
    "structure": ("graph",),
    "system": ("graph",),
    "molecule": ("graph",),
    "class": ("categorical",),
    "integer": ("categorical",),
    "int": ("categorical",),
    "number": ("continuous",),
    "float": ("float32", "continuous"),
    "single": ("float32",),
    "fp32": ("float32",),
    "double": ("float64",),
    "fp64": ("float64",),
    "bf16": ("bfloat16",),
    "tf32": ("tfloat32",),
    "gpu": ("cuda",),
    "val": ("valid",),
    "validation": ("valid",),
    "langevin": ("nvt",),
    "verlet": ("nve",),
    "fps": ("farthest",),
    "swish": ("silu",),
    "xyz": ("extxyz",),
    "reducelronplateau": ("plateau",),
    "learningrate": ("lr",),
    "epochs": ("max_num_epochs",),
    "numepochs": ("max_num_epochs",),
    "cutoff": ("r_max",),
    "dtype": ("default_dtype",),
    "outputdir": ("output",),
    "workdir": ("output",),
    "numlayers": ("num_interactions",),
}


def nearest(value: str, valid: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The ``valid`` name that ``value`` means: misspelt, or another word for it.

    ``cutoff`` is the least similarity (``difflib``) of a misspelt one. None if there is none.

    >>> nearest("node", ("graph", "atom")), nearest("mp-0B3", ("mp_0b2", "mp_0b3"))
    ('atom', 'mp_0b3')
    """
    by_word: dict[str, str] = {}
    for name in valid:
        by_word.setdefault(_word(name), name)
    word = _word(value)
    if word in by_word:
        return by_word[word]
    meant = [name for name in _SYNONYMS.get(word, ()) if name in by_word.values()]
    similar = difflib.get_close_matches(word, by_word, n=1, cutoff=cutoff)
    return next(iter([*meant, *(by_word[word] for word in similar)]), None)


def did_you_mean(value: str, choices: Iterable[str]) -> str:
    """`` (did you mean X?)`` with the nearest of the choices, or the shortest that holds the value.

    >>> did_you_mean("hubr", ("weighted", "huber")), did_you_mean("Density", ("A", "DensityBlock"))
    (' (did you mean huber?)', ' (did you mean DensityBlock?)')
    >>> did_you_mean("x", ("weighted", "huber"))
    ''
    """
    choices, word = list(choices), _word(value)
    holding = sorted((name for name in choices if len(word) > 2 and word in _word(name)), key=len)
    near = nearest(value, choices) or next(iter(holding), None)
    return f" (did you mean {near}?)" if near is not None else ""


def _word(name: str) -> str:
    return re.sub(r"[-_\s]", "", name.lower())


def check_choice(name: str, value: str, valid: Iterable[str]) -> None:
    """InputError unless ``value`` is one of the ``valid`` names."""
    valid = list(valid)
    if value not in valid:
        hint = did_you_mean(str(value), valid)
        raise InputError(
            f"{name}={value!r} is not known{hint}; valid choices are: {', '.join(valid)}"
        )


def check_head(setting: str, name: str, heads: Sequence[str], of: str = "the model") -> None:
    """InputError unless ``name`` is one of the ``heads`` of ``of`` (the model, the data)."""
    if name not in heads:
        hint = did_you_mean(name, heads)
        raise InputError(
            f"{setting}: no head {name!r}{hint}; the heads of {of} are: {', '.join(heads)}"
        )


def check_at_least(name: str, value: float | None, least: float, *, strictly: bool = False) -> None:
    """InputError unless ``value`` is None, at least ``least``, or (``strictly``) greater."""
    if value is None:
        return
    if not (value > least if strictly else value >= least):
        relation = "greater than" if strictly else "at least"
        raise InputError(f"{name}={value} is out of range; it must be {relation} {least}")


def is_number(value: object) -> bool:
    """Whether a value of a file is a finite number of the size of an int64."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return -(2**63) < value < 2**63


def check_cores(name: str, value: int | None) -> None:
    """InputError for more threads or processes than this host could ever run."""
    n_cores = os.cpu_count() or 1
    most = max(_PER_CORE * n_cores, _ON_ANY_HOST)
    if value is not None and value > most:
        raise InputError(
            f"{name}={value} is out of range; it must be at most {most} here (this host has "
            f"{n_cores} cores: more than {_PER_CORE} for each only wait for one another)"
        )


def as_files(name: str, value: Any) -> list[str]:
    """A list of paths from a setting that may hold one path, several, or none."""
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return list(value)
    raise InputError(f"{name}={value!r} must be a path or a list of paths, such as [a.xyz,b.xyz]")


def files_by_head(name: str, value: Any) -> dict[str, list[str]]:
    """Paths by head, from a setting that holds them so, or paths of the head Default."""
    if not isinstance(value, dict):
        return {"Default": as_files(name, value)}
    return {str(head): as_files(f"{name}.{head}", files) for head, files in value.items()}
