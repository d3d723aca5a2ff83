"""YAML files that Hydra reads: nothing in them is called.

Hydra imports and calls what a ``_target_`` names, Python's logging what a ``()`` or a ``class``
names, a resolver makes new settings out of text, and ``hydra.job.env_set`` sets environment
variables. So of a file that is neither ours nor Hydra's own, only listed settings of Hydra and
listed interpolations are taken. The check is where Hydra reads a file and where it knows the place
that the file's settings go to, whatever named the file: a folder, a link, a search path, a defaults
list, a package, a job of a sweep.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra._internal.hydra
import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository, IConfigRepository
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.default_element import ResultDefault
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult
from omegaconf import OmegaConf

from mace_train._paths import CONFIGS
from mace_train.errors import InputError
from mace_train.yaml_files import explain_yaml

_LARGEST = 1 << 20  # bytes of a file
_MOST_VALUES = 100_000  # of a file, with what its aliases repeat
_DEEPEST = 50  # levels of mappings and lists
_TAGS = {
    f"tag:yaml.org,2002:{name}"
    for name in ("map", "seq", "str", "int", "float", "bool", "null", "merge", "timestamp")
}
_TARGETS = {
    "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
    "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher",
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher",
    "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher",
}
_PATHS = r"(run|sweep)\.dir|sweep\.subdir|job\.name"
_NAME = r"(?!hydra\b)[A-Za-z]\w*([./]\w+)*"  # of a setting or of a config group, without @PACKAGE
_LAUNCHER = (
    "n_jobs|timeout_min|cpus_per_task|gpus_per_node|gpus_per_task|cpus_per_gpu|tasks_per_node|nodes"
    "|mem_gb|mem_per_cpu|mem_per_gpu|gres|partition|qos|account|constraint|exclude|comment|name"
    "|array_parallelism|signal_delay_s|max_num_timeout|stderr_to_stdout"
)
_OF_HYDRA = re.compile(
    rf"{_PATHS}|mode|verbose(\[\d+\])?|output_subdir|searchpath(\[\d+\])?|launcher\.({_LAUNCHER})"
    rf"|sweeper\.(max_batch_size|params\.\+{{0,2}}{_NAME}(\[\d+\])?)"
    r"|job\.config\.override_dirname\.(kv_sep|item_sep|exclude_keys(\[\d+\])?)"
)
_INTERPOLATION = re.compile(
    r"\$\{(\.*[A-Za-z]\w*(\.\w+|\[\w+\])*"  # another setting
    r"|oc\.env:\s*\w+(,[^${}'\"\\]*)?|example_data:[\w./ -]+|now:[^${}'\"\\]*)\}"
)
_CHARACTERS = re.compile(r"(?<!\\)\\\$\{")  # ${ that is text
_PACKAGE = re.compile(r"_global_|_group_|_here_|(?!hydra\b)[A-Za-z]\w*(\.[A-Za-z]\w*)*")
_IN_PACKAGE = re.compile(r"_global_|_group_|_here_|_name_")
_PROGRAMS = ("launch", "training", "trust")  # settings of tune and import
_NO_NEED = "no setting of mace-train needs that, so remove it"


def check_what_hydra_reads() -> None:
    """From now on Hydra raises InputError for a file that would make it call something."""
    hydra._internal.hydra.ConfigLoaderImpl = _Loader  # type: ignore[attr-defined]


@dataclass
class _Foreign(ConfigResult):
    """A file that is neither ours nor part of an installed package."""

    file: Path | None = None


class _Repository(ConfigRepository):
    """The files of all search paths."""

    def load_config(self, config_path: str) -> ConfigResult | None:
        source = self._find_object_source(config_path, ObjectType.CONFIG)
        if source is None or source.scheme() == "structured":
            return super().load_config(config_path)
        if config_path.startswith("/") or ".." in config_path.split("/"):
            raise InputError(
                f"{config_path}: a YAML file is named from the folder of --config-dir on, "
                "without .. and without / in front"
            )
        if source.scheme() != "file":  # a package that is installed
            return super().load_config(config_path)
        name = source._normalize_file_name(config_path)
        file = Path(os.path.realpath(os.path.join(source.path, name)))
        if file.is_relative_to(CONFIGS.resolve()):
            return super().load_config(config_path)
        check_size(file)
        found = super().load_config(config_path)
        if found is None:
            return None
        _check_defaults(file, found)
        check_content(file, OmegaConf.to_container(found.config))
        return _Foreign(**vars(found), file=file)


class _Loader(ConfigLoaderImpl):
    """Puts files together; knows where in the settings each one goes."""

    def __init__(self, config_search_path: ConfigSearchPath) -> None:
        super().__init__(config_search_path)
        self.repository = _Repository(config_search_path)

    def _load_single_config(self, default: ResultDefault, repo: IConfigRepository) -> ConfigResult:
        found = super()._load_single_config(default, repo)
        if isinstance(found, _Foreign) and found.file is not None:
            check_content(found.file, OmegaConf.to_container(found.config))
            return found
        group = str(default.config_path).rpartition("/")[0].replace("/", ".")
        package = default.package or ""
        if package.split(".")[0] == "hydra" and package not in ("hydra", group):
            raise InputError(f"{default.config_path}@{package}: {_NO_NEED}")
        return found


def check_size(file: Path) -> None:
    """Raises InputError unless YAML of ordinary size, depth and types: before it is loaded."""
    try:
        size = file.stat().st_size
        if not file.is_file() or size > _LARGEST:
            raise InputError(
                f"{file}: {size} bytes; settings are files of at most {_LARGEST} bytes"
            )
        root = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except RecursionError:
        raise InputError(f"{file}: more than {_DEEPEST} levels; give fewer") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        message = f"not a YAML file that can be read: {explain_yaml(error)}; correct it"
        raise InputError(f"{file}: {message}") from error
    if root is not None and _n_values(file, root, {}, 0) > _MOST_VALUES:
        raise InputError(
            f"{file}: its aliases (*name) repeat more than {_MOST_VALUES} values; write fewer"
        )


def _n_values(file: Path, node: yaml.Node, known: dict[int, int], level: int) -> int:
    """Values of a node, those that aliases repeat included; each node is looked at once."""
    if node.tag not in _TAGS:
        raise InputError(f"{file}: not a YAML file that can be read (tag {node.tag}); {_NO_NEED}")
    if level > _DEEPEST:
        raise InputError(f"{file}: more than {_DEEPEST} levels; give fewer")
    if id(node) not in known:
        known[id(node)] = _MOST_VALUES + 1  # stays so for a node within itself
        children = node.value if isinstance(node, yaml.CollectionNode) else []
        if isinstance(node, yaml.MappingNode):
            children = [item for pair in children for item in pair]
        known[id(node)] = 1 + sum(_n_values(file, item, known, level + 1) for item in children)
    return known[id(node)]


def check_content(file: Path, content: Any) -> None:
    """Look at settings where they will be; ``file`` is named in messages.

    Raises:
        InputError: something would be called, or is no setting that files of users may hold.
    """
    for keys, value in _entries(content, ()):
        key = _dotted(keys)
        text = str(value)
        is_target = key in ("hydra.launcher._target_", "hydra.sweeper._target_")
        if is_target and value in _TARGETS:
            continue
        named = next((k for k in map(str, keys) if re.fullmatch(r"_\w*_|\(\)", k)), None)
        if named:
            raise InputError(
                f"{file}: {key}={text[:100]!r} would be called or imported by Hydra ({named}); "
                f"{_NO_NEED}"
            )
        for item in [*map(str, keys), text]:
            _check_text(file, key, item)
        if keys and keys[0] == "hydra":
            _check_of_hydra(file, key, text)
        elif keys and keys[0] in _PROGRAMS:
            _check_program(file, key, text)


def _entries(value: Any, keys: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """(keys, scalar or empty container) of all that is in a file; numbers are places in lists."""
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from _entries(item, (*keys, str(name)))
    elif isinstance(value, list) and value:
        for number, item in enumerate(value):
            yield from _entries(item, (*keys, number))
    else:
        yield keys, value


def _dotted(keys: tuple[Any, ...]) -> str:
    parts = [f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys]
    return "".join(parts).removeprefix(".")


def _check_text(file: Path, key: str, text: str) -> None:
    if not text.replace("\t", " ").isprintable():
        raise InputError(
            f"{file}: {key}={text[:100]!r} has a line break or another control character; "
            "write it in one line"
        )
    rest = _CHARACTERS.sub("", _INTERPOLATION.sub("", text))
    if "${" in rest:
        raise InputError(
            f"{file}: {key}={text[:100]!r} would be called or imported by Hydra ({rest[:40]}); a "
            "file may insert ${another.setting}, ${oc.env:NAME}, ${oc.env:NAME,default}, "
            "${now:FORMAT} and ${example_data:NAME}, one within another not"
        )


def _check_of_hydra(file: Path, key: str, text: str) -> None:
    name = key.removeprefix("hydra").removeprefix(".")
    if not _OF_HYDRA.fullmatch(name):
        raise InputError(
            f"{file}: {key}={text[:100]!r} is no setting of Hydra that a file may have, as others "
            "call programs or set what programs are called; if it is yours, give it on the command "
            "line"
        )
    if "${" in text and not re.fullmatch(_PATHS, name):
        raise InputError(f"{file}: {key}={text[:100]!r} cannot have ${{...}}; write the value")
    if name.startswith("searchpath") and "://" in text.removeprefix("file://"):
        raise InputError(f"{file}: {key}={text[:100]!r} is no folder; write its path")


def _check_program(file: Path, key: str, text: str) -> None:
    """A command that starts trainings, words of their command lines, and running a pickle."""
    is_word = key.startswith("training[") and "${" not in text
    if not (is_word and re.fullmatch(rf"\+{{0,2}}{_NAME}=.*", text)) and text not in (
        "",
        "None",
        "False",
    ):
        raise InputError(
            f"{file}: {key}={text[:100]!r} could start any program; give it on the command line"
        )


def _check_defaults(file: Path, found: ConfigResult) -> None:
    """The defaults list: names of files, where their settings go, and interpolations in both."""
    for item in found.defaults_list or []:
        values = {k: v for k, v in vars(item).items() if isinstance(v, (str, list))}
        for value in values.values():
            for text in value if isinstance(value, list) else [value]:
                _check_text(file, "defaults", str(text))
        package = item.package
        inner = _IN_PACKAGE.search(package or "") and not _IN_PACKAGE.fullmatch(package or "")
        if package and (inner or not _PACKAGE.fullmatch(package)):
            raise InputError(f"{file}: defaults: @{package}: {_NO_NEED}")
