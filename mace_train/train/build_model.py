"""The model that a run trains: new or fine-tuned, on the device, its kernels compiled.

Architecture by the settings, E0s and scales by the data.
"""

import logging
from dataclasses import replace

import torch
from ase.data import chemical_symbols

from mace_train.checks import check_head
from mace_train.data.statistics import HeadStatistics, Statistics
from mace_train.distributed.world import World
from mace_train.errors import InputError
from mace_train.model.compile_kernels import compile_kernels
from mace_train.model.mace import MACE, Head, ModelData
from mace_train.ops.backends import describe_choice
from mace_train.settings import ClusterSettings, ModelSettings, TrainSettings
from mace_train.settings.inputs import as_read
from mace_train.settings.model import ATTENTION, NONLINEAR
from mace_train.train.checkpoint_manager import CheckpointManager
from mace_train.train.cuda_graphs import check_cuda_graphs
from mace_train.train.fine_tuning import fine_tuned_model
from mace_train.train.optim import freeze, lr_factors
from mace_train.train.splits import Split, warn_of_unused_inputs

LOGGER = logging.getLogger("mace_train")
SMALLEST_SCALE = 1e-6  # eV/Å or eV: less is the rounding of labels that are 0, or equal


def make_model(
    settings: TrainSettings,
    statistics: Statistics,
    train: Split,
    manager: CheckpointManager,
    world: World,
    valid: Split | None = None,
) -> MACE:
    """The model to train, the same on all ranks, with its frozen parameters marked.

    Fine-tuning takes more than the ``statistics``: the ``train`` split, which the model is compared
    on, and the ``manager``, whose newest checkpoint has the E0s of a resumed run. Raises
    ``InputError`` for settings that the data or this machine rule out.
    """
    if settings.foundation.checkpoint is None:
        train.shards.check_inputs(settings.model.inputs())
        model = _new_model(settings, statistics)
    else:
        model = fine_tuned_model(settings, statistics, train, manager, world)
    if valid is not None:
        valid.shards.check_inputs(model.inputs)
    if world.is_main:
        warn_of_unused_inputs(model.inputs, train)
    model = model.to(world.device)
    _check_heads(settings, tuple(statistics.heads))
    lr_factors(model, settings.optimizer)
    freeze(model, settings.optimizer.frozen())
    choose_kernels(model, settings.cluster, world)
    _choose_precision(model, settings, world)
    if settings.cluster.cuda_graphs:
        check_cuda_graphs(model.kernels, world.device)
    compile_kernels_on_all_ranks(model, world)
    return model


def _new_model(settings: TrainSettings, statistics: Statistics) -> MACE:
    """A model with random weights from ``settings.seed``, in ``settings.default_dtype``."""
    model_settings = settings.model
    if model_settings.embedding_specs is not None:
        specs = as_read(model_settings.embedding_specs, statistics.inputs)
        model_settings = replace(model_settings, embedding_specs=specs)
    if model_settings.r_max not in (None, statistics.r_max):
        raise InputError(
            f"model.r_max={model_settings.r_max} but the neighbour lists in {settings.data_dir} "
            f"were made with r_max={statistics.r_max}; leave model.r_max out, or preprocess again "
            f"with r_max={model_settings.r_max}"
        )
    _warn_of_steps(model_settings)
    _warn_of_wide_edges(model_settings)
    data = ModelData(
        r_max=statistics.r_max,
        atomic_numbers=tuple(statistics.atomic_numbers),
        avg_num_neighbors=statistics.avg_num_neighbors,
        heads=tuple(
            _head(name, model_settings, statistics.atomic_numbers, of_head)
            for name, of_head in statistics.heads.items()
        ),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return MACE(model_settings, data).to(getattr(torch, settings.default_dtype))


def _warn_of_steps(settings: ModelSettings) -> None:
    """Log which interactions make energies jump at the cutoff: mace-torch's default does it too."""
    blocks = sorted({NONLINEAR, ATTENTION} & set(settings.blocks()))
    if settings.apply_cutoff and blocks:
        LOGGER.warning(
            "model.apply_cutoff=true with %s: the weights of edges do not vanish at the cutoff, so "
            "energies jump where a neighbour comes or goes; model.apply_cutoff=false is smooth",
            " and ".join(blocks),
        )


def _warn_of_wide_edges(settings: ModelSettings) -> None:
    """Log edge_irreps with more channels than the nodes have, which mace-torch takes as well."""
    width = settings.irreps_of_edges(settings.num_interactions - 1).mul
    if width > settings.num_channels:
        LOGGER.warning(
            "model.edge_irreps=%s: messages of %d channels, made of %d of the nodes, which takes "
            "more time and memory than null; published models have fewer on edges than on nodes",
            *(settings.edge_irreps, width, settings.num_channels),
        )


def _head(
    name: str, settings: ModelSettings, atomic_numbers: list[int], statistics: HeadStatistics
) -> Head:
    """E0s, scale and shift of one head; E0 is 0 for an element that its structures lack."""
    lacking = [chemical_symbols[z] for z in atomic_numbers if z not in statistics.E0s]
    if lacking:
        LOGGER.info("head %s has no %s; their E0 in it is 0", name, ", ".join(lacking))
    E0s = tuple(statistics.E0s.get(z, 0.0) for z in atomic_numbers)
    return Head(E0s, *_scale_shift(settings, statistics), name)


def _scale_shift(settings: ModelSettings, statistics: HeadStatistics) -> tuple[float, float]:
    """Scale and shift of the interaction energy per atom, as mace-torch chooses them.

    Where the labels give no scale, as RMS forces of energies alone, the other one is taken, or 1.
    """
    if settings.scaling == "no_scaling":
        return 1.0, 0.0
    shift = statistics.mean_energy_per_atom if settings.model == "ScaleShiftMACE" else 0.0
    found = {
        "rms_forces_scaling": ("RMS of the forces", statistics.rms_forces, "eV/Å"),
        "std_scaling": (
            "standard deviation of the energy per atom",
            statistics.std_energy_per_atom,
            "eV",
        ),
    }
    wanted, scale, unit = found.pop(settings.scaling)
    if scale > SMALLEST_SCALE:
        return scale, shift
    other, scale_of_other, unit_of_other = next(iter(found.values()))
    instead = scale_of_other if scale_of_other > SMALLEST_SCALE else 1.0
    LOGGER.info(
        "model.scaling=%s: the %s of the training data is %g %s, for want of such labels or of "
        "differences between them; interaction energies are scaled by %s",
        settings.scaling,
        wanted,
        scale,
        unit,
        "1 eV" if instead == 1.0 else f"the {other}, {instead:.6g} {unit_of_other}",
    )
    return instead, shift


def _check_heads(settings: TrainSettings, heads: tuple[str, ...]) -> None:
    """InputError for settings of a head that the data do not have."""
    named = {f"loss.head_weights.{name}": name for name in settings.loss.weights_by_head()}
    for name in settings.batching.ratios_by_head():
        named[f"batching.head_sampling_ratios.{name}"] = name
    if settings.checkpoints.head is not None:
        named["checkpoints.head"] = settings.checkpoints.head
    for where, name in named.items():
        check_head(where, name, heads, "the data")


def choose_kernels(model: MACE, settings: ClusterSettings, world: World) -> None:
    """Set the model's kernels and log them on rank 0; InputError if they cannot run here."""
    line = describe_choice(settings.kernels, world.device)
    model.kernels = settings.kernels
    if world.is_main:
        LOGGER.info("%s", line)


def _choose_precision(model: MACE, settings: TrainSettings, world: World) -> None:
    """Types of matrix products, and what is kept for the backward passes."""
    matmul_dtype = settings.matmul_dtype
    if matmul_dtype == "tfloat32" and world.device.type != "cuda":
        raise InputError(
            "matmul_dtype=tfloat32 is a type of NVIDIA GPUs, but the training runs on "
            f"{world.device.type}; use matmul_dtype=default or cluster.device=cuda"
        )
    torch.set_float32_matmul_precision("high" if matmul_dtype == "tfloat32" else "highest")
    model.set_matmul_dtype(torch.bfloat16 if matmul_dtype == "bfloat16" else None)
    model.checkpoint_activations(settings.activation_checkpointing)
    model.static_shapes = settings.cluster.cuda_graphs


def compile_kernels_on_all_ranks(model: MACE, world: World) -> None:
    """Local rank 0 compiles what the model needs; the others then find it on disk."""
    if world.local_rank == 0:
        compile_kernels(model, show_progress=world.is_main)
    world.barrier()
    if world.local_rank > 0:
        compile_kernels(model)
