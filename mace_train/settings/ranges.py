"""The range of every number in the settings, declared once, beside its default.

    num_interactions: int = bounded(2, Range(1, 100, reason="published models have 1 to 4"))

The range lies in the metadata of the field (``range_of``). The constructor of every class of
settings compares its values with the ranges (``check_ranges``), and the help page prints them.
Limits are generous: a value beyond them is a typing error, or cannot be carried out; the reason
says which. Ranges that several fields share are constants here.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, TypeVar

from mace_train.errors import InputError

T = TypeVar("T")
Number = int | float

_KEY = "range"
_DIGITS = 40  # integers with more are shown by their order of magnitude


@dataclass(frozen=True)
class Range:
    """Numbers from ``minimum`` to ``maximum``, with or without these; NaN is never among them."""

    minimum: Number
    maximum: Number
    exclude_minimum: bool = False
    exclude_maximum: bool = False
    reason: str = ""
    """Why the limits are what they are, in a few words."""

    def holds(self, value: Number) -> bool:
        """Whether ``value`` is in the range."""
        above = value > self.minimum if self.exclude_minimum else value >= self.minimum
        below = value < self.maximum if self.exclude_maximum else value <= self.maximum
        return above and below

    def check(self, name: str, value: Any) -> None:
        """InputError unless ``value``, or every number of a list or mapping, is in the range.

        None and strings are not numbers, and others check them. A wrong value in a list or mapping
        is named ``name[0]`` or ``name.key``.
        """
        if isinstance(value, dict):
            for key, item in value.items():
                self.check(f"{name}.{key}", item)
        elif isinstance(value, (list, tuple)):
            for i, item in enumerate(value):
                self.check(f"{name}[{i}]", item)
        elif isinstance(value, bool):
            raise InputError(f"{name}={value} is not a number; it must be {self}")
        elif isinstance(value, (int, float)) and not self.holds(value):
            raise InputError(f"{name}={shown(value)} is out of range; it must be {self}")

    def __str__(self) -> str:
        """The limits and their reason, as messages and help pages show them."""
        low = "greater than" if self.exclude_minimum else "at least"
        high = "less than" if self.exclude_maximum else "at most"
        text = f"{low} {shown(self.minimum)} and {high} {shown(self.maximum)}"
        return f"{text} ({self.reason})" if self.reason else text


def bounded(default: T, limits: Range) -> T:
    """A field of a dataclass with a default and a range.

    It may be None where its type says so; in a list or mapping the range is that of every number.
    """
    metadata = {_KEY: limits}
    if isinstance(default, list):
        made: Any = dataclasses.field(default_factory=default.copy, metadata=metadata)
    else:
        made = dataclasses.field(default=default, metadata=metadata)
    declared: T = made
    return declared


def range_of(field: "dataclasses.Field[Any]") -> Range | None:
    """The declared range of a field of the settings; None for what is no number."""
    found: Range | None = field.metadata.get(_KEY)
    return found


def check_ranges(settings: Any, prefix: str = "") -> None:
    """InputError unless all numbers of a dataclass of settings are in their declared ranges.

    ``prefix`` begins the names of its fields on the command line, such as ``model.``.
    """
    for field in dataclasses.fields(settings):
        limits = range_of(field)
        if limits is not None:
            limits.check(f"{prefix}{field.name}", getattr(settings, field.name))


def shown(value: Number) -> str:
    """A number as messages show it.

    >>> shown(65536), shown(10**9), shown(10**5000), shown(1e30), shown(0.5)
    ('65536', '1,000,000,000', 'about 1e5000', '1e+30', '0.5')
    """
    if isinstance(value, float):
        return f"{value:g}" if value == float(f"{value:g}") else repr(value)
    if abs(value) >= 10**_DIGITS:  # Python refuses to print very long ones
        return f"about {'-' if value < 0 else ''}1e{round(math.log10(abs(value)))}"
    return f"{value:,}" if abs(value) >= 10**6 else str(value)


SEED = Range(0, 2**64 - 1, reason="seeds have 64 bits")
COUNT = Range(1, 10**9, reason="more than a thousand million is a typing error")
COUNT_OR_ZERO = Range(0, 10**9, reason=COUNT.reason)
CUTOFF = Range(
    0,
    100,
    exclude_minimum=True,
    reason="Å; an atom of a solid has some 400,000 neighbours within 100 Å",
)
LEARNING_RATE = Range(0, 1000, exclude_minimum=True, reason="weights are of the order of 1")
LOSS_WEIGHT = Range(0, 1e9, reason="in single precision larger ones hide all other terms")
DECAY = Range(0, 1, exclude_maximum=True, reason="the share that is kept in every step")
ATOMIC_ENERGY = Range(-1e8, 1e8, reason="eV; the heaviest atoms, with all electrons, have -1.5e6")
MEGABYTES = Range(0, 1e6, reason="1e6 MB are the memory of several GPUs")
