"""The command line: ``mace-train COMMAND key=value ...``, composed and swept by Hydra.

Every command is one dataclass of settings (settings/), one YAML file of the same name with the
config groups it uses (configs/), and one function in a module of the same name (cli_commands.py).
What a user can get wrong ends in one message on stderr and exit code 2.
"""

import dataclasses
import logging
import pkgutil
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from mace_train import __version__, interrupts
from mace_train._paths import CONFIGS, EXAMPLE_DATA
from mace_train.checks import did_you_mean
from mace_train.cli_commands import COMMANDS, Command
from mace_train.cli_errors import (
    HYDRA_QUIET,
    checked_settings,
    explain,
    options_first,
    shortened,
)
from mace_train.cli_help import HELP, command_help
from mace_train.distributed import launcher
from mace_train.distributed.signals import catch, exit_code
from mace_train.environment_variables import number, overrule, set_default
from mace_train.errors import InputError, system_error
from mace_train.settings_files import check_what_hydra_reads
from mace_train.shown_text import printable
from mace_train.sweep.job_status import job_folders, read_record, recorded
from mace_train.sweep.jobs import quoted_list, single_job, words_behind
from mace_train.yaml_files import explain_yaml

_IN_RANKS = ("train", "evaluate")  # doctor reports a wrong launch itself


def main(arguments: list[str] | None = None) -> None:
    """Run one command.

    Exit codes: 0; 2 after a message about bad input; 69 when another rank, its host or the network
    failed; 74 when a file system is full or fails; 75 when asked to stop (SIGTERM, SIGUSR1,
    SIGHUP), after a checkpoint; 130 when interrupted (SIGINT, see ``interrupts``); 129 and 143
    after SIGHUP and SIGTERM where there was nothing to save; 141 when the reader of the output
    ended, such as ``| head``.
    """
    if threading.current_thread() is threading.main_thread():
        catch(signal.SIGTERM, _terminate)
        catch(signal.SIGHUP, _terminate)
        catch(signal.SIGUSR1, _try_later)
    arguments = sys.argv[1:] if arguments is None else arguments
    command = arguments[0] if arguments else "--help"
    if command in ("--version", "-V"):
        print(f"mace-train {__version__}")
    elif command in ("--help", "-h", "help"):
        print(HELP)
    elif command not in COMMANDS:
        hint = did_you_mean(command, COMMANDS)
        _fail(f"unknown command {command!r}{hint}; give one of: {', '.join(COMMANDS)}")
    elif {"--help", "-h"} & set(arguments[1:]):
        print(command_help(command, COMMANDS[command].schema, CONFIGS))
    else:
        try:
            words = _hydra_words(COMMANDS[command], arguments[1:])
        except (InputError, HydraException) as error:
            _fail(explain(error, command, COMMANDS[command].schema, CONFIGS, arguments[1:]))
        _run(command, words, is_job="--job" in arguments)


def _hydra_words(command: Command, words: list[str]) -> list[str]:
    """The words of a command line in Hydra's form, where ours is shorter."""
    if command.trailing_list:
        words = words_behind(words, command.trailing_list)
    if command.leading_list:
        words = _leading_list(command.leading_list, words)
    if "--job" in words:
        return single_job(words, _default_output(command.schema))
    if command.alias:
        short, full = command.alias
        words = [re.sub(f"^{short}=", f"{full}=", word) for word in words]
    if command.leading and words and _is_bare(words[0]):
        return [f"{command.leading}='{words[0]}'", *words[1:]]
    return words


def _leading_list(setting: str, words: list[str]) -> list[str]:
    """``A B key=value`` as ``setting=[A,B] key=value``."""
    values = list(takewhile(_is_bare, words))
    rest = words[len(values) :]
    return [f"{setting}={quoted_list(values)}", *rest] if values else rest


def _is_bare(word: str) -> bool:
    """Whether a word is neither key=value nor an option."""
    return "=" not in word and not word.startswith("-")


def _run(command: str, overrides: list[str], *, is_job: bool = False) -> None:
    """Compose the settings of ``command`` with Hydra and carry it out."""
    schema = COMMANDS[command].schema
    _check_launch(command, overrides)
    ConfigStore.instance().store(name=f"{command}_schema", node=schema)
    OmegaConf.register_new_resolver(
        "example_data", lambda name: str(EXAMPLE_DATA / name), replace=True
    )
    task, begin = _Task(command, is_job), time.time()
    overrides = ["dry_run=true" if word == "--dry-run" else word for word in overrides]
    if "dry_run=true" in overrides and not any(word.startswith("output=") for word in overrides):
        overrides.append("output=dry-run")  # which is not written
    if any(word.startswith(("--config-name", "-cn")) for word in overrides):
        overrides += HYDRA_QUIET  # for a YAML file of the user that leaves our defaults out
    overrule("MPLBACKEND", "agg")  # figures are files; notebooks leave what Matplotlib cannot load
    check_what_hydra_reads()
    set_default("HYDRA_FULL_ERROR", "1")  # errors reach the handlers below, whole
    try:
        sys.argv = [f"mace-train {command}", *options_first(overrides)]
        hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=command)(task)()
    except (HydraException, OmegaConfBaseException) as error:
        _fail(explain(error, command, schema, CONFIGS, overrides))
    except YAMLError as error:
        _fail(f"a YAML file cannot be read: {explain_yaml(error)}; correct it")
    except Exception as error:
        # also between the jobs of a sweep, whose files are read again
        explained = system_error(error) if isinstance(error, (OSError, InputError)) else None
        if explained is not None:
            _fail(str(explained), explained.exit_code)
        if task.started:
            raise  # a fault of ours, not of the command line
        _fail(explain(error, command, schema, CONFIGS, overrides))
    except KeyboardInterrupt:
        interrupts.say()
        raise SystemExit(interrupts.EXIT_CODE) from None
    _report_failures(overrides, schema, begin)


class _Task:
    """What Hydra calls once, or once for every job of a sweep, perhaps in another process."""

    def __init__(self, command: str, is_job: bool) -> None:
        self.__name__ = command  # Hydra calls the job so
        self.command = command
        self.is_job = is_job  # one job of a sweep, which is run alone
        self.started = False

    def __call__(self, config: DictConfig) -> None:
        """Check the settings and carry the command out; a failing job does not end a sweep."""
        self.started = True
        _configure_logging()
        in_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
        try:
            if in_sweep or self.is_job:
                self._record(config)
            else:
                self._act(config)
        except BrokenPipeError:
            raise  # the reader of the output has ended
        except Exception as error:
            explained = system_error(error)  # an InputError as it is
            if explained is not None:
                if not in_sweep:
                    _fail(str(explained), explained.exit_code)
                logging.getLogger("mace_train").error("%s", explained)
            elif not in_sweep:
                raise
            else:
                traceback.print_exc()

    def _act(self, config: DictConfig) -> None:
        command = COMMANDS[self.command]
        checked = _checked(config, self.command, command.schema)
        action: Callable[[Any], Any] = pkgutil.resolve_name(command.target)
        interrupts.begin_work()
        action(checked)

    def _record(self, config: DictConfig) -> None:
        """Carry out a job of a sweep and keep how it ends in its folder."""
        hydra_config = HydraConfig.get()
        words = list(hydra_config.overrides.task)
        if _rank() > 0:
            self._act(config)
            return
        folder = _sweep_folder() or Path(str(config.output))
        logging.getLogger("mace_train").info("job in %s: %s", folder, " ".join(words))
        interrupts.begin_work()
        with recorded(folder, [word for word in words if not word.startswith("output=")]):
            self._act(config)


def _sweep_folder() -> Path | None:
    """The folder of the job of a ``--multirun``; None outside of one."""
    hydra_config = HydraConfig.get()
    if hydra_config.mode != RunMode.MULTIRUN:
        return None
    return Path(hydra_config.sweep.dir) / hydra_config.sweep.subdir


def _default_output(schema: type) -> str:
    """The output folder of a command that is not given another."""
    return next(
        str(field.default) for field in dataclasses.fields(schema) if field.name == "output"
    )


def _report_failures(overrides: list[str], schema: type, begin: float) -> None:
    """After a sweep that began at ``begin``: an error that names the jobs that failed."""
    if not {"-m", "--multirun"} & set(overrides):
        return
    outputs = [word.partition("=")[2] for word in overrides if word.startswith("output=")]
    sweep = Path([_default_output(schema), *outputs][-1].strip("'\""))
    records = {folder.name: read_record(folder) or {} for folder in job_folders(sweep)}
    now = {job: record for job, record in records.items() if record["started"] >= begin}
    failed = {job: record for job, record in now.items() if record["state"] == "failed"}
    if failed:
        codes = {record.get("exit_code") for record in failed.values()}
        message = "; ".join(f"job {job}: {record['error']}" for job, record in failed.items())
        _fail(message, codes.pop() if len(codes) == 1 else None)


def _check_launch(command: str, overrides: list[str]) -> None:
    """Refuse wrong environment variables, and what several ranks cannot do."""
    in_sweep = bool({"-m", "--multirun"} & set(overrides))
    try:
        launcher.check_environment()
        n_ranks = number("WORLD_SIZE") or 1
        if command in _IN_RANKS and not in_sweep:
            launcher.detect()
    except InputError as error:
        _fail(str(error))
    if n_ranks > 1 and command == "preprocess":
        _fail(
            f"preprocess is one process, but {n_ranks} were started: run it without torchrun; use "
            "workers=N for several processes, or mpiexec or srun for several nodes"
        )
    tasks = launcher.launched_tasks()
    n_ranks = max(n_ranks, 1 if tasks is None else tasks.size)
    if n_ranks > 1 and COMMANDS[command].one_process:
        _fail(
            f"{command} is one process, but {n_ranks} were started: run it without torchrun, "
            "mpiexec or srun"
        )
    if n_ranks > 1 and in_sweep:
        _fail(
            f"--multirun in {n_ranks} ranks: a sweep starts its jobs one after the other in one "
            "process; start each job on its own with --job 0, --job 1, ..."
        )


def _checked(config: DictConfig, command: str, schema: type) -> Any:
    """The settings as a dataclass: complete, known and in range."""
    checked = checked_settings(config, command, schema, CONFIGS)
    folder = _sweep_folder()
    if folder is not None:
        checked = dataclasses.replace(checked, output=str(folder))  # one folder per job of a sweep
    return checked


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
        return printable(mark + super().format(record))


def _rank() -> int:
    """This process's rank, before the world is opened."""
    return launcher.rank_of_process()


def _terminate(number: int, frame: object) -> None:
    """End like an exception would, so that files and loggers are closed."""
    if _rank() == 0:
        with suppress(OSError):  # the terminal may be gone
            sys.stderr.write("mace-train: terminated\n")
    raise SystemExit(128 + number)


def _try_later(number: int, frame: object) -> None:
    """Asked to stop before there was anything to save."""
    raise SystemExit(exit_code())


def _fail(message: str, code: int | None = None) -> NoReturn:
    """Say what is wrong and exit, by default with the code of ``InputError``."""
    if interrupts.received():
        raise KeyboardInterrupt  # what it was interrupted in has failed
    who = f"[rank {_rank()}] " if _rank() else ""
    text = printable(f"mace-train: {who}error: {shortened(message)}\n")
    with suppress(OSError):  # where the disk is full, stderr may be a file on it
        sys.stderr.write(text)  # one write: ranks do not mix
        sys.stderr.flush()
    raise SystemExit(code or InputError.exit_code)
