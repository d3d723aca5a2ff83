"""Everything a training run is made of, built from its settings and checked before the first step.

shards + statistics -> model -> optimizer, schedule, average -> (resume from a checkpoint).
"""

import inspect
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mace_train.balance.costs import Costs
from mace_train.balance.sampler import BinSampler
from mace_train.checks import existing_folder
from mace_train.data.graph import Graph
from mace_train.data.loading import kinds_of
from mace_train.data.shards import ShardSet
from mace_train.data.statistics import Statistics, open_split
from mace_train.errors import InputError
from mace_train.model.derivatives import Prediction, predict
from mace_train.model.mace import MACE, ModelData
from mace_train.ops.methods import announcement
from mace_train.settings import ClusterSettings, ModelSettings, TrainSettings
from mace_train.train import checkpoint
from mace_train.train.loss import needs_stress
from mace_train.train.optim import Average, Schedule, make_optimizer
from mace_train.world import World

LOGGER = logging.getLogger("mace_train")


@dataclass
class Split:
    """One part of the data with what training looks up by structure id."""

    shards: ShardSet
    config_types: list[str]
    config_type_of: Tensor  # [n] int64, index into config_types
    weight_of: Tensor  # [n] float64, weight by config_type

    @property
    def costs(self) -> Costs:
        """Atoms and edges of every structure."""
        return Costs(self.shards.n_atoms.astype(np.int64), self.shards.n_edges.astype(np.int64))


@dataclass
class Progress:
    """How far a run is: all that is not a tensor and must survive a restart."""

    epoch: int = -1  # last completed epoch, from 0
    step: int = 0  # optimizer steps so far
    best_epoch: int = -1
    best_loss: float | None = None  # validation loss of the best checkpoint
    bad_validations: int = 0  # validations since the best one
    stopped: bool = False  # early stopping has ended the run


class ForceField(nn.Module):
    """The model with its derivatives as one module, which is what DDP wraps."""

    def __init__(self, model: MACE, stress: bool) -> None:
        super().__init__()
        self.model = model
        self.stress = stress

    def forward(self, graph: Graph) -> Prediction:
        """Energy, forces and, where the loss needs it, stress; differentiable in the weights."""
        return predict(self.model, graph, stress=self.stress, create_graph=True)


@dataclass
class Run:
    """The parts of a training run on one rank."""

    settings: TrainSettings
    world: World
    train: Split
    valid: Split | None
    model: MACE
    force_field: nn.Module  # ForceField, wrapped by DDP where there are several ranks
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    average: Average | None
    sampler: BinSampler
    progress: Progress
    output: Path
    statistics: Statistics
    last_errors: str | None = None  # RMSEs of the last validation, for people to watch

    @property
    def dtype(self) -> torch.dtype:
        """Type of weights and features."""
        return getattr(torch, self.settings.default_dtype)


def set_up(settings: TrainSettings, world: World) -> Run:
    """Build a run, resumed from its last checkpoint if the settings say so."""
    folder = existing_folder("data_dir", settings.data_dir)
    statistics = Statistics.read(folder / "statistics.json")
    train, valid = _splits(settings, folder, statistics)
    output = _output(settings)
    model = new_model(settings, statistics).to(world.device)
    choose_kernels(model, settings.cluster, world)
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
    last = output / "checkpoints" / "last.safetensors"
    if settings.restart_latest and last.exists():
        _resume(run, last)
    world.barrier()  # every rank has looked for checkpoints before rank 0 writes one
    return run


def choose_kernels(model: MACE, settings: ClusterSettings, world: World) -> None:
    """Set the model's kernels and announce them on rank 0; InputError if they cannot run here."""
    line = announcement(settings.kernels, world.device)
    model.kernels = settings.kernels
    if world.is_main:
        LOGGER.info("%s", line)


def _distributed(module: nn.Module, world: World) -> nn.Module:
    """The module under DDP; its buffers are constants, equal on all ranks, and never sent."""
    wrapper = nn.parallel.DistributedDataParallel
    new_name = "forward_sync_buffers"  # which newer releases of torch want instead
    known = new_name in inspect.signature(wrapper).parameters
    options: dict[str, Any] = {new_name if known else "broadcast_buffers": False}
    if world.device.type == "cuda":
        options["device_ids"] = [world.device.index]
    return wrapper(module, **options)


def new_model(settings: TrainSettings, statistics: Statistics) -> MACE:
    """A model with random weights from ``settings.seed``, in ``settings.default_dtype``."""
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
    if "valid" not in statistics.splits:
        LOGGER.warning("%s has no valid/: no validation, best is the last epoch", folder)
        return train, None
    return train, _split(settings, open_split(folder, "valid"))


def _split(settings: TrainSettings, shards: ShardSet) -> Split:
    kinds = kinds_of(shards)
    weights = settings.loss.config_type_weights
    weight_of_kind = torch.tensor([weights.get(name, 1.0) for name in kinds.names])
    return Split(
        shards=shards,
        config_types=kinds.names,
        config_type_of=kinds.index_of,
        weight_of=weight_of_kind.to(torch.float64)[kinds.index_of],
    )


def _output(settings: TrainSettings) -> Path:
    output = Path(settings.output)
    last = output / "checkpoints" / "last.safetensors"
    if last.exists() and not settings.restart_latest:
        raise InputError(
            f"output={output} already holds a training ({last}); add restart_latest=true to "
            "continue it, or choose another output"
        )
    return output


def start_output(run: Run) -> None:
    """Make the output folder with the resolved settings (rank 0)."""
    (run.output / "checkpoints").mkdir(parents=True, exist_ok=True)
    text = json.dumps(asdict(run.settings), indent=1)
    (run.output / "settings.json").write_text(text + "\n")


def save_last(run: Run) -> None:
    """Write checkpoints/last.safetensors: all that a resumed run needs."""
    tensors = checkpoint.with_prefix("model.", dict(run.model.named_parameters()))
    if run.average is not None:
        tensors |= checkpoint.with_prefix("average.", run.average.shadow)
    tensors |= checkpoint.optimizer_tensors(run.optimizer, run.model)
    header = _header(run) | {
        "schedule": run.schedule.state_dict(),
        "average_updates": run.average.n_updates if run.average is not None else 0,
    }
    checkpoint.save(run.output / "checkpoints" / "last.safetensors", tensors, header)


def save_best(run: Run) -> None:
    """Write checkpoints/best.safetensors: the weights that were just validated."""
    tensors: dict[str, Tensor] = dict(run.model.named_parameters())
    if run.average is not None:
        tensors = run.average.shadow
    path = run.output / "checkpoints" / "best.safetensors"
    checkpoint.save(path, checkpoint.with_prefix("model.", tensors), _header(run))


def _header(run: Run) -> dict[str, Any]:
    return {
        **checkpoint.model_header(run.model),
        "default_dtype": run.settings.default_dtype,
        "progress": asdict(run.progress),
        "dataset_hash": run.statistics.dataset_hash,
        "settings": asdict(run.settings),
    }


def _resume(run: Run, path: Path) -> None:
    """Continue from ``path`` exactly; the data and the model must be those it was made with."""
    tensors, header = checkpoint.read(path)
    if header["dataset_hash"] != run.statistics.dataset_hash:
        raise InputError(
            f"{path} was trained on other data than {run.settings.data_dir}; "
            "choose another output to train on this data"
        )
    if header["default_dtype"] != run.settings.default_dtype:
        raise InputError(
            f"{path} was trained with default_dtype={header['default_dtype']}, "
            f"not {run.settings.default_dtype}"
        )
    checkpoint.load_parameters(run.model, tensors, "model.", path)
    checkpoint.load_optimizer(run.optimizer, run.model, tensors)
    if run.average is not None:
        averaged = {
            n.removeprefix("average."): t for n, t in tensors.items() if n.startswith("average.")
        }
        source = averaged or dict(run.model.named_parameters())
        run.average.shadow = {
            name: source[name].detach().clone().to(run.world.device) for name in run.average.shadow
        }
        run.average.n_updates = header["average_updates"]
    run.schedule.load_state_dict(header["schedule"])
    run.progress = Progress(**header["progress"])
    LOGGER.info("resumed from %s after epoch %d", path, run.progress.epoch + 1)
