"""Small trainings: their settings, batches and records, and how two of them compare."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.io import write

from mace_train.data.graph import Graph
from mace_train.distributed.world import World
from mace_train.settings import (
    BatchingSettings,
    ClusterSettings,
    LoggerSettings,
    LossSettings,
    ModelSettings,
    OptimizerSettings,
    TrainSettings,
)
from mace_train.train.checkpoint import read
from mace_train.train.epoch import EpochLoop
from mace_train.train.run import Run
from mace_train.train.setup import set_up
from mace_train.train.step import StepResult
from mace_train.train.train import fit
from tests.conftest import TINY_MODEL, emt_structures, run_command

LOSS = LossSettings(
    stress_weight=7.0, virials_weight=0.3, config_type_weights={"crystal": 2.5, "molecule": 0.5}
)


def settings_for(prepared: Path, output: Path, **changes: Any) -> TrainSettings:
    """A small float64 training; ``changes`` replace fields."""
    base = TrainSettings(
        data_dir=str(prepared),
        output=str(output),
        default_dtype="float64",
        max_num_epochs=4,
        clip_grad=None,
        model=ModelSettings(num_channels=4, max_ell=2, correlation=2, radial_MLP=[8]),
        optimizer=OptimizerSettings(lr=0.005),
        batching=BatchingSettings(batch_size=3),
        logger=LoggerSettings(progress=False),
        loss=LOSS,
    )
    return replace(base, **changes)


def graph_of(run: Run, ids: list[int]) -> Graph:
    """The batch of these training structures."""
    return next(run.graphs(run.train, [np.array(ids, dtype=np.int64)], ahead=False))


class KilledError(Exception):
    """Raised where a test simulates a SIGKILL: nothing of the training runs after it."""


@contextmanager
def after_steps(action: Callable[[StepResult], None]) -> Iterator[None]:
    """Trainings within call ``action`` whenever a step has ended, with its result."""
    note = EpochLoop._note

    def noted(loop: EpochLoop, result: StepResult, after: int) -> None:
        note(loop, result, after)
        action(result)

    EpochLoop._note = noted  # type: ignore[method-assign]
    try:
        yield
    finally:
        EpochLoop._note = note  # type: ignore[method-assign]


def train_until_killed(world: World, settings: TrainSettings, n_steps: int) -> list[list[int]]:
    """Train; die before step ``n_steps`` of this session. The ids of every step of this rank."""
    run = set_up(settings, world)
    trained: list[list[int]] = []

    def count(result: StepResult) -> None:
        trained.append(result.started.ids.tolist())
        if len(trained) == n_steps:
            run.checkpoint_manager.close()
            raise KilledError

    with suppress(KilledError), after_steps(count):
        fit(run)
    return trained


def records(output: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl of a training that has ended."""
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def assert_same_end(one: Path, other: Path) -> None:
    """The last checkpoints and all records of learning are equal, bit for bit."""
    tensors, headers = zip(
        *(read(path / "checkpoints" / "last.safetensors") for path in (one, other)), strict=True
    )
    assert tensors[0].keys() == tensors[1].keys()
    for name, value in tensors[0].items():
        assert torch.equal(value, tensors[1][name]), name
    clocks = {"seconds", "epoch_seconds", "n_starts"}
    progress = [
        {k: v for k, v in header["progress"].items() if k not in clocks} for header in headers
    ]
    assert progress[0] == progress[1]
    keys = ("epoch", "step", "train_loss", "valid_loss", "lr", "stage")
    first, second = ([[r[key] for key in keys] for r in records(path)] for path in (one, other))
    assert first == second


def with_graphs(prepared: Path, output: Path, *, captured: bool, **changes: Any) -> TrainSettings:
    """Settings for bins of one shape; ``device`` is the CPU by default."""
    return settings_for(
        prepared,
        output,
        **{
            "batching": BatchingSettings(batch_size=4, static_shapes=True),
            "cluster": ClusterSettings(device=changes.pop("device", "cpu"), cuda_graphs=captured),
            **changes,
        },
    )


OFFSET = {1: 3.0, 7: -40.0, 8: 7.0, 13: 100.0}  # of the other theory's isolated atoms, eV
CPU = ("cluster=cpu", *TINY_MODEL)


def other_theory(structures):
    """The same forces, scaled, with energies of another zero."""
    for atoms in structures:
        offset = sum(OFFSET[z] for z in atoms.numbers)
        atoms.info["REF_energy"] = 1.5 * atoms.info["REF_energy"] + offset
        atoms.arrays["REF_forces"] *= 1.5
        if "REF_stress" in atoms.info:
            atoms.info["REF_stress"] *= 1.5
    return structures


def with_two_heads(folder: Path, *more: str) -> Path:
    """The folder, with shards in data/ of the heads emt and other, and the files of these."""
    write(folder / "emt.xyz", emt_structures(12, 4), format="extxyz")
    others = [a for a in other_theory(emt_structures(12, 4, seed=1)) if a.numbers[0] != 13]
    write(folder / "other.xyz", others, format="extxyz")
    files = f"{{emt: {folder}/emt.xyz, other: {folder}/other.xyz}}"
    common = ("data.valid_fraction=0.3", "r_max=4.0")
    run_command("preprocess", f"data.train_file={files}", *common, f"output={folder}/data", *more)
    return folder
