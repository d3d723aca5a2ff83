"""One mutated input: a command line, its environment, and files in the folder that it runs in."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.fixtures import Fixtures


@dataclass
class Case:
    """One input."""

    what: str  # what was changed, for the table and to find it again
    words: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    out_of_range: str | None = None  # what would be wrong about accepting it
    runs_long: bool = False  # a right value may take any time: it is interrupted, and that is right
    codes: frozenset[int] = frozenset({0, 2})


MakeCase = Callable[[Fixtures, random.Random, Path], Case]
"""Draws a case and writes its files into the folder that it will run in."""
