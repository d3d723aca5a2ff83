"""Checks of single settings, each with the message a user needs."""

import os
from collections.abc import Sequence
from typing import Any

from mace_train.errors import InputError

_PER_CORE = 16  # threads or processes
_ON_ANY_HOST = 64  # which any host may have, for tests of many processes


def check_choice(name: str, value: str, valid: tuple[str, ...]) -> None:
    """InputError unless ``value`` is one of the ``valid`` names."""
    if value not in valid:
        raise InputError(f"{name}={value!r} is not known; valid choices are: {', '.join(valid)}")


def check_at_least(name: str, value: float | None, least: float, *, strictly: bool = False) -> None:
    """InputError unless ``value`` is None, at least ``least``, or (``strictly``) greater."""
    if value is None:
        return
    if not (value > least if strictly else value >= least):
        relation = "greater than" if strictly else "at least"
        raise InputError(f"{name}={value} is out of range; it must be {relation} {least}")


def check_head(name: str, head: str, heads: Sequence[str]) -> None:
    """InputError unless the data have the head that the setting ``name`` means."""
    if head not in heads:
        raise InputError(f"{name}: no head {head!r}; the heads of the data are: {', '.join(heads)}")


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
