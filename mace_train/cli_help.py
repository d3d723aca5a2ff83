"""Help pages made from the schema, and Hydra's errors turned into one message with the remedy."""

import ast
import dataclasses
import difflib
import inspect
import re
import textwrap
from pathlib import Path
from typing import Any

from hydra.errors import OverrideParseException

from mace_train import settings
from mace_train.settings.ranges import range_of

HELP = """\
mace-train: train MACE interatomic potentials on whole clusters

  mace-train preprocess  data.train_file=train.xyz r_max=5.0 output=prepared
  mace-train inspect     prepared
  mace-train balance     data_dir=prepared gpus=8
  mace-train train       data_dir=prepared model=small output=runs/first
  mace-train evaluate    checkpoint=runs/first test_file=test.xyz output=runs/first/test
  mace-train report      runs/first
  mace-train compare     runs/first runs/second output=comparison
  mace-train sweep       runs/sweep
  mace-train tune        trials=50 output=runs/tune -- data_dir=prepared model=tiny,small
  mace-train import      model.model output=imported
  mace-train export      runs/first format=mace-torch output=first.model
  mace-train from-mace-config run.yaml
  mace-train md          checkpoint=runs/first structure=start.xyz steps=2000 output=md
  mace-train relax       checkpoint=runs/first structure=start.xyz output=relaxed
  mace-train export      checkpoint=runs/first format=aoti output=model.pt2
  mace-train doctor      data_dir=prepared

  mpiexec -n 64 mace-train preprocess ...               over MPI ranks; srun does the same
  mace-train preprocess --dry-run ...                   what would be read
  torchrun --nproc-per-node 4 -m mace_train train ...   on several GPUs (or CPU processes)
  srun --ntasks-per-node=4 mace-train train ...         the same on Slurm; see slurm/README.md
  mace-train train --multirun seed=1,2,3 ...            a Hydra sweep; --job K runs job K of it
  mace-train train --cfg job ...                        print the settings, run nothing
  mace-train COMMAND --help                             all settings of a command
  mace-train --version"""
_REQUIRED = "(required)"


def command_help(command: str, schema: type, configs: Path) -> str:
    """The help page of a command: its config groups and every setting with type and default."""
    lines = [f"mace-train {command} key=value ...", "", inspect.getdoc(schema) or "", ""]
    groups = _groups(schema, configs)
    if groups:
        lines.append("Config groups (choose with group=name):")
        lines += [f"  {group}: {', '.join(names)}" for group, names in groups.items()]
        lines.append("")
    lines.append("Settings:")
    rows = sorted(_settings(schema), key=lambda row: row[2] != _REQUIRED)
    for name, kind, default, text in rows:
        lines += [f"  {name}: {kind} = {default}", *(f"      {line}" for line in text)]
    return "\n".join(lines)


def valid_names(schema: type) -> list[str]:
    """Every setting of a command with its dotted name."""
    return [name for name, *_ in _settings(schema)]


def _settings(schema: type, prefix: str = "") -> list[tuple[str, str, str, list[str]]]:
    """(dotted name, type, default, help lines) of every setting, depth first."""
    texts = _field_texts(schema)
    rows = []
    for field in dataclasses.fields(schema):
        if dataclasses.is_dataclass(field.type):
            assert isinstance(field.type, type)
            rows += _settings(field.type, f"{prefix}{field.name}.")
            continue
        limits = range_of(field)
        text = [
            *texts.get(field.name, []),
            *([] if limits is None else textwrap.wrap(f"Range: {limits}.", 94)),
        ]
        kind = getattr(field.type, "__name__", "") if isinstance(field.type, type) else ""
        kind = "path(s)" if field.type is Any and "file" in field.name else kind
        rows.append(
            (
                prefix + field.name,
                kind or str(field.type).replace("typing.", ""),
                _default(field),
                text,
            )
        )
    return rows


def _default(field: "dataclasses.Field[Any]") -> str:
    if field.default_factory is not dataclasses.MISSING:
        return str(field.default_factory())
    if field.default == settings.MISSING:
        return _REQUIRED
    return "null" if field.default is None else str(field.default)


def _field_texts(schema: type) -> dict[str, list[str]]:
    """The docstring under each field of a dataclass and of those it is made from, as lines."""
    inherited = [_field_texts(base) for base in schema.__bases__ if dataclasses.is_dataclass(base)]
    tree = ast.parse(inspect.getsource(schema)).body[0]
    assert isinstance(tree, ast.ClassDef)
    texts = {name: text for of_base in inherited for name, text in of_base.items()}
    for item, following in zip(tree.body, tree.body[1:], strict=False):
        if (
            isinstance(item, ast.AnnAssign)
            and isinstance(item.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
        ):
            text = inspect.cleandoc(str(following.value.value))
            texts[item.target.id] = text.splitlines()
    return texts


def _groups(schema: type, configs: Path) -> dict[str, list[str]]:
    """The config groups a command uses, with the names of their files."""
    names = [f.name for f in dataclasses.fields(schema) if dataclasses.is_dataclass(f.type)]
    return {
        name: sorted(path.stem for path in (configs / name).glob("*.yaml"))
        for name in names
        if (configs / name).is_dir()
    }


def explain(error: BaseException, command: str, schema: type, configs: Path) -> str:
    """One message for an error of Hydra or OmegaConf: what is wrong and what would be right."""
    chain = _chain(error)
    unreadable = next((e for e in chain if isinstance(e, OverrideParseException)), None)
    if unreadable is not None:
        return _unreadable_override(unreadable.override)
    text = "\n".join(str(item) for item in chain)
    key = _unknown_key(text)
    if key is not None:
        return unknown_key_message(key, command, schema)
    group = re.search(r"Could not find '([\w./-]+)'", text)
    if group and "/" in group[1]:
        name, _, choice = group[1].rpartition("/")
        choices = _groups(schema, configs).get(name, [])
        return f"{name}={choice}: no such choice; {name} is one of: {', '.join(choices)}"
    return _type_error(text) or str(chain[-1] if chain else error).strip()


def _unreadable_override(override: str) -> str:
    """What to do about an argument that Hydra's grammar cannot read."""
    key, equals, value = override.partition("=")
    if not equals:
        return f"{override!r} is not key=value, such as seed=1"
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
    leaf = key.rpartition(".")[2]
    near = difflib.get_close_matches(key, valid, n=1, cutoff=0.75)
    near = near or [name for name in valid if name.rpartition(".")[2] == leaf]
    near = near or [
        name
        for name in valid
        if difflib.get_close_matches(leaf, [name.rpartition(".")[2]], n=1, cutoff=0.7)
    ]
    hint = f" (did you mean {near[0]}?)" if near else ""
    return (
        f"unknown setting {key!r}{hint}; valid settings of {command}: {', '.join(valid)}. "
        f"`mace-train {command} --help` explains them"
    )


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
    if not re.search(r"not in '|is not in struct|Could not override '", text):
        return None
    for pattern in (
        r"full_key: ([\w.\-]+)",
        r"Could not override '([\w.@/\-]+)'",
        r"Key '([\w.\-]+)'",
    ):
        found = re.search(pattern, text)
        if found:
            return found[1]
    return None


def _type_error(text: str) -> str | None:
    """Message for a value of the wrong type or a missing file, if that is what it is."""
    key = re.search(r"full_key: ([\w.\-]+)", text)
    value = re.search(r"^(.*(?:could not be converted|Invalid|is not|Cannot).*)$", text, re.M)
    if key and value:
        return f"{key[1]}: {value[1].strip()}"
    return None
