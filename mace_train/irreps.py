"""Irreps of O(3) in e3nn's notation, and the one place that imports e3nn.

    128x0e+128x1o       128 scalars and 128 vectors: multiplicity x degree, parity even or odd

MACE's features have one multiplicity for all degrees 0..l_max, and natural parity, (-1)^l:
``FeatureIrreps``. Strings that users type are parsed by e3nn, which is imported when the first one
is: that takes 0.5 s (0.4.4) to 2 s (0.6), so the commonest string, ``16x0e``, does without.
"""

import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from mace_train.errors import InputError

MOST_CHANNELS = 1 << 16  # of one degree; published models have up to 512
_TRUST = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"


@contextmanager
def importing_e3nn() -> Iterator[None]:
    """Where e3nn 0.4.4, or mace-torch, which pins it, can be imported under any PyTorch.

    It reads a file of constants by a ``torch.load`` that PyTorch 2.6 and later refuse unless an
    environment variable is set. Variable and warnings are as before afterwards.
    """
    before = os.environ.get(_TRUST)
    os.environ[_TRUST] = "1"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if before is None:
            os.environ.pop(_TRUST, None)
        else:
            os.environ[_TRUST] = before


def import_o3() -> Any:
    """The package e3nn.o3."""
    if "e3nn.o3" in sys.modules:
        return sys.modules["e3nn.o3"]
    with importing_e3nn():
        from e3nn import o3
    return o3


@dataclass(frozen=True)
class FeatureIrreps:
    """The same number of channels of every degree 0..l_max, with natural parity.

    >>> FeatureIrreps(128, l_max=2)
    128x0e+128x1o+128x2e
    >>> FeatureIrreps.parse("128x0e + 128x1o", "model.hidden_irreps").l_max
    1
    """

    mul: int  # multiplicity: channels of every degree
    l_max: int = 0

    @property
    def degrees(self) -> range:
        """0..l_max."""
        return range(self.l_max + 1)

    @property
    def n_components(self) -> int:
        """Components of one channel, (l_max + 1)^2."""
        return (self.l_max + 1) ** 2

    def __str__(self) -> str:
        return irreps_string([self.mul] * (self.l_max + 1))

    __repr__ = __str__

    @classmethod
    def parse(cls, text: str, setting: str) -> "FeatureIrreps":
        """From a string that a user typed for ``setting``.

        Raises InputError for what e3nn cannot read, and for irreps that MACE here cannot have.
        """
        found = _parsed(text, setting).simplify()
        widths = {int(mul) for mul, _ in found}
        irreps = [str(irrep) for _, irrep in found]
        natural = [f"{degree}{'eo'[degree % 2]}" for degree in range(len(found))]
        if len(widths) != 1 or irreps != natural:
            raise InputError(
                f"{setting}={text!r}: MACE's features here are 0e, 1o, 2e, ... in this order, with "
                "the same multiplicity each; write one like '128x0e+128x1o'"
            )
        return cls(_checked(widths.pop(), text, setting), len(found) - 1)


def count_scalars(text: str, setting: str) -> int:
    """The number of scalars that a user's string names; InputError if there is anything else."""
    if found := re.fullmatch(r"([1-9]\d*)x0e", text):
        return _checked(int(found[1]), text, setting)
    irreps = _parsed(text, setting)
    if irreps.dim == 0 or any(str(irrep) != "0e" for _, irrep in irreps):
        raise InputError(f"{setting}={text!r} must be scalars, like '16x0e'")
    return _checked(int(irreps.dim), text, setting)


def _checked(mul: int, text: str, setting: str) -> int:
    """``mul``, if it is not so large that it must be a slip."""
    if mul > MOST_CHANNELS:
        shown = text if len(text) <= 40 else f"{text[:40]}..."
        raise InputError(
            f"{setting}={shown!r}: {mul} channels, at most {MOST_CHANNELS} are possible"
        )
    return mul


def _parsed(text: str, setting: str) -> Any:
    """e3nn's Irreps without empty ones."""
    o3 = import_o3()
    try:
        return o3.Irreps(text).remove_zero_multiplicities()
    except Exception as error:  # e3nn raises whatever it meets
        raise InputError(
            f"{setting}={text!r} are no irreps of e3nn; write multiplicity x degree and parity, "
            "like '128x0e+128x1o'"
        ) from error


def irreps_string(multiplicities: list[int] | tuple[int, ...]) -> str:
    """Irreps of degrees 0, 1, ... with natural parity, as e3nn prints them.

    >>> irreps_string([10, 20])
    '10x0e+20x1o'
    """
    return "+".join(
        f"{mul}x{degree}{'eo'[degree % 2]}" for degree, mul in enumerate(multiplicities)
    )
