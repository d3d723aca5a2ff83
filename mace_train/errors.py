"""The error a user can cause and mend; the command line prints it as one message, never a trace."""


class InputError(ValueError):
    """Bad input: the message says what is wrong, where, what was found and the remedy."""


class InvalidStructureError(InputError):
    """One structure cannot be used, the others can; ``skip_invalid=true`` leaves it out."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind  # what is wrong in a few words, to count by

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.kind, str(self))
