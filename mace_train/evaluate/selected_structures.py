"""The file that ``mace-train select`` writes: isolated atoms, then the chosen structures."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TextIO

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols
from ase.io import write as ase_write
from numpy.typing import NDArray

from mace_train.data.labelled_atoms import labelled_atoms
from mace_train.data.loading.packed import on_device
from mace_train.data.stress_components import stress_mask
from mace_train.data.structure import LOGGER, Structure
from mace_train.evaluate.element_sets import element_set, numbers_in, passing
from mace_train.evaluate.structure_stream import BatchLimits, StructureIds, StructureStream
from mace_train.model.derivatives import predict
from mace_train.model.mace import MACE
from mace_train.progress import ProgressBar


@dataclass(frozen=True)
class SelectedIds:
    """The chosen structures of a set."""

    ids: StructureIds  # [n], ascending
    ranks: NDArray[np.int64]  # [n] in which order they were chosen, from 0


def selected_structures(
    stream: StructureStream, chosen: SelectedIds, model: MACE | None, limits: BatchLimits
) -> Iterator[Atoms]:
    """The chosen structures, with labels of the model if one is given."""
    structures = stream.structures(chosen.ids)
    if model is not None:
        structures = _pseudolabelled(structures, stream, chosen.ids, model, limits)
    for structure, rank in zip(structures, chosen.ranks.tolist(), strict=True):
        atoms = labelled_atoms(structure)
        atoms.info["selection_rank"] = rank
        yield atoms


def _pseudolabelled(
    structures: Iterator[Structure],
    stream: StructureStream,
    ids: StructureIds,
    model: MACE,
    limits: BatchLimits,
) -> Iterator[Structure]:
    """The structures with energy, forces and stress as the model predicts them."""
    bar = ProgressBar("pseudolabels", len(ids), counted="structures", log=True)
    with bar:
        for graph in stream.graphs(ids, model, limits):
            graph = on_device(graph, model.E0s.device)
            found = predict(model, graph, stress=True, create_graph=False)
            assert found.forces is not None
            assert found.stress is not None
            energies, forces, stresses = (
                values.double().cpu().numpy()
                for values in (found.energy, found.forces, found.stress)
            )
            ends = graph.n_atoms_of_graph.cumsum(0).cpu().numpy()[:-1]
            for energy, of_atoms, stress in zip(
                energies.tolist(), np.split(forces, ends), stresses, strict=True
            ):
                structure = next(structures)
                has_stress = stress_mask(structure.cell, structure.pbc).any()
                yield replace(
                    structure,
                    energy=energy,
                    forces=of_atoms,
                    stress=stress if has_stress else None,
                    energy_weight=1.0,
                    forces_weight=1.0,
                    stress_weight=1.0,
                    head="Default",
                )
            bar.advance(graph.n_graphs, graph.n_graphs)


def isolated_atoms(stream: StructureStream, ids: StructureIds, model: MACE | None) -> list[Atoms]:
    """Isolated atoms of the elements of the structures ``ids``, with their E0s as energies.

    E0s are those of the model, if one gives the labels; else of the set: as stored with shards, or
    its own isolated atoms.
    """
    elements = numbers_in(stream.elements[ids])
    if model is not None:
        E0s = dict(zip(model.data.atomic_numbers, model.E0s[0].tolist(), strict=True))
        found = [_isolated_atom(z, E0s[z], "Default") for z in elements]
    elif stream.E0s:
        found = [
            _isolated_atom(z, E0s[z], head)
            for head, E0s in stream.E0s.items()
            for z in elements
            if z in E0s
        ]
    else:
        known = passing(stream.elements, element_set(elements), "subset")
        found = [
            labelled_atoms(structure)
            for structure in stream.structures(np.flatnonzero(stream.isolated & known))
        ]
    missing = set(elements) - {int(atoms.numbers[0]) for atoms in found}
    if missing:
        LOGGER.warning(
            "%s holds no isolated atoms of %s: give preprocess data.E0s for them",
            stream.title,
            ", ".join(chemical_symbols[z] for z in sorted(missing)),
        )
    LOGGER.info("isolated atoms, for E0s: %d", len(found))
    return found


def _isolated_atom(number: int, energy: float, head: str) -> Atoms:
    zero = np.zeros((1, 3))
    structure = Structure(
        numbers=np.array([number]),
        positions=zero,
        cell=np.zeros((3, 3)),
        pbc=np.zeros(3, dtype=bool),
        energy=energy,
        forces=zero,
        stress=None,
        config_type="IsolatedAtom",
        head=head,
        source="E0s",
    )
    return labelled_atoms(structure)


def write_structures(file: TextIO, structures: Iterable[Atoms]) -> None:
    """Append to an extended XYZ file; the head Default is that which the file is given."""
    for atoms in structures:
        if atoms.info["head"] == "Default":
            del atoms.info["head"]
        ase_write(file, atoms, format="extxyz", write_results=False)
