"""Folders of settings that a command line names: nothing in them is called.

Hydra imports and calls what a ``_target_`` names, and Python's logging what a ``()`` names,
wherever settings of Hydra itself hold them (callbacks, logging, launchers). No setting of
mace-train needs either, so files with them are refused before Hydra reads any; launchers of sweeps
are the exception.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from mace_train.errors import InputError

_FOLDERS = ("--config-dir", "-cd", "--config-path", "-cp")
_SEARCH_PATH = "searchpath"
_LAUNCHERS = {
    "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
    "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher",
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher",
    "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher",
    "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper",
}
# a factory of logging, an object that logging imports, and text that becomes settings
_CALLS = ("()", "ext://", "oc.create", "oc.decode", "_target_")


def check_settings_files(words: list[str]) -> None:
    """Look at the files of the folders that the words of a command line add to Hydra's.

    Raises:
        InputError: a file names something to call, or is not YAML.
    """
    todo, seen = list(_named(words)), set()
    while todo:
        folder = todo.pop()
        if folder in seen or not folder.is_dir():
            continue
        seen.add(folder)
        for path in sorted([*folder.rglob("*.yaml"), *folder.rglob("*.yml")]):
            for key, value in _entries(_content(path), ""):
                _check(path, key, value)
                if key.rpartition(".")[2].startswith(_SEARCH_PATH):
                    todo.append(Path(str(value).removeprefix("file://")))


def _named(words: list[str]) -> Iterator[Path]:
    for word, after in zip(words, [*words[1:], ""], strict=True):
        option, equals, value = word.partition("=")
        if option in _FOLDERS:
            yield Path(value if equals else after)
        elif option.lstrip("+") == f"hydra.{_SEARCH_PATH}":
            for item in value.strip("[]").split(","):
                yield Path(item.strip("'\" ").removeprefix("file://"))


def _content(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{path}: not a YAML file that can be read ({error})") from error


def _entries(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """(dotted key, scalar) of all that is in a file."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _entries(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _entries(item, f"{key}[{number}]")
    else:
        yield key, value


def _check(path: Path, key: str, value: Any) -> None:
    if key.endswith("_target_") and value in _LAUNCHERS:
        return
    found = next((call for call in _CALLS if call in key or call in str(value)), None)
    if found:
        raise InputError(
            f"{path}: {key}={str(value)[:100]!r} would be called or imported by Hydra ({found}); "
            "no setting of mace-train needs that, so remove it"
        )
