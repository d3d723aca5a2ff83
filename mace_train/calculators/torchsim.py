"""Trained models in torch-sim: batched dynamics and relaxation (extra ``torchsim``)."""

from typing import Any

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from mace_train.calculators.models import (
    Checkpoint,
    graph_from,
    load_single,
    sample_from,
    stresses_of,
)
from mace_train.errors import InputError
from mace_train.model.derivatives import predict
from mace_train.model.embeddings import refuse_inputs

try:
    import torch_sim
    from torch_sim.models.interface import ModelInterface
except ImportError:
    raise InputError(
        "torch-sim is not installed; pip install 'mace-train[torchsim]' (a Python that it supports)"
    ) from None


class MACETrainModel(ModelInterface):
    """A torch-sim model: energies [n_systems], forces [n_atoms, 3] and stress [n_systems, 3, 3].

    In eV, eV/Å and eV/Å^3. The stress of slabs and wires is divided by the volume of the cell and
    zero across directions that are not periodic; of systems without a stress all of it is zero.
    Neighbours are found on the CPU, exactly, at every call.

    Args:
        checkpoint: Output folder of a training, a checkpoint file, or a model.
        head: Which head of a model that has several.
        device: Where it runs; None takes a GPU if there is one.
        dtype: torch.float32 or torch.float64; None takes the type of the training.
        compute_forces: Give forces.
        compute_stress: Give stress.
        kernels: auto, reference, cpp or cuda.

    Raises:
        InputError: as ``MACETrainCalculator``.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        head: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        compute_forces: bool = True,
        compute_stress: bool = True,
        kernels: str = "auto",
    ) -> None:
        super().__init__()
        self.model = load_single(
            checkpoint,
            head=head,
            device="auto" if device is None else str(device),
            dtype=None if dtype is None else str(dtype).removeprefix("torch."),
            kernels=kernels,
        )
        refuse_inputs(self.model.inputs, "torch-sim")
        self._device, self._dtype = self.model.E0s.device, self.model.dtype
        self._compute_forces, self._compute_stress = compute_forces, compute_stress

    def forward(self, state: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Properties of a ``torch_sim.SimState``, or of a dictionary with its fields."""
        if isinstance(state, dict):
            state = torch_sim.SimState(**{"masses": torch.ones_like(state["positions"]), **state})
        samples = [
            sample_from(atoms, self.model, f"system {i}")
            for i, atoms in enumerate(_atoms_of(state))
        ]
        graph = graph_from(samples, self.model)
        prediction = predict(
            self.model,
            graph,
            stress=self._compute_stress,
            forces=self._compute_forces,
            create_graph=False,
        )
        stress = prediction.stress
        if stress is not None and not bool((graph.pbc.all(1) | ~graph.pbc.any(1)).all()):
            zero = np.zeros((3, 3))
            found_stress = [zero if s is None else s for s in stresses_of(prediction, graph)]
            stress = torch.as_tensor(np.stack(found_stress)).to(stress.device)
        found = {"energy": prediction.energy, "forces": prediction.forces, "stress": stress}
        return {name: t.detach().to(self._dtype) for name, t in found.items() if t is not None}


def _atoms_of(state: Any) -> list[Atoms]:
    """The systems of a state; its cells have lattice vectors as columns."""
    numbers, positions, cells = (
        values.detach().cpu().double().numpy()
        for values in (state.atomic_numbers, state.positions, state.cell.mT)
    )
    index, pbc = state.system_idx.cpu().numpy(), state.pbc
    pbc = pbc.cpu().numpy() if isinstance(pbc, Tensor) else pbc
    return [
        Atoms(numbers[index == i].astype(int), positions[index == i], cell=cell, pbc=pbc)
        for i, cell in enumerate(cells)
    ]
