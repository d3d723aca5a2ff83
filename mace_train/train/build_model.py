"""A model with random weights: architecture by the settings, E0s and scales by the data."""

import logging

import torch
from ase.data import chemical_symbols

from mace_train.data.statistics import HeadStatistics, Statistics
from mace_train.errors import InputError
from mace_train.model.mace import MACE, Head, ModelData
from mace_train.settings import ModelSettings, TrainSettings

LOGGER = logging.getLogger("mace_train")


def build_model(settings: TrainSettings, statistics: Statistics) -> MACE:
    """A model with random weights from ``settings.seed``, in ``settings.default_dtype``."""
    model_settings = settings.model
    if model_settings.r_max not in (None, statistics.r_max):
        raise InputError(
            f"model.r_max={model_settings.r_max} but the neighbour lists in {settings.data_dir} "
            f"were made with r_max={statistics.r_max}; leave model.r_max out, or preprocess again "
            f"with r_max={model_settings.r_max}"
        )
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
    """Scale and shift of the interaction energy per atom, as mace-torch chooses them."""
    if settings.scaling == "no_scaling":
        return 1.0, 0.0
    shift = statistics.mean_energy_per_atom if settings.model == "ScaleShiftMACE" else 0.0
    if settings.scaling == "std_scaling":
        scale, name = statistics.std_energy_per_atom, "standard deviation of the energy per atom"
    else:
        scale, name = statistics.rms_forces, "RMS of the forces"
    if not scale > 0:
        raise InputError(
            f"model.scaling={settings.scaling}: the {name} of the training data is {scale}; "
            "use model.scaling=no_scaling, or add data that have such labels"
        )
    return scale, shift
