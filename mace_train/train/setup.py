"""Everything a training run is made of, built from its settings and checked before the first step.

shards + statistics -> model -> optimizer, schedule, average -> (resume from a checkpoint).
"""

import logging
from dataclasses import replace
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from mace_train.balance.epoch_plan import EpochPlan
from mace_train.balance.sampler import BinSampler
from mace_train.data.loading.loader import config_types_of, heads_of
from mace_train.data.shards.shard_set import ShardSet
from mace_train.data.statistics import Statistics, open_split
from mace_train.distributed.world import World
from mace_train.errors import InputError
from mace_train.folders import existing_folder, lock_folder, make_folder
from mace_train.model.compile_kernels import prepare
from mace_train.model.mace import MACE, ModelData
from mace_train.ops.backends import announcement
from mace_train.settings import ClusterSettings, LossSettings, TrainSettings
from mace_train.train import checkpoint
from mace_train.train.build_model import build_model
from mace_train.train.checkpoint_manager import CheckpointManager
from mace_train.train.cuda_graphs import (
    GraphedGradient,
    GraphedUpdate,
    check_cuda_graphs,
    cuda_graph,
)
from mace_train.train.ema import EMA
from mace_train.train.fine_tuning import fine_tuned_model
from mace_train.train.gradients import Gradients
from mace_train.train.loss import TERMS
from mace_train.train.lr_schedule import Schedule
from mace_train.train.memory import calibrate_capacity
from mace_train.train.optim import freeze, make_optimizer
from mace_train.train.provenance import write_record
from mace_train.train.run import EpochTotals, Progress, Run, Split
from mace_train.train.stages import stages_of
from mace_train.train.state import resume

LOGGER = logging.getLogger("mace_train")


def set_up(settings: TrainSettings, world: World, shards_in: Path | None = None) -> Run:
    """Build a run, resumed from its last checkpoint if the settings say so.

    ``shards_in`` is a copy of ``settings.data_dir``, if there is one.
    """
    folder = shards_in or existing_folder("data_dir", settings.data_dir)
    statistics = Statistics.read(folder / "statistics.json")
    train, valid = _splits(settings, folder, statistics)
    output = Path(settings.output)
    rules = settings.checkpoints
    manager = CheckpointManager(output / "checkpoints", rules.keep, rules.keep_every)
    _check_new(manager, settings, world)
    if settings.foundation.checkpoint is None:
        model = build_model(settings, statistics)
    else:
        model = fine_tuned_model(settings, statistics, train, manager, world)
        settings = replace(settings, model=model.settings)
    model = model.to(world.device)
    check_heads(settings, model.data)
    choose_kernels(model, settings.cluster, world)
    choose_precision(model, settings, world)
    if settings.cluster.cuda_graphs:
        check_cuda_graphs(model.kernels, world.device)
    compile_kernels(model, world)
    freeze(model, settings.optimizer.frozen())
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    run = Run(
        settings=settings,
        world=world,
        train=train,
        valid=valid,
        model=model,
        gradients=Gradients(trained, world),
        optimizer=make_optimizer(model, settings.optimizer),
        schedule=_schedule(settings),
        ema=EMA(model, settings.ema_decay) if settings.ema else None,
        sampler=BinSampler(train.costs, settings.batching, world.size, world.rank, settings.seed),
        stages=stages_of(settings),
        checkpoint_manager=manager,
        progress=Progress(),
        output=output,
        statistics=statistics,
        epoch_totals=EpochTotals.zero(world.device),
    )
    run.optimizer = run.new_optimizer(run.stage.optimizer)
    if world.broadcast(bool(manager.steps())):
        resume(run)
    elif settings.batching.capacity == "auto":
        run.sampler.use(calibrate_capacity(run))
    if settings.cluster.cuda_graphs:
        run.graphed_gradient = GraphedGradient(
            model, run.trained_parameters, run.gradients, cuda_graph
        )
        run.graphed_update = GraphedUpdate(
            model, run.gradients, run.ema, settings.clip_grad, cuda_graph
        )
    run.progress.n_starts += 1
    _check_same_on_all_ranks(run)
    return run


def _schedule(settings: TrainSettings) -> Schedule:
    """The schedule; a schedule-free optimizer has warm-up alone."""
    scheduler = settings.scheduler
    if settings.optimizer.optimizer == "schedulefree":
        scheduler = replace(scheduler, scheduler="constant")
    return Schedule(scheduler, settings.optimizer.lr, settings.max_num_epochs)


def choose_kernels(model: MACE, settings: ClusterSettings, world: World) -> None:
    """Set the model's kernels and announce them on rank 0; InputError if they cannot run here."""
    line = announcement(settings.kernels, world.device)
    model.kernels = settings.kernels
    if world.is_main:
        LOGGER.info("%s", line)


def choose_precision(model: MACE, settings: TrainSettings, world: World) -> None:
    """Types of matrix products, and what is kept for the backward passes."""
    kind = settings.matmul_dtype
    if kind == "tfloat32" and world.device.type != "cuda":
        raise InputError(
            "matmul_dtype=tfloat32 is a type of NVIDIA GPUs, but the training runs on "
            f"{world.device.type}; use matmul_dtype=default or cluster.device=cuda"
        )
    torch.set_float32_matmul_precision("high" if kind == "tfloat32" else "highest")
    model.multiply_in(torch.bfloat16 if kind == "bfloat16" else None)
    model.checkpoint_activations(settings.activation_checkpointing)
    model.static_shapes = settings.cluster.cuda_graphs


def compile_kernels(model: MACE, world: World) -> None:
    """Local rank 0 compiles what the model needs; the others then find it on disk."""
    if world.local_rank == 0:
        prepare(model, show_progress=world.is_main)
    world.barrier()
    if world.local_rank > 0:
        prepare(model)


def _check_new(manager: CheckpointManager, settings: TrainSettings, world: World) -> None:
    """InputError on all ranks if ``output`` holds a training that is not to be continued."""
    held = world.broadcast(bool(manager.steps()))
    if held and not (settings.restart_latest or world.restarted):
        raise InputError(
            f"output={settings.output} already holds a training ({manager.path('last')}); add "
            "restart_latest=true to continue it, or choose another output"
        )


def _splits(
    settings: TrainSettings, folder: Path, statistics: Statistics
) -> tuple[Split, Split | None]:
    names = list(statistics.heads)
    train = _split(settings, open_split(folder, "train"), names)
    _check_loss(settings.loss, train)
    if "valid" not in statistics.splits:
        LOGGER.warning("%s has no valid/: no validation, best is the last epoch", folder)
        return train, None
    return train, _split(settings, open_split(folder, "valid"), names)


def _split(settings: TrainSettings, shards: ShardSet, heads: list[str]) -> Split:
    kinds, head_of = config_types_of(shards), heads_of(shards, heads, str(shards.folder))
    by_head = settings.loss.weights_by_head()
    weight_of_head = torch.tensor([by_head.get(name, 1.0) for name in heads], dtype=torch.float64)
    weights = settings.loss.weights_by_type()
    weight_of_kind = torch.tensor([weights.get(name, 1.0) for name in kinds.names])
    return Split(
        shards=shards,
        config_types=kinds.names,
        config_type_of=kinds.index_of,
        weight_of=weight_of_kind.to(torch.float64)[kinds.index_of] * weight_of_head[head_of],
        head_of=head_of,
    )


def check_heads(settings: TrainSettings, data: ModelData) -> None:
    """InputError for settings of a head that the model does not have."""
    named = {f"loss.head_weights.{name}": name for name in settings.loss.weights_by_head()}
    if settings.checkpoints.head is not None:
        named["checkpoints.head"] = settings.checkpoints.head
    for where, name in named.items():
        if name not in data.head_names:
            heads = ", ".join(data.head_names)
            raise InputError(f"{where}: no head {name!r}; the heads of the data are: {heads}")


def _check_loss(loss: LossSettings, train: Split) -> None:
    """InputError for a loss that nothing contributes to; a warning for a term without labels."""
    unknown = sorted(loss.weights_by_type().keys() - set(train.config_types))
    if unknown:
        raise InputError(
            f"loss.config_type_weights names {', '.join(unknown)}, which no training structure "
            f"has; the config_types are: {', '.join(train.config_types)}"
        )
    counts = weighted_labels(loss, train)
    if not any(counts.values()):
        raise InputError(
            f"nothing to train on: of the terms of the loss ({', '.join(counts)}) no training "
            "structure with a weight above 0 has a label; change the weights of the loss, or "
            "preprocess again with the right names of the labels"
        )
    for name, n_labelled in counts.items():
        if n_labelled == 0:
            LOGGER.warning("loss.%s_weight has no effect: no training structure has a label", name)


def weighted_labels(loss: LossSettings, train: Split) -> dict[str, int]:
    """Training structures with a weight and a label, for every term that has a weight."""
    weighted = train.weight_of.numpy() > 0
    labelled = {
        "energy": np.ones(len(weighted), dtype=bool),
        "forces": train.shards.has_forces,
        "stress": train.shards.has_stress,
        "virials": train.shards.has_stress,
    }
    return {
        name: int((labelled[name] & weighted).sum())
        for name in TERMS
        if getattr(loss, f"{name}_weight") > 0
    }


def _check_same_on_all_ranks(run: Run) -> None:
    """InputError if ranks have read different data or checkpoints."""
    facts = {
        "training data": run.statistics.dataset_hash,
        "validation data": None if run.valid is None else run.valid.shards.dataset_hash,
        "plan": (
            run.epoch_plan or EpochPlan.full(run.sampler, run.progress.epoch + 1)
        ).plan.fingerprint,
        "last step": run.progress.step,
        "weights": checkpoint.checksum(_on_host(run.model), ""),
    }
    of_main = run.world.broadcast(facts)
    different = [name for name, value in facts.items() if of_main[name] != value]
    run.world.raise_on_all_ranks(
        f"rank {run.world.rank} has another {', '.join(different)} than rank 0; data_dir and "
        "output must lie on a file system that all nodes share, or be the same copy on each"
        if different
        else None
    )


def _on_host(model: MACE) -> dict[str, Tensor]:
    return {name: value.detach().cpu() for name, value in model.named_parameters()}


def start_output(run: Run) -> IO[str]:
    """Make the output folder with the resolved settings, locked for this run (rank 0)."""
    make_folder("output", run.output / "checkpoints")
    lock = lock_folder("output", run.output)
    write_record(run)
    return lock
