"""Errors of the command line and of YAML files: Hydra's, as one message with the remedy."""

import dataclasses
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser
from hydra.errors import OverrideParseException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import (
    GrammarParseError,
    InterpolationResolutionError,
    OmegaConfBaseException,
)

from mace_train.checks import did_you_mean, nearest
from mace_train.cli_help import all_settings, groups_of, limits_of, valid_names
from mace_train.errors import InputError

_LONGEST_WORD = 160  # characters of a word in a message
_KINDS = {  # Python's type in the schema -> what to give
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list[int]": "a list of whole numbers",
    "list[str]": "a list of words",
}
HYDRA_QUIET = ("hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=none")
"""Overrides with which Hydra writes no folders and no log files of its own."""
_UNSUPPORTED = {  # option of Hydra -> what to do instead
    "experimental_rerun": "give --config-dir RUN --config-name repeat to train as RUN did",
    "config_path": "give --config-dir FOLDER for a folder of your own YAML files",
}


def options_first(words: list[str]) -> list[str]:
    """The words with all settings at the end, the only order that Hydra reads.

    Raises InputError if Hydra does not know the options among them, or we do not have them.
    """
    parser = get_args_parser()
    parser.allow_abbrev = False  # whatever else reads the words knows whole names only

    def fail(message: str) -> NoReturn:
        unknown = re.fullmatch("unrecognized arguments: (.*)", message, re.DOTALL)
        if unknown:
            names = [word for word in unknown[1].split() if word.startswith("-")]
            message = f"unknown option {' '.join(names) or unknown[1]}"
        raise InputError(f"{message}; give options as `mace-train --help` shows them")

    parser.error = fail  # type: ignore[method-assign]
    found = parser.parse_intermixed_args(words)
    for word in found.overrides:
        if word.startswith("="):
            raise InputError(f"{word!r} names no setting; write key=value, such as seed=1")
    for name, instead in _UNSUPPORTED.items():
        if getattr(found, name, None):
            raise InputError(f"--{name.replace('_', '-')} cannot be used here; {instead}")
    options = list(words)
    for word in found.overrides:
        options.remove(word)
    return [*options, *found.overrides]


def checked_settings(config: DictConfig, command: str, schema: type, configs: Path) -> Any:
    """The settings as the dataclass ``schema``; InputError unless complete, known and in range."""
    unknown = _unknown_keys(config, schema)
    if unknown:  # Hydra lets `+key=value` add keys that the schema does not have
        raise InputError(unknown_key_message(unknown[0], command, schema))
    try:
        missing = sorted(OmegaConf.missing_keys(config))
        _check_lists(config, schema)
        checked: Any = None if missing else OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise InputError(explain(error, command, schema, configs)) from None
    if missing:
        raise InputError(
            f"{command} needs {', '.join(missing)}: give {missing[0]}=..., "
            f"see `mace-train {command} --help`"
        )
    if not isinstance(checked, schema):
        raise InputError(f"the YAML file must begin with `defaults: [{command}, _self_]`")
    return checked


def _unknown_keys(config: DictConfig, schema: type, prefix: str = "") -> list[str]:
    """Dotted names of the keys of ``config`` that ``schema`` has no field for."""
    types = {field.name: field.type for field in dataclasses.fields(schema)}
    unknown = []
    for key in map(str, config):
        of_key = types.get(key)
        if of_key is None:
            unknown.append(f"{prefix}{key}")
        elif isinstance(of_key, type) and dataclasses.is_dataclass(of_key):
            unknown += _unknown_keys(config[key], of_key, f"{prefix}{key}.")
    return unknown


def _check_lists(config: DictConfig, schema: type, prefix: str = "") -> None:
    """InputError for what OmegaConf lets pass where a list is declared.

    That is text from an interpolation, and lists and mappings among the elements.
    """
    for field in dataclasses.fields(schema):
        kind, name = str(field.type).removesuffix(" | None"), f"{prefix}{field.name}"
        if field.name not in config:  # a file without our defaults, refused below
            continue
        if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            _check_lists(config[field.name], field.type, f"{name}.")
        elif kind.startswith("list[") and (value := config[field.name]) is not None:
            if not isinstance(value, ListConfig):
                raise InputError(f"{name}={value!r}; give {_KINDS[kind]}")
            for item in value:
                if isinstance(item, (ListConfig, DictConfig)):
                    raise InputError(f"{name}: {item} is in the list; give {_KINDS[kind]}")


def shortened(message: str) -> str:
    """The message with the middle of very long words left out."""
    half = _LONGEST_WORD // 2
    return re.sub(
        rf"\S{{{half}}}\S{{{half},}}",
        lambda word: f"{word[0][:half]}...{word[0][-20:]} ({len(word[0])} characters)",
        message,
    )


def explain(
    error: BaseException, command: str, schema: type, configs: Path, words: Sequence[str] = ()
) -> str:
    """One message for an error before a command begins: what is wrong and what would be right.

    ``words`` is the command line, in which a config group with a wrong choice is looked for.
    """
    if isinstance(error, InputError):
        return str(error)
    chain = _chain(error)
    unreadable = next((e for e in chain if isinstance(e, OverrideParseException)), None)
    if unreadable is not None:
        return _unreadable_override(unreadable.override)
    text = "\n".join(str(item) for item in chain)
    if "integer string conversion" in text:
        return _number_too_long(words)
    if any(isinstance(e, (InterpolationResolutionError, GrammarParseError)) for e in chain):
        return _interpolation(chain, text)
    key = _unknown_key(text)
    if key is not None:
        return unknown_key_message(key, command, schema)
    if "Invalid loaded object type" in text:
        return f"a YAML file must map settings to values, and begin `defaults: [{command}, _self_]`"
    return (
        _type_error(text, schema)
        or _missing_file(text, configs)
        or _group_error(words, schema, configs)
        or _first_line(chain, f"; `mace-train {command} --help` lists the settings")
    )


def _number_too_long(words: Sequence[str]) -> str:
    """Message about a whole number with more digits than Python reads."""
    digits = sys.get_int_max_str_digits()
    found = (w for w in words if re.search(rf"\d{{{digits}}}", w.replace("_", "")))
    key = next(found, "").partition("=")[0] or "a setting"
    return f"{key}: a number of more than {digits} digits; give one that is in the setting's range"


def _first_line(chain: list[BaseException], remedy: str) -> str:
    """The innermost error that says something, without lists that follow it."""
    texts = [text for item in reversed(chain) if (text := str(item).strip()) not in ("", "None")]
    text = texts[0] if texts else f"{type(chain[0]).__name__} while the settings were read"
    if "1. To use it" in text:  # Hydra's own remedies, a line each
        return text.replace("\\'", "'")
    return text.splitlines()[0] + remedy


def _interpolation(chain: list[BaseException], text: str) -> str:
    """What to do about ``${...}`` that cannot be resolved."""
    key = re.search(r"full_key: ([\w.\-]+)", text)
    where = f"{key[1]}: " if key else ""
    if any(isinstance(item, GrammarParseError) for item in chain):
        what = "an interpolation ${...} cannot be read"
    else:
        of_ours = [e for e in chain if isinstance(e, InterpolationResolutionError)]
        what = str(of_ours[-1]).splitlines()[0]
        what = what.rpartition("raised while resolving interpolation: ")[2].strip('"')
    return (
        f"{where}{what}; ${{seed}} inserts the value of the setting seed, ${{oc.env:HOME}} an "
        "environment variable; write \\${ for the characters alone"
    )


def _missing_file(text: str, configs: Path) -> str | None:
    """Message about a YAML file or folder that Hydra does not find."""
    found = re.search(r"Cannot find primary config '(.*?)'", text)
    if found:
        return (
            f"--config-name {found[1]}: no such file; give --config-dir FOLDER that holds "
            f"{found[1].removesuffix('.yaml')}.yaml"
        )
    found = re.search(r"Additional config directory '(.*?)' not found", text)
    if found:
        return f"--config-dir {found[1]}: no such folder; give one that holds your YAML files"
    found = re.search(r"Could not (?:find|load) '(.*?)'", text)
    if found is None:
        return None
    name, _, choice = found[1].rpartition("/")
    choices = sorted(path.stem for path in (configs / name).glob("*.yaml"))
    if not name or ".." in name or not choices:
        return f"{found[1]}: no such YAML file; give a name that the folder of --config-dir holds"
    return _wrong_choice(name, choice, choices)


def _group_error(words: Sequence[str], schema: type, configs: Path) -> str | None:
    """Message about the first config group on the command line with what is no choice of it."""
    for word in words:
        group, equals, value = word.partition("=")
        choices = groups_of(schema, configs).get(group.lstrip("+~"), [])
        if choices and equals and value not in choices:
            return _wrong_choice(group, value, choices)
    return None


def _wrong_choice(group: str, value: str, choices: list[str]) -> str:
    """Message about a config group with what is no choice of it."""
    hint = did_you_mean(value, choices)
    return f"{group}={value} is not known{hint}; {group} is one of: {', '.join(choices)}"


def _unreadable_override(override: str) -> str:
    """What to do about an argument that Hydra's grammar cannot read."""
    key, equals, value = override.partition("=")
    if not equals:
        return f"{override!r} is not key=value, such as seed=1"
    if not re.fullmatch(r"[+~]*[\w./@:\-]+", key) or re.search(r"\.\.|^\.|\.$", key):
        return f"{override!r} cannot be read: {key!r} is no name of a setting, such as optimizer.lr"
    if value.startswith(("{", "[")):
        return f"{override!r} cannot be read: write it like '{key}={{1: -13.6, 8: -400}}' or [a, b]"
    quoted = f"\"{key}='{value}'\""
    return (
        f"{override!r} cannot be read: a value with blanks or one of ()[]{{}}:=,;#&~' or letters "
        f"beyond ASCII must be quoted twice, for the shell and for Hydra: {quoted}"
    )


def unknown_key_message(key: str, command: str, schema: type) -> str:
    """Says that ``key`` is no setting, names the nearest one, and lists those of the same level."""
    valid = valid_names(schema)
    near = _nearest_setting(key, valid)
    hint = f" (did you mean {near}?)" if near else ""
    level = (near or key).rpartition(".")[0]
    listed = [name for name in valid if name.rpartition(".")[0] == level]
    if not level or not listed:
        listed = _first_level(valid)
    of = f"{command}, {level}" if level and listed[0].startswith(level) else command
    return (
        f"unknown setting {key!r}{hint}; valid settings of {of}: {', '.join(listed)}. "
        f"`mace-train {command} --help` explains them all"
    )


def _nearest_setting(key: str, valid: list[str]) -> str | None:
    """The setting or, of a key without a point, the config group that is meant, if one is near."""
    by_leaf: dict[str, str] = {}
    for name in valid:  # the first of several groups that have a setting of this name
        by_leaf.setdefault(name.rpartition(".")[2], name)
    first, whole = ({name: name for name in names} for names in (_first_level(valid), valid))
    rounds = [(key, whole, 0.75), (key.rpartition(".")[2], by_leaf, 0.7)]
    if "." not in key:  # another spelling or word for it before one that is similar
        rounds = [(key, first, 1.0), (key, by_leaf, 1.0), (key, first, 0.75), *rounds]
    for word, names, cutoff in rounds:
        near = nearest(word, names, cutoff)
        if near is not None:
            return names[near]
    return None


def _first_level(valid: list[str]) -> list[str]:
    """Settings and groups of settings that stand in no other group."""
    return list(dict.fromkeys(name.partition(".")[0] for name in valid))


def _chain(error: BaseException) -> list[BaseException]:
    """The error and what it was raised from, outermost first."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    return chain


def _unknown_key(text: str) -> str | None:
    """The dotted name of a key that is not in the schema, if that is what the error is about."""
    if not re.search(r"not in '|is not in struct|Could not override '|Could not delete", text):
        return None
    for pattern in (
        r"full_key: ([\w.\-]+)",
        r"Could not override '([\w.@/\-]+)'",
        r"from config. '([^']+)' does not exist",
        r"Key '([^']+)'",
    ):
        found = re.search(pattern, text)
        if found:
            return found[1]
    return None


def _type_error(text: str, schema: type) -> str | None:
    """Message for a value of the wrong type, if that is what it is."""
    key = re.search(r"full_key: ([\w.\-]+)(?:\[\d+\])?", text)
    pattern = r"^(.*(?:could not be converted|[Ii]nvalid|is not|Cannot|Unsupported).*)$"
    value = re.search(pattern, text, re.M)
    if not (key and value):
        return None
    for name, kind, default, _ in all_settings(schema):
        if name == key[1]:
            remedy = _KINDS.get(kind.removesuffix(" | None"), "a value")
            remedy += " or null" if kind.endswith("None") else ""
            has_default = default not in ("null", "(required)", "[]", "", "True", "False")
            remedy += f", such as {default.replace(' ', '')}" if has_default else ""
            if "int" in kind and "of type 'float'" in value[1]:
                remedy += ", in digits, without point and exponent"
            limits = limits_of(schema, name)
            remedy += f", {limits}" if limits is not None else ""
            return f"{name}: {value[1].strip()}; give {remedy}"
    return f"{key[1]}: {value[1].strip()}; give it another value, or leave it out"
