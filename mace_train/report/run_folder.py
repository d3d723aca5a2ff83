"""The output folder of a training: epochs, settings, sessions, model, bins."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mace_train.balance.costs import Capacity, Costs
from mace_train.balance.head_sampling import RATIOS, Heads, sampling_from
from mace_train.balance.plan import Plan, make_plan
from mace_train.data.loading.loader import heads_of
from mace_train.data.statistics import open_split
from mace_train.errors import InputError
from mace_train.evaluate.compare import best_epoch, flat, read_metrics
from mace_train.json_files import converted, read_json
from mace_train.settings import MISSING, TrainSettings
from mace_train.train import checkpoint
from mace_train.yaml_files import read_yaml


@dataclass(frozen=True)
class RunFolder:
    """A training, as read from its output folder."""

    path: Path
    epochs: list[dict[str, Any]]  # records of metrics.jsonl
    settings: dict[str, Any]
    sessions: list[dict[str, Any]]  # of provenance.json
    header: dict[str, Any]  # of the best checkpoint
    n_weights: int

    @property
    def best(self) -> dict[str, Any]:
        """The record of the best epoch."""
        return best_epoch(self.epochs)

    @property
    def data_dir(self) -> Path:
        """The preprocessed folder it was trained on: as it was given, or where it was then."""
        given = Path(self.settings["data_dir"])
        repeat = self.path / "repeat.yaml"
        if not given.is_dir() and repeat.is_file():
            return _data_dir_of(repeat)
        return given

    def changed_settings(self) -> dict[str, tuple[Any, Any]]:
        """(value, default) of the settings that are not the schema's defaults, by dotted name."""
        defaults = flat(_defaults())
        return {
            name: (value, defaults.get(name))
            for name, value in flat(self.settings).items()
            if value != defaults.get(name)
        }


def read_run(path: Path) -> RunFolder:
    """The training in ``path``; ``InputError`` where it has no epoch or no checkpoint yet."""
    epochs = read_metrics(path)
    best = path / "checkpoints" / "best.safetensors"
    if not best.is_file():
        raise InputError(f"{path}: no checkpoints/best.safetensors yet; wait for a validation")
    tensors, header = checkpoint.read(best)
    return RunFolder(
        path,
        epochs,
        header["settings"],
        _sessions(path / "provenance.json"),
        header,
        sum(tensor.numel() for tensor in tensors.values()),
    )


_SESSION: dict[str, Any] = {  # what the page shows
    "mace_train": str,
    "python": str,
    "libraries": dict[str, Any],
    "dataset_hash": str,
    "time": str,
    "from_step": int,
    "ranks": int,
    "host": str,
    "command": list[str],
}


def _sessions(path: Path) -> list[dict[str, Any]]:
    """The sessions of provenance.json; none where there is no file."""
    if not path.is_file():
        return []
    remedy = "remove or restore it"
    sessions = read_json(path, list, remedy)
    try:
        for i, session in enumerate(converted(list[dict[str, Any]], sessions, "session")):
            for name, kind in _SESSION.items():
                converted(kind, session.get(name), f"session[{i}].{name}")
    except ValueError as error:
        raise InputError(f"{path}: {error}; {remedy}") from None
    return sessions


def _data_dir_of(repeat: Path) -> Path:
    """The data_dir that repeat.yaml names."""
    content = read_yaml(repeat, "restore or remove it")
    if not isinstance(content, dict) or not isinstance(content.get("data_dir"), str):
        raise InputError(f"{repeat} names no data_dir; restore or remove it")
    return Path(content["data_dir"])


def _defaults() -> dict[str, Any]:
    """The schema's defaults; what has none is left out."""
    made = asdict(TrainSettings())
    required = {f.name for f in fields(TrainSettings) if f.default == MISSING}
    return {name: value for name, value in made.items() if name not in required}


@dataclass(frozen=True)
class BinFill:
    """How full the bins of an epoch were, relative to the capacity."""

    atoms: NDArray[np.float64]  # [n_bins]
    edges: NDArray[np.float64]  # [n_bins]
    plan: Plan
    capacity: Capacity


def fill_of_bins(run: RunFolder) -> BinFill | None:
    """The bins of the last epoch, planned again as training did; None where its data are gone."""
    last = run.path / "checkpoints" / "last.safetensors"
    if not last.is_file() or not (run.data_dir / "train").is_dir():
        return None
    header = checkpoint.read_header(last)
    origin = header["sampler"]
    shards = open_split(run.data_dir, "train")
    costs = Costs(shards.n_atoms.astype(np.int64), shards.n_edges.astype(np.int64))
    if costs.fingerprint != origin["dataset"]:
        return None  # other data, or bins that were limited by a model of memory
    limits = ("max_atoms", "max_edges", "batch_size", "max_memory")
    capacity, epoch = Capacity(**{name: origin[name] for name in limits}), run.epochs[-1]["epoch"]
    if RATIOS in origin:
        names = checkpoint.described(header)[1].head_names
        heads = Heads(names, heads_of(shards, names, str(shards.folder)))
        sampling = sampling_from(origin, heads)
        costs = costs if sampling is None else sampling.samples(epoch).costs(costs)
    plan = make_plan(costs, origin["packer"], capacity, origin["world_size"], origin["seed"], epoch)
    return BinFill(
        plan.n_atoms.ravel() / capacity.max_atoms,
        plan.n_edges.ravel() / max(capacity.max_edges, 1),
        plan,
        capacity,
    )
