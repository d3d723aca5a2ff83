"""Errors that a user can fix; the command line prints one message, without a traceback."""

import os
from typing import ClassVar


class InputError(ValueError):
    """Bad input: the message says what is wrong, where, what was found and the remedy."""

    exit_code: ClassVar[int] = 2


class LostRankError(InputError):
    """A rank, its host or the network failed: the same command may succeed when tried again."""

    exit_code: ClassVar[int] = os.EX_UNAVAILABLE  # 69


class InvalidStructureError(InputError):
    """One structure cannot be used, the others can; ``skip_invalid=true`` leaves it out."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind  # category of the error, such as "no energy", to count by

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.kind, str(self))
