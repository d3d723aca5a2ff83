"""Help pages made from the schema."""

import ast
import dataclasses
import inspect
import textwrap
from pathlib import Path
from typing import Any

from mace_train import settings
from mace_train.settings.ranges import Range, range_of

HELP = """\
mace-train: train MACE interatomic potentials on whole clusters

  mace-train preprocess  data.train_file=train.xyz r_max=5.0 output=prepared
  mace-train inspect     prepared
  mace-train balance     data_dir=prepared gpus=8
  mace-train train       data_dir=prepared model=small output=runs/first
  mace-train evaluate    checkpoint=runs/first test_file=test.xyz output=runs/first/test
  mace-train descriptors checkpoint=runs/first data_dir=prepared output=descriptors.h5
  mace-train select      checkpoint=runs/first structures=large.xyz n=500 output=old.extxyz
  mace-train report      runs/first
  mace-train compare     runs/first runs/second output=comparison
  mace-train sweep       runs/sweep
  mace-train tune        trials=50 output=runs/tune -- data_dir=prepared model=tiny,small
  mace-train import      model.model output=imported    or a name, such as medium-mpa-0
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
    groups = groups_of(schema, configs)
    if groups:
        lines.append("Config groups (choose with group=name):")
        lines += [f"  {group}: {', '.join(names)}" for group, names in groups.items()]
        lines.append("")
    lines.append("Settings:")
    rows = sorted(all_settings(schema), key=lambda row: row[2] != _REQUIRED)
    for name, kind, default, text in rows:
        lines += [f"  {name}: {kind} = {default}", *(f"      {line}" for line in text)]
    return "\n".join(lines)


def valid_names(schema: type) -> list[str]:
    """Every setting of a command with its dotted name."""
    return [name for name, *_ in all_settings(schema)]


def limits_of(schema: type, name: str) -> Range | None:
    """The declared range of a setting with its dotted name; None where it has none."""
    head, _, rest = name.partition(".")
    field = next(field for field in dataclasses.fields(schema) if field.name == head)
    if rest:
        assert isinstance(field.type, type)
        return limits_of(field.type, rest)
    return range_of(field)


def all_settings(schema: type, prefix: str = "") -> list[tuple[str, str, str, list[str]]]:
    """(dotted name, type, default, help lines) of every setting, depth first."""
    texts = _field_texts(schema)
    rows = []
    for field in dataclasses.fields(schema):
        if dataclasses.is_dataclass(field.type):
            assert isinstance(field.type, type)
            rows += all_settings(field.type, f"{prefix}{field.name}.")
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


def groups_of(schema: type, configs: Path) -> dict[str, list[str]]:
    """The config groups a command uses, with the names of their files."""
    names = [f.name for f in dataclasses.fields(schema) if dataclasses.is_dataclass(f.type)]
    return {
        name: sorted(path.stem for path in (configs / name).glob("*.yaml"))
        for name in names
        if (configs / name).is_dir()
    }
