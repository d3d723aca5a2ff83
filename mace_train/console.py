"""The console on which commands print: names from files are text, not markup of rich."""

from typing import Any

from rich.console import Console as _Console
from rich.text import Text

from mace_train.shown_text import printable


class Console(_Console):
    """A console of rich that takes no markup from strings and prints no control characters."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:
        """The text of every string that is printed, also in tables."""
        return super().render_str(printable(text), **options)
