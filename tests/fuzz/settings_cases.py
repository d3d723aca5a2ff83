"""Command lines in which one setting has a strange value: every setting of every command."""

import dataclasses
import math
import random
import shutil
from functools import cache
from pathlib import Path
from typing import Any

from mace_train.cli import COMMANDS
from tests.fuzz.case import Case
from tests.fuzz.fixtures import Fixtures

NUMBERS = (
    *("0", "-1", "1", "2", "-0.0", "0.5", "1.5", "1e-300", "5e-324", "1e30", "1e308", "1e400"),
    *("-1e30", "nan", "inf", "-inf", "NaN", "+inf", "1_000", "0x10", "1e3", "007", "1e", "1,2"),
    *("2147483647", "2147483648", "4294967296", "9223372036854775807", "9223372036854775808"),
    *("18446744073709551616", "1000000000", "-9223372036854775809", "9" * 60, "-" + "9" * 25),
)
TEXTS = (
    *("", "''", '""', "null", "None", "true", "false", "maybe", "' '", "-", "--", ".", "..", "/"),
    *("abc", "Ünïcode", "'Ünïcode'", "'日本'", "'😀'", "'a b'"),
    *("a b", "'", '"', "\\", "\\'", "'\\''"),
    *("[", "]", "{", "}", "[]", "{}", "[[]]", "[null]", "[1,2,3]", "[a,b]", "{a:1}", "{1:-13.6}"),
    *("{a:{b:[1,{c:null}]}}", "[1,a,null,true]", "'[1,2'", "("),
    *(")", "a=b", "=", "==", "a:b", ","),
    *("${output}", "${nope}", "${oc.env:NOT_SET}", "${", "${}", "$", "${oc.decode:'['}", "???"),
    *("${example_data:x}", "${now:}", "${hydra:runtime.cwd}", "${.name}", "${oc.env:HOME}"),
    *("nowhere/at/all", "/proc/self/mem", "/dev/null"),
    *("/dev/full/x", "~", "*", "*.xyz", "a" * 5000),
    *("glob(*)", "choice(1,2)", "range(3)", "sort(2,1)"),
    *("int(x)", "float(nan)", "str(1)", "tag(a)"),
    *("'\n'", "a\tb", "'%s%n'", "`id`", "$(id)", "; ls", "| cat"),
    *("&", "<x", ">x", "#", "@", "!", "~x"),
    *("\ufeff1", "\u202e1", "１２", "'\x1b[31m'", "\x7f", "e\u0301", "0/0", "1/3", "[" * 200),
)  # fmt: skip
# settings that only say how much is done: right values may take any time
LENGTHS = frozenset(
    [
        "max_num_epochs",
        "finish.epochs",
        "steps",
        "max_steps",
        "trials",
        "read_seconds",
        "message_mb",
        "gap_instances",
        "gpus",
        "repeat",
        "model.num_channels",
        "model.max_L",
        "model.max_ell",
        "model.correlation",
        "model.num_interactions",
        "model.num_radial_basis",
        "model.radial_MLP",
        "model.hidden_irreps",
        "model.MLP_irreps",
        "r_max",
        "batching.batch_size",
        "batching.accumulate",
        "workers",
        "cluster.num_workers",
        "training",
        "launch",
        "format",
        "cluster.kernels",
        "kernels",
        "device",
    ]
)


@dataclasses.dataclass(frozen=True)
class Setting:
    """A leaf of a command's settings."""

    command: str
    name: str
    type: Any
    range: Any  # declared in the field's metadata; None where there is none


@cache
def all_settings() -> list[Setting]:
    """Every setting of every command."""
    return [s for name, command in COMMANDS.items() for s in _leaves(name, command.schema, "")]


def _leaves(command: str, schema: type, prefix: str) -> list[Setting]:
    found = []
    for field in dataclasses.fields(schema):
        name = f"{prefix}{field.name}"
        if dataclasses.is_dataclass(field.type):
            assert isinstance(field.type, type)
            found += _leaves(command, field.type, f"{name}.")
        else:
            found.append(Setting(command, name, field.type, field.metadata.get("range")))
    return found


def numeric(setting: Setting) -> bool:
    """Whether the setting is one number or a list of them."""
    return any(word in str(setting.type) for word in ("int", "float"))


def value_of(setting: Setting, rng: random.Random) -> str:
    """A strange value, or one at a limit."""
    limits = setting.range
    if limits is not None and rng.random() < 0.5:
        return rng.choice(at_limits(limits, is_whole="int" in str(setting.type)))
    return rng.choice(NUMBERS if numeric(setting) and rng.random() < 0.6 else TEXTS)


def at_limits(limits: Any, is_whole: bool) -> list[str]:
    """The limits of a range and the numbers on both sides of them."""
    found: list[Any] = []
    for limit in (limits.minimum, limits.maximum):
        if is_whole:
            found += [int(limit) + step for step in (-1, 0, 1)]
        else:
            found += [math.nextafter(limit, way) for way in (-math.inf, limit, math.inf)]
            found += [limit * 10, -limit or -1.0]
    return [repr(value) for value in found]


def outside(setting: Setting, text: str) -> str | None:
    """What is wrong with the value, where it is a number outside the declared range."""
    try:
        value = float(text.replace("_", "")) if "int" not in str(setting.type) else int(text)
    except ValueError:
        return None
    if not numeric(setting):
        return None
    if setting.range is not None:
        if setting.range.holds(value):
            return None
        return (
            f"{setting.name}={text} is outside {setting.range.minimum} to {setting.range.maximum}"
        )
    if not math.isfinite(value) or abs(value) >= 1e30:
        return f"{setting.name}={text} is no number that can be used, and no range is declared"
    return None


def make(fixtures: Fixtures, rng: random.Random, work: Path) -> Case:
    """One setting of one command has a strange value."""
    settings = all_settings()
    setting = settings[rng.randrange(len(settings))]
    if setting.command == "tune" and rng.random() < 0.8:  # slow to start
        setting = settings[rng.randrange(len(settings))]
    value = value_of(setting, rng)
    return case_of(fixtures, work, setting, value)


def case_of(fixtures: Fixtures, work: Path, setting: Setting, value: str) -> Case:
    """The command with that value of a setting."""
    words = list(fixtures.base[setting.command])
    at = words.index("--") if "--" in words else len(words)
    words[at:at] = [f"{setting.name}={value}"]
    if setting.command == "sweep":
        shutil.copytree(fixtures.folder / "sweep", work / "sweep")
    return Case(
        what=f"{setting.command} {setting.name}={value[:60]}",
        words=[setting.command, *words],
        out_of_range=outside(setting, value),
        runs_long=setting.name in LENGTHS,
    )
