"""Everything a training run is made of, built from its settings and checked before the first step.

shards + statistics -> model -> optimizer, schedule, average -> (resume from a checkpoint).
"""

import inspect
import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import nn

from mace_train.balance.sampler import BinSampler
from mace_train.checks import existing_folder, lock_folder, make_folder
from mace_train.data.loading import kinds_of
from mace_train.data.shards import ShardSet
from mace_train.data.statistics import Statistics, open_split
from mace_train.errors import InputError
from mace_train.model.mace import MACE, ModelData
from mace_train.model.prepare import prepare
from mace_train.ops.methods import announcement
from mace_train.settings import ClusterSettings, LossSettings, ModelSettings, TrainSettings
from mace_train.train.loss import TERMS, needs_stress
from mace_train.train.optim import Average, Schedule, make_optimizer
from mace_train.train.run import ForceField, Progress, Run, Split
from mace_train.train.state import resume
from mace_train.world import World

LOGGER = logging.getLogger("mace_train")


def set_up(settings: TrainSettings, world: World) -> Run:
    """Build a run, resumed from its last checkpoint if the settings say so."""
    folder = existing_folder("data_dir", settings.data_dir)
    statistics = Statistics.read(folder / "statistics.json")
    train, valid = _splits(settings, folder, statistics)
    output = Path(settings.output)
    _check_new(output, settings, world)
    model = new_model(settings, statistics).to(world.device)
    choose_kernels(model, settings.cluster, world)
    compile_kernels(model, world)
    force_field: nn.Module = ForceField(model, needs_stress(settings.loss))
    if world.size > 1:
        force_field = _distributed(force_field, world)
    sampler = BinSampler(train.costs, settings.batching, world.size, world.rank, settings.seed)
    run = Run(
        settings=settings,
        world=world,
        train=train,
        valid=valid,
        model=model,
        force_field=force_field,
        optimizer=make_optimizer(model, settings.optimizer),
        schedule=Schedule(settings.scheduler, settings.optimizer.lr, settings.max_num_epochs),
        average=Average(model, settings.ema_decay) if settings.ema else None,
        sampler=sampler,
        progress=Progress(),
        output=output,
        statistics=statistics,
    )
    if world.broadcast(settings.restart_latest and run.last_checkpoint.exists()):
        resume(run)
    _check_same_on_all_ranks(run)
    return run


def choose_kernels(model: MACE, settings: ClusterSettings, world: World) -> None:
    """Set the model's kernels and announce them on rank 0; InputError if they cannot run here."""
    line = announcement(settings.kernels, world.device)
    model.kernels = settings.kernels
    if world.is_main:
        LOGGER.info("%s", line)


def compile_kernels(model: MACE, world: World) -> None:
    """Local rank 0 compiles what the model needs; the others then find it on disk."""
    if world.local_rank == 0:
        prepare(model, show_progress=world.is_main)
    world.barrier()
    if world.local_rank > 0:
        prepare(model)


def _distributed(module: nn.Module, world: World) -> nn.Module:
    """The module under DDP; its buffers are constants, equal on all ranks, and never sent."""
    wrapper = nn.parallel.DistributedDataParallel
    new_name = "forward_sync_buffers"  # which newer releases of torch want instead
    known = new_name in inspect.signature(wrapper).parameters
    options: dict[str, Any] = {new_name if known else "broadcast_buffers": False}
    if world.device.type == "cuda":
        options["device_ids"] = [world.device.index]
    return wrapper(module, **options)


def _check_new(output: Path, settings: TrainSettings, world: World) -> None:
    """InputError on all ranks if ``output`` holds a training that is not to be continued."""
    last = output / "checkpoints" / "last.safetensors"
    if world.broadcast(last.exists()) and not settings.restart_latest:
        raise InputError(
            f"output={output} already holds a training ({last}); add restart_latest=true to "
            "continue it, or choose another output"
        )


def new_model(settings: TrainSettings, statistics: Statistics) -> MACE:
    """A model with random weights from ``settings.seed``, in ``settings.default_dtype``."""
    if len(statistics.heads) > 1:
        raise InputError(
            f"the data have the heads {', '.join(statistics.heads)} and models have one; "
            "preprocess the structures of one head"
        )
    model_settings = settings.model
    if model_settings.r_max not in (None, statistics.r_max):
        raise InputError(
            f"model.r_max={model_settings.r_max} but the neighbour lists in {settings.data_dir} "
            f"were made with r_max={statistics.r_max}; leave model.r_max out, or preprocess again "
            f"with r_max={model_settings.r_max}"
        )
    scale, shift = _scale_shift(model_settings, statistics)
    data = ModelData(
        r_max=statistics.r_max,
        atomic_numbers=tuple(statistics.atomic_numbers),
        E0s=tuple(statistics.E0s[z] for z in statistics.atomic_numbers),
        avg_num_neighbors=statistics.avg_num_neighbors,
        scale=scale,
        shift=shift,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return MACE(model_settings, data).to(getattr(torch, settings.default_dtype))


def _scale_shift(settings: ModelSettings, statistics: Statistics) -> tuple[float, float]:
    """Scale and shift of the interaction energy per atom, as mace-torch chooses them."""
    shift = statistics.mean_energy_per_atom if settings.model == "ScaleShiftMACE" else 0.0
    if settings.scaling == "no_scaling":
        return 1.0, 0.0
    if settings.scaling == "std_scaling":
        scale, name = statistics.std_energy_per_atom, "standard deviation of the energy per atom"
    else:
        scale, name = statistics.rms_forces, "RMS of the forces"
    if not scale > 0:
        raise InputError(
            f"model.scaling={settings.scaling}: the {name} of the training data is {scale}; "
            "use model.scaling=no_scaling or add data that it can be taken from"
        )
    return scale, shift


def _splits(
    settings: TrainSettings, folder: Path, statistics: Statistics
) -> tuple[Split, Split | None]:
    train = _split(settings, open_split(folder, "train"))
    _check_loss(settings.loss, train)
    if "valid" not in statistics.splits:
        LOGGER.warning("%s has no valid/: no validation, best is the last epoch", folder)
        return train, None
    return train, _split(settings, open_split(folder, "valid"))


def _split(settings: TrainSettings, shards: ShardSet) -> Split:
    kinds = kinds_of(shards)
    weights = settings.loss.weights_by_type()
    weight_of_kind = torch.tensor([weights.get(name, 1.0) for name in kinds.names])
    return Split(
        shards=shards,
        config_types=kinds.names,
        config_type_of=kinds.index_of,
        weight_of=weight_of_kind.to(torch.float64)[kinds.index_of],
    )


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
        "plan": run.sampler.plan(run.progress.epoch + 1).fingerprint,
        "last epoch": run.progress.epoch,
    }
    for rank, others in enumerate(run.world.gather_all(facts)):
        different = [name for name, value in facts.items() if others[name] != value]
        if different:
            raise InputError(
                f"rank {rank} has another {', '.join(different)} than rank {run.world.rank}; "
                "data_dir and output must lie on a file system that all nodes share, or be "
                "the same copy on each"
            )


def start_output(run: Run) -> IO[str]:
    """Make the output folder with the resolved settings, locked for this run (rank 0)."""
    make_folder("output", run.output / "checkpoints")
    lock = lock_folder("output", run.output)
    text = json.dumps(asdict(run.settings), indent=1)
    (run.output / "settings.json").write_text(text + "\n")
    return lock
