"""A trained model as a program of PyTorch operations, without Python: for other codes.

    (positions, cell, atomic_numbers, senders, receivers, shifts) ->
    (energy, node_energy, forces, virials)

The caller finds the neighbours (in any order, both directions of each pair) and runs the program
for any number of atoms and edges. ``torch.export`` keeps it as a graph that every PyTorch reads
(``format=export``); AOTInductor compiles it to a library (``format=aoti``) that C++ loads without
Python. Neither needs mace_train or its kernels where it runs.
"""

import copy
import io
import json
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ase.data import chemical_symbols
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from mace_train.atomic_files import written_together
from mace_train.calculators.models import Checkpoint, load_single
from mace_train.checks import check_choice
from mace_train.errors import InputError
from mace_train.folders import make_folder
from mace_train.model.compiled import ModelEnergies, energies_and_gradient
from mace_train.model.embeddings import refuse_inputs
from mace_train.model.mace import MACE
from mace_train.ops.cpp.compiler import NO_COMPILER, find_compiler
from mace_train.settings import ExportSettings

LOGGER = logging.getLogger("mace_train")
FORMATS = ("aoti", "export")
HIGHEST = 118
INPUTS = {
    "positions": "float64 [n_atoms, 3], Å",
    "cell": "float64 [3, 3], rows are lattice vectors, Å; zeros for a molecule",
    "atomic_numbers": "int64 [n_atoms]",
    "senders": "int64 [n_edges], atom at the tail of every edge; both directions of each pair",
    "receivers": "int64 [n_edges], atom at its head",
    "shifts": "int64 [n_edges, 3], multiples of the lattice vectors: "
    "vector = positions[receiver] - positions[sender] + shift @ cell, shorter than r_max",
}
OUTPUTS = {
    "energy": "float64 [], eV, with isolated atoms; NaN if the model does not know an element",
    "node_energy": "float64 [n_atoms], eV, with isolated atoms",
    "forces": "float64 [n_atoms, 3], eV/Å",
    "virials": "float64 [3, 3], eV; stress = -virials / volume",
}


def export_program(
    checkpoint: Checkpoint,
    path: str | Path,
    format: str = "aoti",
    *,
    head: str | None = None,
    device: str = "cpu",
    default_dtype: str | None = None,
) -> dict[str, Any]:
    """Write the program of a checkpoint to ``path`` (.pt2), and what it takes and gives beside it.

    Args:
        checkpoint: Output folder of a training, a checkpoint file, or a model.
        path: File to write; ``PATH.json`` beside it holds the description that is returned.
        format: aoti, a compiled library for the device, or export, a graph for every device.
        head: Which head of a model that has several.
        device: Where a compiled program will run: cpu or cuda.
        default_dtype: float32 or float64 inside; None takes the type of the training.

    Raises:
        InputError: an unknown format, a checkpoint that cannot be read, a device that is not there
            or no C++ compiler.
    """
    check_choice("format", format, FORMATS)
    path = Path(path)
    if path.suffix != ".pt2":
        raise InputError(f"output={path}: programs of PyTorch are files .pt2; name it so")
    if format == "aoti" and find_compiler() is None:
        raise InputError(NO_COMPILER)
    model = load_single(
        checkpoint, head=head, device=device, dtype=default_dtype, kernels="reference"
    )
    refuse_inputs(model.inputs, f"format={format}")
    make_folder("output", path.parent)
    description = {
        "format": format,
        "torch_version": str(torch.__version__),
        "device": device,
        "dtype_inside": str(model.dtype).removeprefix("torch."),
        "r_max": model.data.r_max,
        "atomic_numbers": list(model.data.atomic_numbers),
        "inputs": INPUTS,
        "outputs": OUTPUTS,
    }
    text = json.dumps(description, indent=1, ensure_ascii=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PyTorch's, of its own pytrees
        # of tables that are views of one array; the program holds each whole
        warnings.filterwarnings("ignore", "No complete tensor found in the group")
        program = program_of(model)
        with written_together(path.parent) as new:
            if format == "export":
                content = io.BytesIO()  # on a full disk PyTorch's writer aborts the process
                torch.export.save(program, content, extra_files={"mace_train.json": text})
                (new / path.name).write_bytes(content.getbuffer())
            else:
                metadata = {name: str(description[name]) for name in ("r_max", "atomic_numbers")}
                configs = {"aot_inductor.metadata": metadata}
                torch._inductor.aoti_compile_and_package(
                    program, package_path=str(new / path.name), inductor_configs=configs
                )
            (new / f"{path.name}.json").write_text(text + "\n")
    return description


def export_command(settings: ExportSettings) -> dict[str, Any]:
    """``export_program`` by settings, with a message at the end."""
    description = export_program(
        settings.checkpoint,
        settings.output,
        settings.format,
        head=settings.head,
        device=settings.device,
        default_dtype=settings.default_dtype,
    )
    elements = ", ".join(chemical_symbols[z] for z in description["atomic_numbers"])
    LOGGER.info(
        "wrote %s for %s (r_max %s Å, %s inside); %s.json says what it takes and gives",
        settings.output,
        elements,
        description["r_max"],
        description["dtype_inside"],
        settings.output,
    )
    return description


def program_of(model: MACE) -> torch.export.ExportedProgram:
    """The program for the model's dtype and device, for all numbers of atoms and edges."""
    model = copy.deepcopy(model).requires_grad_(False)
    model.kernels, model.static_shapes = "reference", True
    inputs = _example(model)
    atoms = edges = {0: torch.export.Dim.AUTO}
    shapes = (atoms, None, atoms, edges, edges, edges)
    module = _Program(model, inputs)
    with torch.no_grad():
        return torch.export.export(module, inputs, dynamic_shapes=shapes, strict=False)


class _Program(nn.Module):
    """Traced energies and gradient with the weights; sums them to what other codes take."""

    E0s: Tensor  # [n_elements] float64, eV
    element_of: Tensor  # [119] int64 by atomic number, -1 if unknown

    def __init__(self, model: MACE, inputs: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.dtype = model.dtype
        self.register_buffer("E0s", model.E0s[0].clone())
        index = torch.full((HIGHEST + 1,), -1)
        index[list(model.data.atomic_numbers)] = torch.arange(len(model.data.atomic_numbers))
        self.register_buffer("element_of", index.to(model.E0s.device))
        self.names = [name for name, _ in model.named_parameters()]
        self.weights = nn.ParameterList(model.parameters())
        vectors, elements = self._vectors(*inputs[:2], *inputs[3:]), self._elements(inputs[2])[0]
        trace = make_fx(_with_gradient(model), tracing_mode="symbolic", _allow_non_fake_inputs=True)
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            _with_gradient(model)(parameters, vectors, elements, *inputs[3:5])  # makes the tables
        # no submodule: export loses the buffers of one
        self._graph = [trace(parameters, vectors, elements, *inputs[3:5])]

    def forward(
        self,
        positions: Tensor,
        cell: Tensor,
        atomic_numbers: Tensor,
        senders: Tensor,
        receivers: Tensor,
        shifts: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Energy, node energies, forces and virials; see INPUTS and OUTPUTS."""
        vectors = self._vectors(positions, cell, senders, receivers, shifts)
        elements, known = self._elements(atomic_numbers)
        parameters = dict(zip(self.names, self.weights, strict=True))
        found = self._graph[0](parameters, vectors, elements, senders, receivers)
        interaction, gradient = (values.double() for values in found)
        isolated = self.E0s.index_select(0, elements)
        node_energy = torch.where(known, interaction + isolated, torch.nan)
        forces = torch.zeros_like(positions).index_add(0, senders, gradient)
        forces = forces.index_add(0, receivers, -gradient)
        products = vectors.double().T @ gradient
        return node_energy.sum(), node_energy, forces, -0.5 * (products + products.T)

    def _vectors(
        self, positions: Tensor, cell: Tensor, senders: Tensor, receivers: Tensor, shifts: Tensor
    ) -> Tensor:
        differences = positions.index_select(0, receivers) - positions.index_select(0, senders)
        return (differences + shifts.to(cell.dtype) @ cell).to(self.dtype)

    def _elements(self, atomic_numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Index of every atom's element (0 if unknown), and whether the model knows it."""
        found = self.element_of.index_select(0, atomic_numbers.clamp(0, HIGHEST))
        return found.clamp(min=0), found >= 0


def _with_gradient(model: MACE) -> Any:
    """Interaction energies [n_atoms] and their gradient [n_edges, 3], in operations of ATen."""
    energies = ModelEnergies(model)

    def both(
        parameters: Mapping[str, Tensor],
        vectors: Tensor,
        elements: Tensor,
        senders: Tensor,
        receivers: Tensor,
    ) -> tuple[Tensor, Tensor]:
        index = model.batch_index(elements, senders, receivers)
        found = energies_and_gradient(
            energies, parameters, vectors, elements, index, create_graph=False
        )
        return found[0].detach(), found[1]

    return both


def _example(model: MACE) -> tuple[Tensor, ...]:
    """Inputs whose sizes equal no other size of the model: a chain of atoms."""
    device = model.E0s.device
    n_atoms = 2 * max(size for p in model.parameters() for size in p.shape) + 101
    atoms = torch.arange(n_atoms, device=device)
    positions = torch.zeros(n_atoms, 3, dtype=torch.float64, device=device)
    positions[:, 0] = 0.7 * model.data.r_max * atoms
    numbers = torch.tensor(model.data.atomic_numbers, device=device)
    senders = torch.cat((atoms[1:], atoms[:-1]))
    receivers = torch.cat((atoms[:-1], atoms[1:]))
    shifts = torch.zeros(len(senders), 3, dtype=torch.int64, device=device)
    cell = torch.zeros(3, 3, dtype=torch.float64, device=device)
    return positions, cell, numbers[atoms % len(numbers)], senders, receivers, shifts
