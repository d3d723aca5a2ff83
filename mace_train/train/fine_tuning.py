"""Fine-tuning: a trained model -> the elements, heads and E0s of the data -> training starts.

Every head of the data begins with the readouts, scale and shift of a head of the model, so before
the first step it gives the forces of that and, with its E0s, the energies. This is checked and
logged. Other heads of the model are left out, or kept behind those of the data.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols
from numpy.typing import NDArray
from torch import Tensor

from mace_train.balance.costs import Costs
from mace_train.checks import check_head
from mace_train.data.loading.loader import batches
from mace_train.data.loading.packed import on_device
from mace_train.data.statistics import Statistics
from mace_train.data.values import has_weight
from mace_train.distributed.world import World
from mace_train.errors import InputError
from mace_train.foundation_models.lookup import imported_checkpoint, named
from mace_train.model.derivatives import Prediction, predict
from mace_train.model.lora import add_low_rank
from mace_train.model.mace import MACE, Head, ModelData
from mace_train.model.surgery import with_elements, with_embedding_specs, with_heads
from mace_train.settings import TrainSettings
from mace_train.settings.inputs import as_read
from mace_train.train.checkpoint import load_model
from mace_train.train.checkpoint_manager import CheckpointManager
from mace_train.train.splits import Split
from mace_train.train.validation import evaluation_bins

LOGGER = logging.getLogger("mace_train")

MOST_STRUCTURES = 10_000  # that E0s are estimated from
LARGEST_SHIFT = 1.0  # eV, between E0s of the data and of the model, without a warning
N_COMPARED = 8  # structures, before the first step
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}  # of forces and energies, relative


def fine_tuned_model(
    settings: TrainSettings,
    statistics: Statistics,
    train: Split,
    manager: CheckpointManager,
    world: World,
) -> MACE:
    """The model of ``settings.foundation`` for the elements and heads of the data.

    A run that is to be resumed takes the E0s of its own checkpoint, and is not checked again.
    """
    given = settings.foundation
    dtype = getattr(torch, settings.default_dtype)
    path = Path(given.checkpoint or "")
    by_name = named("foundation.checkpoint", str(path))
    setting = "foundation.accept_licence"  # one rank downloads and imports it
    world.broadcast_result(lambda: str(imported_checkpoint(path, given.accept_licence, setting)))
    accepted = None if by_name is None else by_name.licence
    origin = load_model(path, dtype, accepted)[0]
    sources = _sources(settings, tuple(statistics.heads), origin.data.head_names)
    origin.to(world.device).kernels = settings.cluster.kernels
    if origin.data.r_max != statistics.r_max:
        raise InputError(
            f"foundation.checkpoint={given.checkpoint} has r_max={origin.data.r_max}, but the "
            f"neighbour lists in {settings.data_dir} were made with r_max={statistics.r_max}; "
            f"preprocess again with r_max={origin.data.r_max}"
        )
    more = origin.data.atomic_numbers if given.elements == "all" else ()
    train.shards.check_inputs(origin.inputs)
    if origin.inputs:
        specs = as_read(origin.settings.embedding_specs, statistics.inputs, override=True)
        origin = with_embedding_specs(origin, specs)
    model = with_elements(origin, [*statistics.atomic_numbers, *more])
    earlier = world.broadcast_result(lambda: _earlier_data(manager))
    heads = [] if earlier is None else list(ModelData.from_dict(earlier).heads)
    if [head.name for head in heads] != [*sources]:  # of a resumed run: refused by what follows
        heads = _heads(settings, statistics, origin, model, sources, train, world)
    model = with_heads(model, heads, [*sources.values()])
    if earlier is None:
        _log_elements(origin, model, settings, world)
        _log_heads(sources, tuple(statistics.heads), origin, world)
        _compare(origin, model, [*sources.values()], train, world)
    if given.lora_rank is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            add_low_rank(model, given.lora_rank, given.lora_alpha)
        if world.is_main:
            trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
            LOGGER.info("LoRA of rank %d: %d weights are trained", given.lora_rank, trained)
    return model


def _earlier_data(manager: CheckpointManager) -> Mapping[str, Any] | None:
    return manager.newest()[1]["model_data"] if manager.steps() else None


def _sources(
    settings: TrainSettings, of_data: tuple[str, ...], of_model: tuple[str, ...]
) -> dict[str, str]:
    """The head of the model that every head to train begins as, those of the data first.

    Raises ``InputError`` for a head that the model does not have, or where none is named.
    """
    given = settings.foundation
    sources = {}
    for name, source in given.head_of(of_data).items():
        if source is None:
            source = name if name in of_model else of_model[0]
            if len(of_model) > 1 and name not in of_model:
                raise InputError(
                    f"foundation.checkpoint={given.checkpoint} has the heads "
                    f"{', '.join(of_model)}; name one of them, foundation.head=NAME, or one for "
                    f"each head of the data, foundation.head='{{{name}: NAME}}'"
                )
        check_head("foundation.head", source, of_model, str(given.checkpoint))
        sources[name] = source
    more = of_model if given.heads == "all" else ()
    return sources | {name: name for name in more if name not in sources}


def _heads(
    settings: TrainSettings,
    statistics: Statistics,
    origin: MACE,
    model: MACE,
    sources: Mapping[str, str],
    train: Split,
    world: World,
) -> list[Head]:
    """The heads to train: those of the data, with E0s by ``foundation.E0s``, then others."""
    numbers, known = model.data.atomic_numbers, set(origin.data.atomic_numbers)
    heads = []
    for index, (name, source) in enumerate(sources.items()):
        head = model.data.heads[model.data.head_names.index(source)]
        if name not in statistics.heads:
            heads.append(head)
            continue
        own = {z: E0 for z, E0 in zip(numbers, head.E0s, strict=True) if z in known}
        of_data = statistics.heads[name]
        if world.is_main:
            _warn_of_shift(settings, name, of_data.E0s, own)
        first, second = (
            (of_data.E0s, own) if settings.foundation.E0s == "data" else (own, of_data.E0s)
        )
        E0s = np.array([first.get(z, second.get(z, 0.0)) for z in numbers])
        if settings.foundation.E0s == "estimated":
            start = replace(head, E0s=tuple(E0s.tolist()))
            chosen = np.flatnonzero(train.head_of == index)
            alone = with_heads(model, [start], source)
            E0s += _corrections(alone, chosen, train, settings, world)
        heads.append(replace(head, E0s=tuple(E0s.tolist()), name=name))
    return heads


def _warn_of_shift(
    settings: TrainSettings, head: str, of_data: Mapping[int, float], own: Mapping[int, float]
) -> None:
    """Warn if E0s of data and model, eV by atomic number, are of different methods."""
    shifts = {z: of_data[z] - own[z] for z in sorted(own) if z in of_data}
    if any(abs(shift) > LARGEST_SHIFT for shift in shifts.values()):
        LOGGER.warning(
            "head %s: E0s of the data less those of %s, eV: %s. They are of another method, or "
            "were fitted; foundation.E0s=%s takes those of the %s. Give data for isolated atoms of "
            "another method, foundation for the same method, estimated for all else",
            head,
            settings.foundation.checkpoint,
            ", ".join(f"{chemical_symbols[z]} {shift:+.3f}" for z, shift in shifts.items()),
            settings.foundation.E0s,
            {"data": "data", "foundation": "model"}.get(
                settings.foundation.E0s, "model, corrected by its errors"
            ),
        )


def _corrections(
    model: MACE, chosen: NDArray[np.int64], train: Split, settings: TrainSettings, world: World
) -> NDArray[np.float64]:
    """Changes of E0s [n_elements], eV, that fit the energies of the chosen structures best.

    Least squares over compositions, of least norm where those do not determine all elements;
    without energies that have a weight they are zero.
    """
    weights = train.shards.weights[chosen]
    counted = train.shards.has_energy[chosen] & has_weight(weights[:, 0] * weights[:, 1])
    chosen = chosen[counted]
    if len(chosen) == 0:
        return np.zeros(len(model.data.atomic_numbers))
    step = -(-len(chosen) // MOST_STRUCTURES)
    chosen = chosen[:: max(step, 1)]
    costs = Costs(train.costs.n_atoms[chosen], train.costs.n_edges[chosen])
    bins = [chosen[ids] for ids in evaluation_bins(costs, settings.batching, world)]
    n = len(model.data.atomic_numbers)
    sums = torch.zeros(n, n + 1, dtype=torch.float64, device=world.device)
    numbers, dtype = model.data.atomic_numbers, model.dtype
    inputs = model.inputs
    for graph in batches(train.shards, bins, atomic_numbers=numbers, dtype=dtype, inputs=inputs):
        graph = on_device(graph, world.device)
        with torch.no_grad():
            found = predict(model, graph, stress=False, forces=False, create_graph=False)
        counts = sums.new_zeros(graph.n_graphs, n)
        ones = sums.new_ones(graph.n_atoms)
        counts.index_put_((graph.graph_of_atom, graph.elements), ones, accumulate=True)
        error = graph.energy - found.energy
        sums += counts.T @ torch.cat((counts, error[:, None]), dim=1)
    sums = world.sum(sums).cpu()
    solution: NDArray[np.float64] = (
        torch.linalg.pinv(sums[:, :n], rtol=1e-10) @ sums[:, n]
    ).numpy()
    return solution


def _log_elements(origin: MACE, model: MACE, settings: TrainSettings, world: World) -> None:
    if not world.is_main:
        return
    old, new = set(origin.data.atomic_numbers), set(model.data.atomic_numbers)
    LOGGER.info(
        "fine-tuning %s: %d channels, max_L %d, %d layers (not those of the settings)",
        settings.foundation.checkpoint,
        model.settings.num_channels,
        model.settings.max_L,
        model.settings.num_interactions,
    )
    for what, numbers in (("left out", old - new), ("new, from the mean of the others", new - old)):
        if numbers:
            names = ", ".join(chemical_symbols[z] for z in sorted(numbers))
            LOGGER.info("elements %s: %s", what, names)


def _log_heads(
    sources: Mapping[str, str], of_data: tuple[str, ...], origin: MACE, world: World
) -> None:
    """Log where the heads come from, of a model with several."""
    of_model = origin.data.head_names
    if not world.is_main or len(of_model) == 1:
        return
    LOGGER.info("heads: %s", ", ".join(f"{name} begins as {sources[name]}" for name in of_data))
    kept = [name for name in sources if name not in of_data]
    out = [name for name in of_model if name not in sources.values()]
    for what, names in (("kept, without data", kept), ("left out", out)):
        if names:
            LOGGER.info("heads %s: %s", what, ", ".join(names))


def _compare(origin: MACE, model: MACE, sources: Sequence[str], train: Split, world: World) -> None:
    """Log how far every head is from its source; InputError if it is not the same model."""
    ids = _comparable(origin, train)
    if not len(ids):
        LOGGER.warning("no training structure has known elements alone: nothing to compare with")
        return
    n_atoms = torch.from_numpy(train.costs.n_atoms[ids]).to(world.device)
    energy, force, largest = 0.0, 0.0, 0.0
    for head, source in enumerate(sources):
        expected = _predictions(origin, train, ids, origin.data.head_names.index(source))
        found = _predictions(model, train, ids, head)
        difference = (found.interaction_energy - expected.interaction_energy) / n_atoms
        energy = max(energy, float(difference.abs().max()))
        force = max(force, float((_forces(found) - _forces(expected)).abs().max()))
        largest = max(largest, float(_forces(expected).abs().max()))
    if world.is_main:
        LOGGER.info(
            "before the first step: equal to the model it starts from (%d structures: energies "
            "without E0s to %.1e eV/atom, forces to %.1e eV/Å)",
            len(ids),
            energy,
            force,
        )
    if not max(energy, force) <= TOLERANCE[model.dtype] * (1.0 + largest):
        raise InputError(
            f"foundation.checkpoint: the model to train differs from it by {energy:.1e} eV/atom "
            f"and {force:.1e} eV/Å before the first step; please report this as a bug, with the "
            "checkpoint"
        )


def _comparable(origin: MACE, train: Split) -> NDArray[np.int64]:
    """Some training structures, of at most 200 atoms, with elements that the origin knows."""
    known, ids = set(origin.data.atomic_numbers), []
    for i in range(min(len(train.shards), 1000)):
        is_small = train.costs.n_atoms[i] <= 200
        if is_small and known.issuperset(train.shards.sample(i).structure.numbers.tolist()):
            ids.append(i)
        if len(ids) == N_COMPARED:
            break
    return np.array(ids, dtype=np.int64)


def _predictions(model: MACE, train: Split, ids: NDArray[np.int64], head: int) -> Prediction:
    numbers = model.data.atomic_numbers
    heads = np.full(len(train.shards), head, dtype=np.int64)
    (graph,) = batches(
        train.shards,
        [ids],
        atomic_numbers=numbers,
        dtype=model.dtype,
        heads=heads,
        inputs=model.inputs,
    )
    return predict(model, graph.to(model.E0s.device), stress=False, create_graph=False)


def _forces(prediction: Prediction) -> Tensor:
    assert prediction.forces is not None
    return prediction.forces
