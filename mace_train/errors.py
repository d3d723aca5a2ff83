"""The error a user can cause and mend; the command line prints it as one message, never a trace."""


class InputError(ValueError):
    """Bad input: the message says what is wrong, where, what was found and the remedy."""
