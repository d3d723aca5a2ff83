"""Many structures at once: packed into evenly filled batches, in the order they are given."""

from collections.abc import Sequence
from typing import Any

from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import full_3x3_to_voigt_6_stress

from mace_train.balance.costs import Costs
from mace_train.calculators.models import Checkpoint, Results, load_single, results_of, sample_from
from mace_train.data.loading.loader import batches
from mace_train.data.notes import Notes
from mace_train.evaluate.evaluate import SamplesInMemory
from mace_train.progress import ProgressBar
from mace_train.settings import BatchingSettings
from mace_train.settings.inputs import model_input_keys
from mace_train.train.validation import evaluation_bins


def evaluate_structures(
    structures: Sequence[Atoms],
    checkpoint: Checkpoint,
    *,
    head: str | None = None,
    device: str = "auto",
    default_dtype: str | None = None,
    kernels: str = "auto",
    batching: BatchingSettings | None = None,
    show_progress: bool = False,
    info_keys: Any = None,
    arrays_keys: Any = None,
) -> list[Atoms]:
    """Copies of the structures with energy, energies of atoms, forces and (periodic) stress.

    The results are in the ``calc`` of each copy, so ``get_potential_energy()`` and so on read them
    and ``ase.io.write`` writes them. ``batching`` sets the size of batches as in training;
    ``info_keys`` and ``arrays_keys`` are as for ``MACETrainCalculator``.

    Raises:
        InputError: as ``MACETrainCalculator``; structures are named by their index in the list.
    """
    model = load_single(checkpoint, head=head, device=device, dtype=default_dtype, kernels=kernels)
    if not structures:
        return []
    keys, notes = model_input_keys(model.inputs, info_keys, arrays_keys, calculator=True), Notes()
    samples = [
        sample_from(atoms, model, f"structure {i}", keys, notes)
        for i, atoms in enumerate(structures)
    ]
    notes.log()
    source = SamplesInMemory(samples)
    bins = evaluation_bins(Costs(source.n_atoms, source.n_edges), batching or BatchingSettings())
    numbers = model.data.atomic_numbers
    graphs = batches(source, bins, atomic_numbers=numbers, dtype=model.dtype, inputs=model.inputs)
    evaluated: dict[int, Atoms] = {}
    bar = ProgressBar("evaluate", len(bins), enabled=show_progress)
    for graph in bar.over(graphs):
        found = results_of(model, graph.to(model.E0s.device))
        for i, results in zip(graph.ids.tolist(), found, strict=True):
            evaluated[i] = _with_results(structures[i], results)
    return [evaluated[i] for i in range(len(structures))]


def _with_results(atoms: Atoms, results: Results) -> Atoms:
    """A copy whose calculator holds the results."""
    copy = atoms.copy()
    kept = {name: value for name, value in results.items() if name != "node_energy"}
    if "stress" in kept:
        kept["stress"] = full_3x3_to_voigt_6_stress(kept["stress"])
    copy.calc = SinglePointCalculator(copy, **kept)
    return copy
