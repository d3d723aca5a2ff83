"""Names from files in what is printed and drawn: as they are, without power over where they are.

A name in a data set may hold control characters, which move the cursor or set the title of a
window, or what Matplotlib takes for a formula. Both are shown as text.
"""


def printable(text: str) -> str:
    r"""The text with control characters, and others that are invisible, written as escapes.

    >>> printable("a\x1b[2Jb\n")
    'a\\x1b[2Jb\n'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else _escape(c) for c in text)


def plot_label(text: str) -> str:
    r"""The text for a legend of Matplotlib, which takes $ for a formula and hides names after _.

    >>> plot_label("_cu $x$")
    ' _cu \\$x\\$'
    """
    shown = printable(text).replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode()
