"""The command line: ``mace-train COMMAND key=value ...``, composed and swept by Hydra.

Every command is one dataclass of settings (settings.py), one YAML file of the same name with the
config groups it uses (configs/), and one function. What a user can get wrong ends in one message
on stderr and exit code 2.
"""

import dataclasses
import importlib
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from mace_train import __version__, settings
from mace_train._paths import CONFIGS, EXAMPLE_DATA
from mace_train.cli_help import HELP, command_help, explain, unknown_key_message
from mace_train.errors import InputError

# command -> (its settings, module and function that carry it out; imported when called)
COMMANDS: dict[str, tuple[type, str, str]] = {
    "preprocess": (settings.PreprocessSettings, "mace_train.data.preprocess", "preprocess"),
    "balance": (settings.BalanceSettings, "mace_train.balance.report", "balance"),
    "train": (settings.TrainSettings, "mace_train.train.trainer", "train"),
    "evaluate": (settings.EvaluateSettings, "mace_train.evaluate.evaluate", "evaluate"),
}


def main(arguments: list[str] | None = None) -> None:
    """Run one command; exit code 0, 2 after a message about bad input, 130 when interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command = arguments[0] if arguments else "--help"
    if command in ("--version", "-V"):
        print(f"mace-train {__version__}")
    elif command in ("--help", "-h", "help"):
        print(HELP)
    elif command not in COMMANDS:
        _fail(f"unknown command {command!r}; commands are: {', '.join(COMMANDS)}")
    elif {"--help", "-h"} & set(arguments[1:]):
        print(command_help(command, COMMANDS[command][0], CONFIGS))
    else:
        _run(command, arguments[1:])


def _run(command: str, overrides: list[str]) -> None:
    """Compose the settings of ``command`` with Hydra and carry it out."""
    schema, module, function = COMMANDS[command]
    ConfigStore.instance().store(name=f"{command}_schema", node=schema)
    OmegaConf.register_new_resolver(
        "example_data", lambda name: str(EXAMPLE_DATA / name), replace=True
    )

    started = False

    def task(config: DictConfig) -> None:
        nonlocal started
        started = True
        try:
            _configure_logging()
            checked = _checked(config, command, schema)
            action: Callable[[Any], Any] = getattr(importlib.import_module(module), function)
            action(checked)
        except InputError as error:
            _fail(str(error))

    sys.argv = [f"mace-train {command}", *overrides]
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors reach the handlers below, whole
    try:
        hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=command)(task)()
    except (HydraException, OmegaConfBaseException) as error:
        _fail(explain(error, command, schema, CONFIGS))
    except YAMLError as error:
        _fail(f"a YAML file cannot be read: {error}")
    except ValueError as error:
        if started:
            raise  # a fault of ours, not of the command line
        _fail(str(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def _checked(config: DictConfig, command: str, schema: type) -> Any:
    """The settings as a dataclass: complete, known and in range."""
    unknown = _unknown_keys(config, schema)
    if unknown:  # Hydra lets `+key=value` add keys that the schema does not have
        raise InputError(unknown_key_message(unknown[0], command, schema))
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise InputError(
            f"{command} needs {', '.join(missing)}: give {missing[0]}=..., "
            f"see `mace-train {command} --help`"
        )
    try:
        checked: Any = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise InputError(explain(error, command, schema, CONFIGS)) from None
    hydra_config = HydraConfig.get()
    if hydra_config.mode == RunMode.MULTIRUN:
        folder = Path(hydra_config.sweep.dir) / hydra_config.sweep.subdir
        checked = dataclasses.replace(checked, output=str(folder))  # one folder per job of a sweep
    return checked


def _unknown_keys(config: DictConfig, schema: type, prefix: str = "") -> list[str]:
    """Dotted names of the keys of ``config`` that ``schema`` has no field for."""
    kinds = {field.name: field.type for field in dataclasses.fields(schema)}
    unknown = []
    for key in map(str, config):
        kind = kinds.get(key)
        if kind is None:
            unknown.append(f"{prefix}{key}")
        elif isinstance(kind, type) and dataclasses.is_dataclass(kind):
            unknown += _unknown_keys(config[key], kind, f"{prefix}{key}.")
    return unknown


def _configure_logging() -> None:
    """Messages on stderr, from rank 0 only; warnings say so."""
    logger = logging.getLogger("mace_train")
    logger.handlers.clear()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter())
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.INFO if _rank() == 0 else logging.ERROR)


class _Formatter(logging.Formatter):
    """The bare message, marked if it is a warning or an error."""

    def format(self, record: logging.LogRecord) -> str:
        """One line of text."""
        mark = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        return mark + super().format(record)


def _rank() -> int:
    """This process's rank, before the world is opened."""
    return int(os.environ.get("RANK", "0"))


def _fail(message: str) -> None:
    """Say what is wrong and exit with code 2."""
    who = f"[rank {_rank()}] " if _rank() else ""
    print(f"mace-train: {who}error: {message}", file=sys.stderr)
    raise SystemExit(2)
