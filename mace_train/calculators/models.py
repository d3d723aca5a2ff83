"""Models to predict with, from checkpoints, and the graphs that they take."""

import copy
import glob
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray
from torch import Tensor

from mace_train.checks import check_choice
from mace_train.data.graph import Graph
from mace_train.data.input_values import check_inputs
from mace_train.data.loading.loader import collate
from mace_train.data.notes import Notes
from mace_train.data.shards.arrays import Sample
from mace_train.data.shards.shard_set import sample_of
from mace_train.data.stress_components import has_stress, projected_stress
from mace_train.data.structure import LabelKeys, structure_from_atoms
from mace_train.errors import InputError
from mace_train.model.derivatives import Prediction, predict
from mace_train.model.mace import MACE
from mace_train.model.surgery import one_head
from mace_train.ops.backends import backend_of
from mace_train.settings.inputs import InputKey, model_input_keys
from mace_train.train.checkpoint import load_model

Results = dict[str, Any]
Checkpoint = str | Path | MACE
_NO_LABELS = LabelKeys(energy="", forces="", stress="", virials="")


def load_models(
    checkpoints: Checkpoint | Sequence[Checkpoint],
    *,
    head: str | None = None,
    device: str = "auto",
    dtype: str | None = None,
    kernels: str = "auto",
    accept_licence: str | None = None,
) -> list[MACE]:
    """Models of one head with frozen weights, ready to predict.

    Args:
        checkpoints: Output folder of a training, a checkpoint file, a pattern such as
            ``runs/seed-*``, the name of a foundation model, a model, or several of these: a
            committee.
        head: Which head of models that have several.
        device: auto (a GPU if there is one), cpu or cuda.
        dtype: float32 or float64; None takes the type of the training.
        kernels: auto, reference, cpp or cuda.
        accept_licence: Licence of a foundation model that you accept, such as ASL.

    Raises:
        InputError: no such checkpoint, one that cannot be read, no such head or none of several
            named, or a device that is not there.
    """
    chosen_device = device_of(device)
    if dtype is not None:
        check_choice("default_dtype", dtype, ("float32", "float64"))
    backend_of(kernels, chosen_device)
    models = []
    for item in _expanded(checkpoints):
        if isinstance(item, MACE):
            model = copy.deepcopy(item)
        else:
            model = load_model(item, None, accept_licence)[0]
        model = one_head(model, head).to(
            chosen_device, None if dtype is None else getattr(torch, dtype)
        )
        model.requires_grad_(False)
        model.kernels = kernels
        models.append(model)
    return models


def load_single(checkpoint: Checkpoint, **settings: Any) -> MACE:
    """``load_models`` of one; InputError if there are several."""
    models = load_models(checkpoint, **settings)
    if len(models) > 1:
        raise InputError(f"checkpoint={checkpoint} is {len(models)} models; name one of them")
    return models[0]


def device_of(name: str) -> torch.device:
    """The device that auto, cpu or cuda mean; InputError if it is not there."""
    device_type = name.partition(":")[0]
    check_choice("device", device_type, ("auto", "cpu", "cuda"))
    if device_type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device={name} but PyTorch sees no CUDA device; use device=cpu")
    if device_type == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def _expanded(checkpoints: Checkpoint | Sequence[Checkpoint]) -> list[Path | MACE]:
    """One item per model; patterns with * or ? become the paths that fit, sorted."""
    given = [checkpoints] if isinstance(checkpoints, (str, Path, MACE)) else list(checkpoints)
    items: list[Path | MACE] = []
    for item in given:
        if isinstance(item, MACE):
            items.append(item)
        elif Path(item).exists() or not set("*?") & set(str(item)):
            items.append(Path(item))
        else:
            found = sorted(glob.glob(str(item)))
            if not found:
                raise InputError(f"checkpoint={item}: no file or folder fits this pattern")
            items += map(Path, found)
    if not items:
        raise InputError("checkpoint=[]: name at least one checkpoint")
    return items


def sample_from(
    atoms: Atoms,
    model: MACE,
    source: str,
    keys: Sequence[InputKey] | None = None,
    notes: Notes | None = None,
) -> Sample:
    """The geometry of ``atoms`` with its neighbours, and the inputs of the model; no labels.

    Args:
        atoms: The structure.
        model: What it is for.
        source: What it is called in messages.
        keys: Where the inputs of the model stand in ``atoms``; None: under their names.
        notes: Collects remarks about inputs that are missing; without it they are logged.

    Raises:
        InputError: an element that the model does not know, a geometry that no structure has, or
            an input that the model does not take.
    """
    bare = Atoms(atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    if keys is None:
        keys = model_input_keys(model.inputs, calculator=True)
    for key in keys:
        for given, taken in ((atoms.info, bare.info), (atoms.arrays, bare.arrays)):
            taken.update({name: given[name] for name in key.keys if name in given})
    structure = structure_from_atoms(
        bare, _NO_LABELS, source, notes, require_energy=False, inputs=keys
    )
    model.data.check_elements(structure.numbers, source)
    check_inputs(model.inputs, structure.inputs, structure.n_atoms, source)
    return sample_of(structure, model.data.r_max)


def graph_from(samples: Sequence[Sample], model: MACE) -> Graph:
    """The samples as one batch for the model, where the model is."""
    graph = collate(
        samples,
        np.arange(len(samples)),
        atomic_numbers=model.data.atomic_numbers,
        dtype=model.dtype,
        inputs=model.inputs,
    )
    return graph.to(model.E0s.device)


def results_of(model: MACE, graph: Graph) -> list[Results]:
    """Predictions for every structure of the batch, float64.

    By the names of ASE: energy (eV), energies [n_atoms], node_energy [n_atoms] (without isolated
    atoms), forces [n_atoms, 3], and where it is defined stress [3, 3], see ``stresses_of``.
    """
    prediction = predict(model, graph, stress=True, create_graph=False)
    assert prediction.forces is not None
    isolated = model.E0s[0].index_select(0, graph.elements)
    of_atoms = {
        "energies": prediction.node_energy,
        "node_energy": prediction.node_energy - isolated,
        "forces": prediction.forces,
    }
    ends = graph.n_atoms_of_graph.cumsum(0).cpu().numpy()[:-1]
    parts = {name: np.split(_array(values), ends) for name, values in of_atoms.items()}
    results: list[Results] = []
    for i, energy in enumerate(prediction.energy.tolist()):
        results.append({"energy": energy, **{name: split[i] for name, split in parts.items()}})
    for result, stress in zip(results, stresses_of(prediction, graph), strict=True):
        if stress is not None:
            result["stress"] = stress
    return results


def stresses_of(prediction: Prediction, graph: Graph) -> list[NDArray[np.float64] | None]:
    """The stress [3, 3] of every structure, eV/Å^3; None where there is no volume to divide by.

    Of slabs and wires it has components along periodic directions only, the others are zero.
    """
    assert prediction.stress is not None
    assert prediction.virials is not None
    stress, gradient, cells = (
        _array(values) for values in (prediction.stress, -prediction.virials, graph.cell)
    )
    found: list[NDArray[np.float64] | None] = []
    for i, pbc in enumerate(graph.pbc.cpu().numpy()):
        if pbc.all():
            found.append(stress[i])
        elif has_stress(cells[i], pbc):
            found.append(projected_stress(gradient[i], cells[i], pbc))
        else:
            found.append(None)
    return found


def _array(values: Tensor) -> NDArray[np.float64]:
    return values.detach().double().cpu().numpy()
