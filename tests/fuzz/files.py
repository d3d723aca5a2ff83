"""Files of users and of ours, damaged: text formats, checkpoints and shards."""

import json
import random
import shutil
from pathlib import Path

import yaml
from safetensors import safe_open
from safetensors.torch import save_file

from mace_train.train.checkpoint import checksum
from tests.data.fuzzing import damage
from tests.fuzz.case import Case
from tests.fuzz.extxyz import change_extxyz
from tests.fuzz.fixtures import Fixtures
from tests.fuzz.settings_cases import NUMBERS, TEXTS, all_settings
from tests.fuzz.trees import add_yaml, change_node, damage_json, damage_text

OF_RUN = (
    *(
        "metrics.jsonl",
        "metrics.csv",
        "provenance.json",
        "repeat.yaml",
        "settings.json",
        "train.log",
    ),
    *("checkpoints/last.json", "checkpoints/best.json", "checkpoints/step-0000000001.json"),
)
DATA = "data_dir=data"


def with_(words: list[str], *new: str) -> list[str]:
    """The words with settings replaced, or added."""
    keys = [word.partition("=")[0] for word in new]
    return [*(w for w in words if w.partition("=")[0] not in keys), *new]


def extxyz(fixtures: Fixtures, rng: random.Random, work: Path) -> Case:
    """A damaged extxyz file."""
    path = work / "bad.xyz"
    shutil.copy(fixtures.folder / "train.xyz", path)
    what = change_extxyz(path, rng)
    name = rng.choice(("preprocess",) * 5 + ("evaluate", "md"))
    new = {"preprocess": "data.train_file", "evaluate": "test_file", "md": "structure"}[name]
    words = [name, *with_(fixtures.base[name], f"{new}=bad.xyz")]
    if name == "preprocess":
        words += rng.choice(([], ["data.E0s=average"], ["data.skip_invalid=true"]))
    return Case(f"{name}, {what}", words)


def experiment(fixtures: Fixtures, rng: random.Random, work: Path) -> Case:
    """A YAML file of a user for ``--config-dir``, with strange lines and values."""
    command = rng.choice(("train", "train", "preprocess", "balance", "evaluate"))
    settings = dict(word.split("=", 1) for word in fixtures.base[command])
    groups = [{f"override {k}": settings.pop(k)} for k in ("cluster",) if k in settings]
    tree: dict[str, object] = {"defaults": [command, *groups, "_self_"]}
    for key, value in settings.items():
        node, leaf = tree, key
        while "." in leaf:
            head, _, leaf = leaf.partition(".")
            node = node.setdefault(head, {})  # type: ignore[assignment]
        node[leaf] = yaml.safe_load(value)
    path = work / "exp.yaml"
    kind = rng.randrange(4)
    what = ""
    if kind == 0:
        setting = rng.choice([s for s in all_settings() if s.command == command])
        text = rng.choice(NUMBERS + TEXTS)
        node, leaf = tree, setting.name
        while "." in leaf:
            head, _, leaf = leaf.partition(".")
            node = node.setdefault(head, {})  # type: ignore[assignment]
        node[leaf] = text
        what = f"{setting.name}: {text[:30]!r}"
    elif kind == 1:
        tree, what = change_node(tree, rng)
    path.write_text(yaml.safe_dump(tree, allow_unicode=True))
    if kind == 2:
        what = add_yaml(path, rng)
    elif kind == 3:
        what = damage_text(path, rng)
    words = [command, "--config-dir", ".", "--config-name", "exp"]
    return Case(f"exp.yaml of {command}, {what}", words, runs_long=True)


def statistics(fixtures: Fixtures, rng: random.Random, work: Path) -> Case:
    """A damaged statistics.json."""
    shutil.copytree(fixtures.folder / "prepared", work / "data")
    what = damage_json(work / "data" / "statistics.json", rng)
    command = rng.choice(("train", "train", "balance", "inspect"))
    words = [command, *with_(fixtures.base[command], DATA)]
    return Case(f"statistics.json, {command}, {what}", words)


def small_json(fixtures: Fixtures, rng: random.Random, work: Path) -> Case:
    """A damaged file of costs or of energies of isolated atoms."""
    name, command, setting = rng.choice(
        (
            ("costs.json", "balance", "batching.cost_model"),
            ("costs.json", "train", "batching.cost_model"),
            ("E0s.json", "preprocess", "data.E0s"),
        )
    )
    shutil.copy(fixtures.folder / name, work / name)
    what = damage_json(work / name, rng)
    words = [command, *fixtures.base[command], f"{setting}={name}"]
    if command != "preprocess" and rng.random() < 0.3:
        words.append("batching.max_memory_gb=1")
    return Case(f"{name}, {command}, {what}", words)


def mace_config(fixtures: Fixtures, rng: random.Random, work: Path) -> Case:
    """A damaged configuration of mace_run_train."""
    path = work / "mace.yaml"
    shutil.copy(fixtures.folder / "mace.yaml", path)
    kind = rng.random()
    if kind < 0.6:
        tree, what = change_node(yaml.safe_load(path.read_text()), rng)
        if rng.random() < 0.3 and isinstance(tree, dict):
            from mace_train.interop.arguments import ARGUMENTS

            name = rng.choice(list(ARGUMENTS))
            tree[name] = rng.choice((*NUMBERS, *TEXTS, None, [1], {"a": 1}, -1, 1e30))
            what = f"{name}={str(tree[name])[:30]!r}"
        path.write_text(yaml.safe_dump(tree, allow_unicode=True))
    else:
        what = add_yaml(path, rng) if kind < 0.8 else damage_text(path, rng)
    return Case(f"mace.yaml, {what}", ["from-mace-config", "mace.yaml"])


def folder_of_a_run(fixtures: Fixtures, rng: random.Random, work: Path) -> Case:
    """A run's folder of which one file is damaged or lost, or another folder altogether."""
    command = rng.choice(("report", "compare", "sweep", "train", "evaluate"))
    shutil.copytree(fixtures.folder / "run", work / "run")
    kind = rng.random()
    if kind < 0.1:
        target = rng.choice((fixtures.folder, fixtures.folder / "prepared", Path("/"), work / "no"))
        words = {"report": "run", "compare": "runs", "sweep": "folder", "evaluate": "checkpoint",
                 "train": "foundation.checkpoint"}  # fmt: skip
        value = f"[{target}]" if command == "compare" else str(target)
        return Case(
            f"{command} of {target.name or '/'}",
            [command, *with_(fixtures.base[command], f"{words[command]}={value}")],
        )
    name = rng.choice(OF_RUN)
    if command == "sweep":
        shutil.copytree(fixtures.folder / "sweep", work / "sweep")
        folder = work / "sweep" / "0"
        name = rng.choice((*OF_RUN, "job.json", "job.json", "job.json"))
    elif command == "report" and rng.random() < 0.3:
        shutil.copytree(fixtures.folder / "evaluation", work / "evaluation")
        folder, name = work / "evaluation", "errors.json"
    else:
        folder = work / "run"
    path = folder / name
    if kind < 0.2 or not path.is_file():
        path.unlink(missing_ok=True)
        what = "lost"
    elif path.suffix == ".jsonl" and kind < 0.7:
        lines = path.read_text().splitlines()
        k = rng.randrange(len(lines))
        tree, what = change_node(json.loads(lines[k]), rng)
        lines[k] = json.dumps(tree)
        path.write_text("\n".join(lines) + "\n")
    else:
        what = damage_json(path, rng) if path.suffix == ".json" else damage_text(path, rng)
    words = {
        "report": ["run=run", *(["evaluation=evaluation"] if name == "errors.json" else [])],
        "compare": ["runs=[run]"],
        "sweep": [],
        "train": ["output=run", "restart_latest=true", "max_num_epochs=2"],
        "evaluate": ["checkpoint=run"],
    }[command]
    words = [command, *with_(fixtures.base[command], *words)]
    return Case(f"{command}, {name}, {what}", words)


def checkpoint(fixtures: Fixtures, rng: random.Random, work: Path) -> Case:
    """A damaged checkpoint: bytes, the header field by field, tensors."""
    name = rng.choice(("best.safetensors", "step-0000000001.safetensors", "last.safetensors"))
    path = work / name
    shutil.copy(fixtures.folder / "run" / "checkpoints" / name, path)
    what = change_checkpoint(path, rng)
    command = rng.choice(("evaluate", "evaluate", "export", "md", "train", "restart"))
    if command == "restart":
        shutil.copytree(fixtures.folder / "run", work / "run")
        for old in (work / "run" / "checkpoints").glob("*.safetensors"):
            if old.name == name or rng.random() < 0.5:
                shutil.copy(path, old)
        new = ["output=run", "restart_latest=true", "max_num_epochs=2"]
        words = ["train", *with_(fixtures.base["train"], *new)]
    else:
        key = "foundation.checkpoint" if command == "train" else "checkpoint"
        words = [command, *with_(fixtures.base[command], f"{key}={name}")]
    return Case(f"{name}, {command}, {what}", words)


def change_checkpoint(path: Path, rng: random.Random) -> str:
    """Damage a checkpoint; half of the changes keep its checksum right."""
    kind = rng.random()
    if kind < 0.3:
        return damage_text(path, rng)
    with safe_open(path, framework="pt") as handle:
        metadata = dict(handle.metadata())
        tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    if kind < 0.75:
        tree, what = change_node(json.loads(metadata["header"]), rng)
        metadata["header"] = json.dumps(tree)
    else:
        name = rng.choice(sorted(tensors))
        tensor, how = tensors.pop(name), rng.randrange(7)
        if how == 1:
            tensors[name + "_"] = tensor
        elif how == 2:
            tensors[name] = tensor.flatten()[:-1].clone()
        elif how == 3:
            tensors[name] = tensor.double() if tensor.dtype.itemsize < 8 else tensor.float()
        elif how == 4:
            tensors[name] = tensor[None].clone()
        elif how == 5:
            tensors[name] = (tensor * float("nan")).to(tensor.dtype)
        elif how == 6:
            tensors[name] = tensor.flatten()[:0].clone()
        what = f"tensor {name}, change {how}"
    if rng.random() < 0.7:
        metadata["checksum"] = checksum(tensors, metadata["header"])
    elif rng.random() < 0.3:
        metadata.pop(rng.choice(sorted(metadata)))
    save_file(tensors, path, metadata=metadata)
    return what


def state_dict(fixtures: Fixtures, rng: random.Random, work: Path) -> Case:
    """A damaged state dict of mace-torch, or its header."""
    for name in ("state.safetensors", "state.json"):
        shutil.copy(fixtures.folder / name, work / name)
    if rng.random() < 0.7:
        what = damage_json(work / "state.json", rng)
    else:
        what = damage_text(work / "state.safetensors", rng)
    words = ["import", *with_(fixtures.base["import"], "model_file=state.safetensors")]
    return Case(f"state dict, {what}", words)


def shards(fixtures: Fixtures, rng: random.Random, work: Path) -> Case:
    """A damaged shard."""
    shutil.copytree(fixtures.folder / "prepared", work / "data")
    found = sorted((work / "data").rglob("*.h5"))
    path = rng.choice(found)
    whole = path.rename(path.with_suffix(".whole"))
    whole = whole.rename(work / "whole.h5")
    what = damage(whole, path, rng)
    whole.unlink()
    command = rng.choice(("train", "inspect", "balance", "evaluate"))
    words = with_(fixtures.base[command], DATA)
    if command == "evaluate":
        words = [word for word in words if not word.startswith("test_file=")]
    return Case(f"{path.parent.name}/{path.name}, {command}, {what}", [command, *words])
