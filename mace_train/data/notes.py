"""Notes: what a user should know of files, each kind with its first structure and its count."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

LOGGER = logging.getLogger("mace_train")


@dataclass
class Note:
    """One kind of remark: where it was found first, and in how many structures."""

    kind: str  # such as "virials weight": one line is logged of each
    source: str  # file and index of the first structure
    message: str  # of the first structure
    n_structures: int = 1

    def text(self) -> str:
        """One line of text.

        >>> Note("weight", "a.xyz, structure 3", "config_virials_weight is not used", 5).text()
        'a.xyz, structure 3: config_virials_weight is not used (first of 5 structures)'
        """
        n = self.n_structures
        return f"{self.source}: {self.message}{f' (first of {n} structures)' if n > 1 else ''}"


class Notes:
    """The remarks about a set of structures, by kind, in the order they were found."""

    def __init__(self, notes: Iterable[Note] = ()) -> None:
        self.found: dict[str, Note] = {}
        for note in notes:
            self._add(note)

    def add(self, kind: str, source: str, message: str) -> None:
        """Count one more structure; the ``message`` of the first of its ``kind`` is kept."""
        self._add(Note(kind, source, message))

    def merge(self, other: "Notes") -> None:
        """Add the notes about structures that come after these."""
        for note in other.found.values():
            self._add(note)

    def content(self) -> list[list[Any]]:
        """As plain values, for JSON."""
        return [[n.kind, n.source, n.message, n.n_structures] for n in self.found.values()]

    @classmethod
    def of_content(cls, content: Iterable[list[Any]]) -> Self:
        """The inverse of ``content``."""
        return cls(Note(*values) for values in content)

    def log(self, *, but: Iterable[str] = ()) -> None:
        """Log one warning for each kind, apart from those in ``but``."""
        unsaid = set(but)
        for kind, note in self.found.items():
            if kind not in unsaid:
                LOGGER.warning("%s", note.text())

    def _add(self, note: Note) -> None:
        known = self.found.get(note.kind)
        if known is None:
            self.found[note.kind] = Note(note.kind, note.source, note.message, note.n_structures)
        else:
            known.n_structures += note.n_structures
