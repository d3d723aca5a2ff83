"""A training run, built from its settings and checked before the first step.

shards and statistics -> model -> updater and bins -> (newest checkpoint) -> run
"""

import logging
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import IO

from torch import Tensor

from mace_train.atomic_files import remove_leftovers
from mace_train.balance.epoch_plan import EpochPlan
from mace_train.balance.head_sampling import Heads
from mace_train.balance.sampler import BinSampler
from mace_train.data.statistics import Statistics
from mace_train.distributed.world import World
from mace_train.errors import InputError
from mace_train.folders import existing_folder, lock_folder, make_folder
from mace_train.model.mace import MACE
from mace_train.settings import TrainSettings
from mace_train.train import checkpoint
from mace_train.train.build_model import make_model
from mace_train.train.checkpoint_manager import CheckpointManager
from mace_train.train.cuda_graphs import cuda_graph
from mace_train.train.memory import calibrate_capacity
from mace_train.train.provenance import write_record
from mace_train.train.run import EpochTotals, Progress, Run
from mace_train.train.splits import Split, open_splits
from mace_train.train.stages import stages_of
from mace_train.train.state import resume
from mace_train.train.updater import Updater

LOGGER = logging.getLogger("mace_train")


def set_up(settings: TrainSettings, world: World, shards_in: Path | None = None) -> Run:
    """The run of ``settings``, resumed from its newest checkpoint if it has one.

    ``shards_in`` is a copy of ``settings.data_dir``, if there is one. Raises ``InputError`` for
    settings, data or an output folder that do not fit together.
    """
    folder = shards_in or existing_folder("data_dir", settings.data_dir)
    statistics = Statistics.read(folder / "statistics.json")
    train, valid = open_splits(folder, statistics, settings)
    manager = CheckpointManager(
        Path(settings.output) / "checkpoints",
        settings.checkpoints.keep,
        settings.checkpoints.keep_every,
    )
    _check_output(settings, manager, world)
    model = make_model(settings, statistics, train, manager, world, valid)
    return make_run(model, settings, statistics, train, valid, manager, world)


def make_run(
    model: MACE,
    settings: TrainSettings,
    statistics: Statistics,
    train: Split,
    valid: Split | None,
    manager: CheckpointManager,
    world: World,
) -> Run:
    """The run that trains ``model``, resumed from the newest checkpoint of ``manager``.

    Its settings name the architecture of the model, which fine-tuning takes from a checkpoint.
    """
    settings = replace(settings, model=model.settings)
    stages = stages_of(settings)
    heads = Heads(tuple(statistics.heads), train.head_of)
    run = Run(
        settings=settings,
        world=world,
        train=train,
        valid=valid,
        model=model,
        updater=Updater(model, settings, stages[0].optimizer, world),
        sampler=BinSampler(
            train.costs, settings.batching, world.size, world.rank, settings.seed, heads
        ),
        stages=stages,
        checkpoint_manager=manager,
        progress=Progress(),
        output=Path(settings.output),
        statistics=statistics,
        epoch_totals=EpochTotals.zero(world.device),
    )
    if world.broadcast(bool(manager.steps())):
        resume(run)
    elif settings.batching.capacity == "auto":
        run.sampler.use(calibrate_capacity(run))
    if settings.cluster.cuda_graphs:
        run.updater.capture_graphs(cuda_graph)
    run.progress.n_starts += 1
    _check_same_on_all_ranks(run)
    return run


def _check_output(settings: TrainSettings, manager: CheckpointManager, world: World) -> None:
    """InputError on all ranks if ``output`` holds a training that is not to be continued."""
    held = world.broadcast(bool(manager.steps()))
    if held and not (settings.restart_latest or world.restarted):
        raise InputError(
            f"output={settings.output} already holds a training ({manager.path('last')}); add "
            "restart_latest=true to continue it, or choose another output"
        )


def _check_same_on_all_ranks(run: Run) -> None:
    """InputError if ranks have read different data or checkpoints."""
    epoch_plan = run.epoch_plan or EpochPlan.full(run.sampler, run.progress.epoch + 1)
    facts = {
        "training data": run.statistics.dataset_hash,
        "validation data": run.valid_hash,
        "plan": epoch_plan.plan.fingerprint,
        "last step": run.progress.step,
        "weights": checkpoint.checksum(_on_host(run.model), ""),
    }
    of_main = run.world.broadcast(facts)
    different = [name for name, value in facts.items() if of_main[name] != value]
    error = InputError(
        f"rank {run.world.rank} has another {', '.join(different)} than rank 0; data_dir and "
        "output must lie on a file system that all nodes share, or be the same copy on each"
    )
    run.world.raise_on_all_ranks(error if different else None)


def _on_host(model: MACE) -> dict[str, Tensor]:
    return {name: value.detach().cpu() for name, value in model.named_parameters()}


def start_output(run: Run) -> IO[str]:
    """Make the output folder with the resolved settings, locked for this run (rank 0)."""
    make_folder("output", run.output / "checkpoints")
    with ExitStack() as stack:
        lock = stack.enter_context(lock_folder("output", run.output))
        remove_leftovers(run.output, locked=True)
        run.checkpoint_manager.tidy(run.progress.to_header())
        write_record(run)
        stack.pop_all()  # held until the run ends
    return lock
