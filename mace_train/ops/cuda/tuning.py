"""Choices by measured times, for each architecture: the table ``kernels/tuning.json``.

    {"format": 1,
     "architectures": {
       "sm_90": {
         "measured": {...},                        where and when, for readers
         "rows_per_chunk": 16,                     of the contraction's chunks
         "gradients_by_pair": false,               of the convolution: see ``convolution_kernels``
         "kernels": {"rows x16 w29 -> out4": {"float32": {"128": {"blocks": 3, ...}}}}}}}

A kernel is named by its loop and the sizes of its operands, so that a name does not depend on the
digits of a coupling; below it come the dtype and the number of channels, then fields of ``Tuning``.
What an entry does not name keeps its default, and so does what has no entry (``cuda.passes``).
``scripts/bench/gpu/tune.py --write`` makes the entries.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from mace_train._paths import KERNELS
from mace_train.errors import InputError
from mace_train.ops.codegen.kernel_spec import Kernel, Operand
from mace_train.ops.cuda.launch import CudaTarget
from mace_train.ops.cuda.passes import Tuning, tuning_of

TABLE = KERNELS / "tuning.json"
FORMAT = 1
DTYPES = {"float": "float32", "double": "float64"}  # by the scalars of CUDA
REMEDY = "scripts/bench/gpu/tune.py --write makes it again; without the file all have defaults"


def _is_power_of_two(value: int) -> bool:
    return value > 0 and value & (value - 1) == 0


RANGES: dict[str, tuple[str, Callable[[int], bool]]] = {
    "blocks": ("1 to 32", lambda value: 1 <= value <= 32),
    "threads": ("a multiple of 32 up to 1024", lambda v: v % 32 == 0 and 32 <= v <= 1024),
    "sums": ("at least 1", lambda value: value >= 1),
    "reload": ("at least 0", lambda value: value >= 0),
    "edges": ("a power of two up to 256", lambda v: _is_power_of_two(v) and v <= 256),
    "unroll": ("0 to 32", lambda value: 0 <= value <= 32),
}
"""What whole numbers may be, in words and as a condition."""


@dataclass(frozen=True)
class Choices:
    """The table of one architecture; empty where nothing was measured."""

    kernels: Mapping[tuple[str, str, int], Mapping[str, Any]] = field(default_factory=dict)
    rows_per_chunk: int | None = None
    gradients_by_pair: bool = False

    def tuning(self, kernel: Kernel, target: CudaTarget) -> Tuning:
        """The choices for a kernel: its defaults, but for what the table says."""
        entry = self.kernels.get((name_of(kernel), DTYPES[target.scalar], target.n_channels), {})
        return dataclasses.replace(tuning_of(kernel, target.n_bytes), **entry)

    @property
    def digest(self) -> str:
        """Equal for equal choices, empty if there are none: a part of the key of a source."""
        if not self.kernels:
            return ""
        text = json.dumps(sorted((list(key), sorted(e.items())) for key, e in self.kernels.items()))
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def name_of(kernel: Kernel) -> str:
    """Such as "rows x16 w29 -> out4": the loop, inputs and outputs with their segments."""

    def names(operands: tuple[Operand, ...]) -> str:
        return " ".join(
            f"{o.name}{':' if o.name[-1].isdigit() else ''}{o.n_segments}" for o in operands
        )

    return f"{kernel.loop.value} {names(kernel.inputs)} -> {names(kernel.outputs)}"


def choices_of(architecture: str | None) -> Choices:
    """The choices for an architecture such as sm_90; InputError if the table is malformed."""
    return _read(TABLE).get(architecture or "", Choices())


def entry_of(tuning: Tuning) -> dict[str, Any]:
    """All fields of a tuning as the table has them."""
    return {name: list(v) if isinstance(v, tuple) else v for name, v in vars(tuning).items()}


@cache
def _read(path: Path) -> dict[str, Choices]:
    """Choices by architecture; none without the file."""
    if not path.exists():
        return {}
    try:
        table = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path}: no JSON ({error}); {REMEDY}") from error
    return parse(table, str(path))


def parse(table: Any, where: str) -> dict[str, Choices]:
    """Choices by architecture; InputError that says what is malformed."""
    top = _object(table, where)
    if top.get("format") != FORMAT:
        _refuse(f"{where}, format", top.get("format"), f"{FORMAT}")
    architectures = _object(top.get("architectures"), f"{where}, architectures")
    return {
        name: _choices(_object(value, f"{where}, {name}"), f"{where}, {name}")
        for name, value in architectures.items()
    }


def _choices(values: dict[str, Any], where: str) -> Choices:
    rows = values.get("rows_per_chunk")
    if rows is not None and not (_is_whole(rows) and 1 <= rows <= 4096):
        _refuse(f"{where}, rows_per_chunk", rows, "a whole number, 1 to 4096")
    by_pair = values.get("gradients_by_pair", False)
    if not isinstance(by_pair, bool):
        _refuse(f"{where}, gradients_by_pair", by_pair, "true or false")
    found = {}
    for kernel, dtypes in _object(values.get("kernels", {}), f"{where}, kernels").items():
        for dtype, widths in _object(dtypes, f"{where}, {kernel}").items():
            if dtype not in DTYPES.values():
                _refuse(f"{where}, {kernel}", dtype, f"one of {', '.join(DTYPES.values())}")
            for width, entry in _object(widths, f"{where}, {kernel}, {dtype}").items():
                where_entry = f"{where}, {kernel}, {dtype}, {width}"
                if not width.isdecimal():
                    _refuse(where_entry, width, "a number of channels")
                found[kernel, dtype, int(width)] = _entry(_object(entry, where_entry), where_entry)
    return Choices(found, rows, by_pair)


def _entry(values: dict[str, Any], where: str) -> dict[str, Any]:
    """Fields of ``Tuning``, checked."""
    fields = {f.name: f.type for f in dataclasses.fields(Tuning)}
    entry: dict[str, Any] = {}
    for name, value in values.items():
        if name not in fields:
            _refuse(where, name, f"one of {', '.join(fields)}")
        if name in RANGES:
            words, is_right = RANGES[name]
            if not (_is_whole(value) and is_right(value)):
                _refuse(f"{where}, {name}", value, words)
        elif name == "split":
            if not (isinstance(value, list) and all(isinstance(part, str) for part in value)):
                _refuse(f"{where}, split", value, 'a list such as ["hx hg", "hw"]')
            value = tuple(value)
        elif not isinstance(value, bool):
            _refuse(f"{where}, {name}", value, "true or false")
        entry[name] = value
    return entry


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        _refuse(where, value, "an object with names")
    return value


def _refuse(where: str, got: Any, expected: str) -> NoReturn:
    raise InputError(f"{where}: got {got!r}, expected {expected}; {REMEDY}")
