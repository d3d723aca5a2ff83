"""The ASE calculator of trained models, alone or as a committee."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from ase import Atoms
from ase.calculators.calculator import (
    Calculator,
    PropertyNotImplementedError,
    all_changes,
)
from ase.stress import full_3x3_to_voigt_6_stress
from numpy.typing import NDArray

from mace_train.calculators.hessian import hessian
from mace_train.calculators.models import (
    Checkpoint,
    Results,
    graph_from,
    load_models,
    results_of,
    sample_from,
)
from mace_train.data.notes import Notes
from mace_train.data.shards.arrays import Sample
from mace_train.errors import InputError
from mace_train.model.node_features import node_descriptors
from mace_train.settings.inputs import model_input_keys


class MACETrainCalculator(Calculator):
    """Energies, forces, stress and Hessians of trained models for ASE.

    Results are in eV, eV/Å and eV/Å^3: ``energy`` (``free_energy`` is the same), ``energies``
    [n_atoms] of atoms, ``node_energy`` [n_atoms] the same without isolated atoms, ``forces``
    [n_atoms, 3], and ``stress`` [6] (xx, yy, zz, yz, xz, xy) of periodic structures, divided by the
    volume of the cell. Slabs and wires have components along periodic directions, the others are
    zero, so ASE's filters relax these directions of the cell and no others; the cell needs vectors
    along all directions. ``get_hessian`` gives second derivatives, ``get_descriptors`` descriptors.

    Several checkpoints are a committee: results are means over its members, and of q = energy,
    forces and stress there are also ``q_comm``, one value per member along the first axis, and
    ``q_var``, their variance (divided by the number of members). Stresses in ``stress_comm`` and
    ``stress_var`` are matrices [3, 3]. Names are as in mace-torch's MACECalculator.

    Args:
        checkpoint: Output folder of a training, a checkpoint file, a pattern such as
            ``runs/seed-*``, the name of a foundation model such as ``medium-mpa-0``, a model, or
            several of these.
        head: Which head (level of theory) of models that have several.
        device: auto (a GPU if there is one), cpu or cuda.
        default_dtype: float32 or float64; None takes the type of the training.
        kernels: auto, reference, cpp or cuda.
        accept_licence: Licence of a foundation model that you accept, such as ASL.
        info_keys: Names in ``atoms.info`` of the model's inputs per structure, such as
            ``{"total_charge": "charge"}``. Without it they stand under the name that the model
            states, or their own (``total_charge``), or that of mace-torch's calculators
            (``charge``, ``spin``). An input that is not there has its default, with a warning.
        arrays_keys: The same of inputs per atom, in ``atoms.arrays``.

    Raises:
        InputError: a checkpoint that is not there or cannot be read, or keys of inputs that it
            does not have; when calculating, an element that the model does not know, coincident
            atoms, or an input that the model does not take.
    """

    implemented_properties: ClassVar[list[str]] = [
        "energy",
        "free_energy",
        "energies",
        "node_energy",
        "forces",
        "stress",
    ]

    def __init__(
        self,
        checkpoint: Checkpoint | Sequence[Checkpoint],
        *,
        head: str | None = None,
        device: str = "auto",
        default_dtype: str | None = None,
        kernels: str = "auto",
        accept_licence: str | None = None,
        info_keys: Any = None,
        arrays_keys: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.models = load_models(
            checkpoint,
            head=head,
            device=device,
            dtype=default_dtype,
            kernels=kernels,
            accept_licence=accept_licence,
        )
        self._input_keys = [
            model_input_keys(model.inputs, info_keys, arrays_keys, calculator=True)
            for model in self.models
        ]
        self._said: set[str] = set()  # kinds of remarks

    @property
    def r_max(self) -> float:
        """The largest cutoff radius of the members, Å."""
        return max(model.data.r_max for model in self.models)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """All properties of ``atoms``, which cost one gradient together."""
        super().calculate(atoms, list(properties), list(system_changes))
        structure = self._atoms(None)
        samples = self._samples(structure, f"structure {structure.symbols}")
        graphs = [graph_from([s], m) for s, m in zip(samples, self.models, strict=True)]
        members = [results_of(m, graph)[0] for m, graph in zip(self.models, graphs, strict=True)]
        self.results = {name: np.mean([m[name] for m in members], axis=0) for name in members[0]}
        self.results["energy"] = float(self.results["energy"])
        self.results["free_energy"] = self.results["energy"]
        if "stress" in self.results:
            self.results["stress"] = full_3x3_to_voigt_6_stress(self.results["stress"])
        if len(members) > 1:
            self.results |= _spread(members)

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """What changed since the last calculation; the model's inputs count too."""
        changes: list[str] = super().check_state(atoms, tol)
        if self.atoms is not None and self._inputs(atoms) != self._inputs(self.atoms):
            changes.append("inputs")
        return changes

    def _inputs(self, atoms: Atoms) -> list[str]:
        """The values of all inputs, to be compared."""
        places = {"graph": atoms.info, "atom": atoms.arrays}
        keys = (key for of_model in self._input_keys for key in of_model)
        return [
            repr(np.asarray(places[key.per].get(name)).tolist())
            for key in keys
            for name in key.keys
        ]

    def get_property(
        self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True
    ) -> Any:
        """As ASE's; the error for a stress that is not defined says why."""
        try:
            return super().get_property(name, atoms, allow_calculation)
        except PropertyNotImplementedError:
            if name != "stress":
                raise
            raise PropertyNotImplementedError(_why_no_stress(self._atoms(atoms))) from None

    def get_hessian(self, atoms: Atoms | None = None) -> NDArray[np.float64]:
        """Second derivatives [3 n_atoms, 3 n_atoms] of the energy, eV/Å^2; a committee's mean.

        In the order that ``ase.vibrations.VibrationsData.from_2d`` takes.
        """
        structure = self._atoms(atoms)
        samples = self._samples(structure, f"structure {structure.symbols}")
        found = [hessian(m, s) for m, s in zip(self.models, samples, strict=True)]
        mean: NDArray[np.float64] = np.mean([h.cpu().numpy() for h in found], axis=0)
        return mean

    def get_descriptors(
        self, atoms: Atoms | None = None, invariants_only: bool = True, num_layers: int = -1
    ) -> NDArray[Any] | list[NDArray[Any]]:
        """Descriptors [n_atoms, n_columns] of the atoms; of a committee a list of them.

        Equal to mace-torch's, whose arguments these are. Columns are the features of layer after
        layer (see model/node_features.py): n_channels invariant ones each, or with
        ``invariants_only=False`` all of them, which turn with the structure.

        Args:
            atoms: The structure; None takes that of the last calculation.
            invariants_only: Leave out what turns with the structure.
            num_layers: Take the first so many layers; -1 takes all.

        Raises:
            InputError: as for a calculation, or for more layers than the model has.
        """
        structure = self._atoms(atoms)
        found = []
        samples = self._samples(structure, f"structure {structure.symbols}")
        for model, sample in zip(self.models, samples, strict=True):
            graph = graph_from([sample], model)
            of_model = node_descriptors(
                model, graph, invariants_only=invariants_only, num_layers=num_layers
            )
            found.append(of_model.values.cpu().numpy())
        return found[0] if len(found) == 1 else found

    def _atoms(self, atoms: Atoms | None) -> Atoms:
        found = self.atoms if atoms is None else atoms
        if found is None:
            raise InputError("no atoms: give them, or set atoms.calc and calculate first")
        return found

    def check(self, atoms: Atoms, name: str) -> None:
        """InputError, which calls the structure by its ``name``, if a model does not take it."""
        self._samples(atoms, name)

    def _samples(self, atoms: Atoms, name: str) -> list[Sample]:
        """The structure as each model takes it; a remark about its inputs is logged once."""
        notes = Notes()
        samples = [
            sample_from(atoms, model, name, keys, notes)
            for model, keys in zip(self.models, self._input_keys, strict=True)
        ]
        notes.log(but=self._said)
        self._said |= set(notes.found)
        return samples


def _why_no_stress(atoms: Atoms) -> str:
    if not atoms.pbc.any():
        return "no stress: the structure is not periodic in any direction"
    return (
        f"no stress: the structure is periodic along {atoms.pbc.tolist()} and its cell "
        f"{atoms.cell[:].tolist()} has no volume to divide by; give the other directions lattice "
        "vectors, such as by atoms.center(vacuum=10, axis=2)"
    )


def _spread(members: Sequence[Results]) -> Results:
    """Values of all members and their variances."""
    names = [name for name in ("energy", "forces", "stress") if name in members[0]]
    values = {name: np.array([member[name] for member in members]) for name in names}
    variances = {f"{name}_var": value.var(axis=0) for name, value in values.items()}
    variances["energy_var"] = float(variances["energy_var"])
    return {f"{name}_comm": value for name, value in values.items()} | variances
