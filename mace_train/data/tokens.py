"""What is wrong with text that should be a number or the symbol of an element."""

import re

from ase.data import atomic_numbers, chemical_symbols

_FORTRAN_D = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[dD][+-]?\d+")
_NO_E = re.compile(r"[+-]?\d*\.\d+[+-]\d{3}")  # as Fortran writes exponents of three digits
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_COMMA = re.compile(r"[+-]?\d+,\d+([eEdD][+-]?\d+)?")
_PLAIN = re.compile(_NUMBER)
_JOINED = re.compile(rf"{_NUMBER}[+-](?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?.*")
_WITH_UNIT = re.compile(rf"(?!0[xX])({_NUMBER})[A-Za-zÅ%].*")
_ISOTOPES = {"D": "deuterium", "T": "tritium"}
_DUMMIES = {"X", "Xx", "Du", "Va", "Vac", "Q", "Gh", "Bq"}


def number_fault(text: str) -> str | None:
    """Why Python reads no number from ``text``, with the remedy; None if the reason is not known.

    >>> number_fault("1.0D+02")
    "has a Fortran exponent: write E in place of D, '1.0E+02'"
    >>> number_fault("*****")
    'is what Fortran writes for a number wider than its format: write it with a wider one'
    """
    if set(text) == {"*"}:
        return (
            "is what Fortran writes for a number wider than its format: write it with a wider one"
        )
    if _FORTRAN_D.fullmatch(text):
        return f"has a Fortran exponent: write E in place of D, {re.sub('[dD]', 'E', text)!r}"
    if _NO_E.fullmatch(text):
        split = max(text.rfind("+"), text.rfind("-"))
        return (
            "is two numbers without a space, or one whose exponent lost its E: write "
            f"'{text[:split]}E{text[split:]}' if it is one"
        )
    if "_" in text and _PLAIN.fullmatch(text.replace("_", "")):
        return f"has an underscore: write {text.replace('_', '')!r} if it is one number"
    if _COMMA.fullmatch(text):
        return f"has a decimal comma: write {text.replace(',', '.')!r}"
    if _JOINED.fullmatch(text):
        return "is two numbers without a space: write a space between them"
    for character in text:
        if not character.isascii() or not character.isprintable():
            if character == "\u2212":
                return "has the typographic minus sign U+2212: write -"
            return f"has the character U+{ord(character):04X}: remove it"
    if match := _WITH_UNIT.fullmatch(text):
        return f"is not a number alone: write {match[1]!r}, in the units of ASE (eV, Å)"
    return None


def element_fault(symbol: str) -> str:
    """Why ``symbol`` is no element, with the remedy.

    >>> element_fault("Cu1")
    "is a label, not an element: write 'Cu'"
    >>> element_fault("29")
    "is an atomic number: write 'Cu', or name the column Z:I:1 in Properties"
    """
    name = symbol.strip("'\"").capitalize()
    if symbol.isdecimal():
        number = int(symbol) if len(symbol) < 4 else 0
        if 0 < number < len(chemical_symbols):
            wanted = chemical_symbols[number]
            return f"is an atomic number: write {wanted!r}, or name the column Z:I:1 in Properties"
        return "is a number, and no atomic number of an element: write the symbol of the element"
    if name in _ISOTOPES:
        return f"is {_ISOTOPES[name]}, to a potential the element H: write 'H'"
    if name in _DUMMIES:
        return "is a dummy atom, which has no interactions: remove it"
    letters = re.match(r"[A-Za-z]*", name)
    known = letters[0] if letters else ""
    if symbol.capitalize() != known and atomic_numbers.get(known):
        return f"is a label, not an element: write {known!r}"
    if len(known) > 2 and atomic_numbers.get(known[:2]):
        return f"is no element: write its symbol, {known[:2]!r} if that is meant"
    return "is no element: write its symbol, such as 'Cu'"
