"""``mace-train from-mace-config``: settings of mace_run_train as those of mace-train."""

import argparse
import logging
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mace_train.atomic_files import write_text
from mace_train.checks import did_you_mean
from mace_train.errors import InputError
from mace_train.folders import make_folder
from mace_train.interop.arguments import ARGUMENTS, literal, parser
from mace_train.interop.fine_tuning_arguments import Equal, Values, fine_tuning, with_its_changes
from mace_train.interop.input_arguments import input_arguments
from mace_train.interop.model_arguments import MODEL_ARGUMENTS, model
from mace_train.interop.training_arguments import as_its_loop
from mace_train.settings import (
    FromMaceConfigSettings,
    ImportSettings,
    PreprocessSettings,
    TrainSettings,
)
from mace_train.yaml_files import read_yaml

LOGGER = logging.getLogger("mace_train")

_SCHEMAS: dict[str, type] = {
    "import": ImportSettings,
    "preprocess": PreprocessSettings,
    "train": TrainSettings,
}
_LOSSES = {  # mace-torch's loss -> ours, and the weights that count in it
    "weighted": ("weighted", ("energy", "forces")),
    "ef": ("weighted", ()),
    "forces_only": ("weighted", ("forces",)),
    "virials": ("weighted", ("energy", "forces", "virials")),
    "stress": ("weighted", ("energy", "forces", "stress")),
    "huber": ("huber", ("energy", "forces", "stress")),
    "universal": ("universal", ("energy", "forces", "stress")),
    "l1l2energyforces": ("l1l2", ("energy", "forces")),
}
_TRUE, _FALSE = ("true", "t", "yes", "y", "1"), ("false", "f", "no", "n", "0")
_ON, _OFF = ("true", "yes", "on", "1"), ("false", "no", "off", "0")  # of flags in YAML files
_WHOLE = ("num_channels", "max_L")  # whose default says nothing about it
_OF_SEVERAL = (  # arguments that may be lists or mappings
    *("train_file", "valid_file", "test_file", "pt_train_file", "pt_valid_file", "heads", "E0s"),
    *("radial_MLP", "config_type_weights", "lr_params_factors", "embedding_specs"),
)
_SCHEDULERS = {"ReduceLROnPlateau": "plateau", "ExponentialLR": "exponential"}
_FROZEN = ((1, "node_embedding"), (5, "interactions"), (6, "products"), (7, "readouts"))


def print_settings(settings: FromMaceConfigSettings) -> None:
    """Print both commands, their YAML, and what has no equivalent; write YAML files if asked to."""
    equal, without = translate(settings.config, settings.arguments or [])
    for command, values in equal.items():
        words = [f"{name}={_word(value)}" for name, value in values.items()]
        print(f"mace-train {command} {shlex.join(words)}\n")
    for command, values in equal.items():
        print(f"# {command}-from-mace.yaml\n{as_yaml(command, values)}")
    for line in without:
        print(f"no equal: {line}")
    if settings.output is not None:
        make_folder("output", Path(settings.output))
        for command, values in equal.items():
            name = f"{command}-from-mace"  # not the name of a file of ours
            file = Path(settings.output) / f"{name}.yaml"
            write_text(file, as_yaml(command, values))
            options = f"--config-dir {settings.output} --config-name {name}"
            LOGGER.info("wrote %s; use it with mace-train %s %s", file, command, options)


def translate(config: str | None, words: list[str]) -> tuple[Equal, list[str]]:
    """(our settings by command, lines about what has no equal) of a YAML file and a command line.

    Raises InputError for an argument that mace_run_train does not have.
    """
    on_line = _of_words(words)
    given = {**_of_file(config or on_line.get("config")), **on_line}
    values = {name: given.get(name, row.default) for name, row in ARGUMENTS.items()}
    without = [
        f"--{name}={given[name]}: {row.instead}"
        for name, row in ARGUMENTS.items()
        if not row.ours and name in given and given[name] != row.default and name != "config"
    ]
    values = with_its_changes(values)
    equal: Equal = {"import": {}, "preprocess": {}, "train": {}}
    for name, row in ARGUMENTS.items():
        if name in _SPECIAL or not row.ours:
            continue
        for target in row.ours.split("; "):
            command, setting = target.split(": ")
            equal[command][setting] = values[name]
    for special in dict.fromkeys(_SPECIAL.values()):
        special(values, equal, without)
    as_its_loop(values, equal, without)
    used = {command: settings for command, settings in equal.items() if settings}
    return {command: _that_differ(command, used[command]) for command in used}, without


def _of_file(config: str | None) -> Values:
    if config is None:
        return {}
    content = read_yaml(Path(config), "correct the file")
    if not isinstance(content, dict):
        raise InputError(f"config={config}: must map arguments of mace_run_train to values")
    found: Values = {}
    by_option = {row.alias: name for name, row in ARGUMENTS.items() if row.alias}
    for key, value in content.items():
        option = str(key).removeprefix("--")
        name = by_option.get(option, option)
        if name not in ARGUMENTS:
            hint = did_you_mean(option, (*ARGUMENTS, *by_option))
            raise InputError(
                f"config={config}: mace_run_train has no argument {key!r}{hint}; remove or "
                "correct it"
            )
        found[name] = _typed(name, _as_passed_on(config, option, name, value))
    return found


def _as_passed_on(config: str, key: str, name: str, value: Any) -> Any:
    """A value of a YAML file as ConfigArgParse hands it to mace_run_train; None: not at all.

    It leaves out null, and flags that are false; all but lists are text. What that makes of null
    and of the flags that are on by default is said.
    """
    row = ARGUMENTS[name]
    if value is None and row.default and row.default != "None":
        none = "; none is None" if name == "clip_grad" else ""
        LOGGER.warning(
            "config=%s: %s: null is left out by mace_run_train, which takes its default, %s%s",
            *(config, key, row.default, none),
        )
    if row.kind != "flag" or value is None:
        return value if value is None or isinstance(value, (list, dict)) else str(value)
    if str(value).lower() not in (*_ON, *_OFF):
        raise InputError(f"config={config}: {key}: {value}: a flag; give true or false")
    switched_on = str(value).lower() in _ON
    taken = row.of_flag if switched_on else row.default
    if taken is not switched_on:
        LOGGER.warning(
            "config=%s: %s: %s makes %s %s in mace_run_train, and here",
            *(config, key, value, name, str(taken).lower()),
        )
    return taken


def _of_words(words: list[str]) -> Values:
    reader = parser()

    def fail(message: str) -> None:
        raise InputError(f"arguments of mace_run_train: {message}; write them as --NAME=VALUE")

    reader.error = fail  # type: ignore[assignment, method-assign]
    start = 1 if words and not words[0].startswith("-") else 0  # mace_run_train itself
    found: argparse.Namespace = reader.parse_args(words[start:])
    return {name: _typed(name, value) for name, value in vars(found).items()}


def _typed(name: str, value: Any) -> Any:
    """A value as mace_run_train reads it: numbers and truth from text."""
    row = ARGUMENTS[name]
    if value is None:
        return row.default
    if isinstance(value, (list, dict)):
        if name in _OF_SEVERAL or isinstance(row.default, list) or not row.ours:
            return value
        raise InputError(f"--{name}={value}: mace_run_train takes one value; give one")
    if row.kind in ("flag", "bool"):
        if str(value).lower() not in (*_TRUE, *_FALSE):
            raise InputError(f"--{name}={value}: give true or false")
        return str(value).lower() in _TRUE
    if name == "clip_grad" and str(value).lower() == "none":
        return None
    kind: type = int if row.kind == "int" or name in _WHOLE else type(row.default)
    if kind not in (int, float):
        return str(value)
    try:
        return kind(value)
    except (ValueError, OverflowError):
        what = "a number without fraction" if kind is int else "a number"
        raise InputError(f"--{name}={value}: mace_run_train takes {what}; give one") from None


def _number(name: str, value: Any) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    raise InputError(f"--{name}: {value!r} is no number; give one")


def _folders(values: Values, equal: Equal, _: list[str]) -> None:
    name = values["name"] or "mace"
    folder = Path(values["work_dir"]) / name
    equal["preprocess"]["output"] = equal["train"]["data_dir"] = str(folder / "prepared")
    equal["train"] |= {"output": str(folder / "run"), "name": name}


def _data(values: Values, equal: Equal, without: list[str]) -> None:
    data = equal["preprocess"]
    files = ("train_file", "valid_file", "test_file")
    heads = literal("heads", values["heads"], dict) if values["heads"] else {}
    of_head: dict[str, Values] = {
        str(h): dict(literal(f"heads, {h}", own or {}, dict)) for h, own in heads.items()
    }
    for name in files:
        shared = values[name] or (values["test_dir"] if name == "test_file" else None)
        by_head = {h: own.pop(name) for h, own in of_head.items() if own.get(name)}
        data[f"data.{name}"] = by_head or shared
    if data["data.train_file"] is None:
        without.append("--train_file: none is given; add data.train_file=FILE")
        del data["data.train_file"]
    by_head = {h: _E0s(own.pop("E0s")) for h, own in of_head.items() if own.get("E0s")}
    data["data.E0s"] = by_head or _E0s(values["E0s"])
    for head, own in of_head.items():
        without += [f"--heads: {key} of {head} is a setting of all heads here" for key in own]


def _E0s(value: Any) -> Any:
    if value is None or isinstance(value, dict):
        return value
    text = str(value)
    if text.lower() in ("average", "foundation"):
        return text.lower()
    if text.lower() == "estimated":
        return None  # see fine_tuning
    return text if text.endswith(".json") else literal("E0s", text, dict)


def _learning(values: Values, equal: Equal, without: list[str]) -> None:
    train = equal["train"]
    kind = values["optimizer"]
    train["optimizer.optimizer"] = kind
    train["optimizer.beta"] = values["beta"]
    if kind == "schedulefree":
        train["optimizer.beta"] = values["beta1_schedulefree"]
        train["optimizer.beta2"] = values["beta2_schedulefree"]
    if values["lbfgs"]:
        train |= {"optimizer.optimizer": "lbfgs", "optimizer.lr": 1.0}
    name = "lr_params_factors"
    factors = literal(name, values[name], dict)
    ours = {str(k).removesuffix("_lr_factor"): _number(name, v) for k, v in factors.items()}
    train["optimizer.lr_params_factors"] = ours if any(f != 1.0 for f in ours.values()) else None
    frozen = [part for least, part in _FROZEN if (values["freeze"] or 0) >= least]
    train["optimizer.freeze"] = frozen or None
    train["batching.packer"] = "fixed_count"
    train["scheduler.scheduler"] = _SCHEDULERS.get(values["scheduler"], "plateau")
    if values["scheduler"] not in _SCHEDULERS:
        without.append(f"--scheduler={values['scheduler']}: one of {', '.join(_SCHEDULERS)}")
    train["checkpoints.keep_every"] = 1 if values["save_all_checkpoints"] else None


def _loss(values: Values, equal: Equal, without: list[str]) -> None:
    train, name = equal["train"], values["loss"]
    if name not in _LOSSES:
        without.append(f"--loss={name}: no model here predicts dipoles")
    loss, terms = _LOSSES.get(name, _LOSSES["weighted"])
    train["loss.loss"] = loss
    for term in ("energy", "forces", "stress", "virials"):
        weight = values[f"{term}_weight"] if term in terms else 0.0
        train[f"loss.{term}_weight"] = weight
    if name == "ef":  # whose weights mace-torch does not pass on
        train |= {"loss.energy_weight": 1.0, "loss.forces_weight": 1.0}
    weights = literal("config_type_weights", values["config_type_weights"], dict)
    train["loss.config_type_weights"] = None if weights == {"Default": 1.0} else weights
    two = values["swa"] or values["start_swa"] is not None
    epochs = values["max_num_epochs"]
    start = values["start_swa"] if values["start_swa"] is not None else max(1, epochs // 4 * 3)
    if two and start > epochs:
        without.append(f"--start_swa={start}: after the last epoch, so there is no stage two")
        two = False
    train["stage_two.enabled"] = two
    train["stage_two.start"] = start if two else None


def _place(values: Values, equal: Equal, without: list[str]) -> None:
    train, device = equal["train"], values["device"]
    train["cluster.device"] = device
    if device not in ("cpu", "cuda"):
        without.append(f"--device={device}: cpu and cuda are here")
        del train["cluster.device"]
    if values["wandb"]:
        train["logger.wandb_mode"] = "online"
    for name in ("wandb_project", "wandb_entity", "wandb_name"):
        if values[name]:
            train[f"logger.{name}"] = values[name]


_Special = Callable[[Values, Equal, list[str]], None]
_SPECIAL: dict[str, _Special] = {
    **dict.fromkeys(("name", "work_dir"), _folders),
    **dict.fromkeys(
        ("train_file", "valid_file", "test_file", "test_dir", "heads", "E0s"),
        _data,
    ),
    **dict.fromkeys(MODEL_ARGUMENTS, model),
    **dict.fromkeys(
        (
            *("embedding_specs", "use_embedding_readout"),
            *("total_charge_key", "total_spin_key", "elec_temp_key"),
        ),
        input_arguments,
    ),
    **dict.fromkeys(
        (
            *("optimizer", "beta", "beta1_schedulefree", "beta2_schedulefree", "lbfgs"),
            *("lr_params_factors", "freeze", "scheduler", "save_all_checkpoints"),
        ),
        _learning,
    ),
    **dict.fromkeys(
        (
            *("loss", "energy_weight", "forces_weight", "stress_weight", "virials_weight"),
            *("config_type_weights", "swa", "start_swa"),
        ),
        _loss,
    ),
    **dict.fromkeys(
        (
            *("foundation_model", "foundation_head", "foundation_model_elements"),
            *("lora", "lora_rank", "lora_alpha", "multiheads_finetuning", "force_mh_ft_lr"),
            *("pt_train_file", "pt_valid_file", "weight_pt_head"),
        ),
        fine_tuning,
    ),
    **dict.fromkeys(("device", "wandb_project", "wandb_entity", "wandb_name"), _place),
}


def _that_differ(command: str, settings: Values) -> Values:
    """The settings that are not our defaults; InputError if our schema does not take them."""
    defaults = OmegaConf.structured(_SCHEMAS[command])
    kept = {
        name: value
        for name, value in settings.items()
        if OmegaConf.is_missing(*_parent(defaults, name))
        or OmegaConf.select(defaults, name) != value
    }
    if command == "preprocess":
        defaults.data.train_file = "train.xyz"  # for the check, where none is given
    name = "a setting"
    try:
        for name, value in kept.items():
            OmegaConf.update(defaults, name, value, force_add=False)
        OmegaConf.to_object(defaults)
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"mace-train {command} does not take the value of {name}: {reason}; correct it"
        ) from None
    return kept


def _parent(config: Any, name: str) -> tuple[Any, str]:
    head, _, leaf = name.rpartition(".")
    return (OmegaConf.select(config, head) if head else config), leaf


def _word(value: Any) -> str:
    """A value in Hydra's grammar."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}: {_word(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_word, value)) + "]"
    text = str(value)
    is_plain = re.fullmatch(r"[A-Za-z0-9_./+\-]+", text) is not None
    return text if is_plain else "'" + text.replace("'", "\\'") + "'"


def as_yaml(command: str, values: Values) -> str:
    """A configuration for --config-name: our defaults and what differs from them."""
    content = OmegaConf.create({"defaults": [command, "_self_"]})
    for name, value in values.items():
        OmegaConf.update(content, name, value, force_add=True)
    return OmegaConf.to_yaml(content)
