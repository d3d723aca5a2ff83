"""Check that two models give the same energies, forces and stress; else refuse the exchange."""

import copy
import logging
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from mace_train.data.graph import Graph
from mace_train.errors import InputError
from mace_train.model.derivatives import predict
from mace_train.model.mace import MACE

LOGGER = logging.getLogger("mace_train")

TOLERANCE = 1e-10
"""In float64: eV, eV/Å and eV/Å^3, relative where the largest value is above 1."""
TOLERANCE_SINGLE = 1e-5
"""The same for files built in float32, whose constants (couplings, Bessel frequencies) are rounded;
ours are not."""
UNITS = {"energy": "eV", "forces": "eV/Å", "stress": "eV/Å^3"}


def predictions(model: MACE, graph: Graph) -> dict[str, Tensor]:
    """Energies [n_heads, n_graphs], forces [n_heads, n_atoms, 3] and stress in float64.

    By the reference operations, so that nothing is compiled for it.
    """
    double = copy.deepcopy(model).double()
    double.kernels = "reference"
    found = []
    for head in range(len(model.data.heads)):
        of_head = replace(graph, heads=torch.full_like(graph.heads, head))
        predicted = predict(double, of_head, stress=True, create_graph=False)
        assert predicted.forces is not None
        assert predicted.stress is not None
        found.append((predicted.energy, predicted.forces, predicted.stress))
    return dict(zip(UNITS, map(torch.stack, zip(*found, strict=True)), strict=True))


def was_built_in_float32(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the constants in a file of mace-torch are rounded to single precision."""
    frequencies = tensors.get("radial_embedding.bessel_fn.bessel_weights")
    if frequencies is None:
        return False
    return bool(torch.equal(frequencies.double(), frequencies.float().double()))


def check_equivalence(
    what: str,
    graph: Graph,
    ours: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    tolerance: float = TOLERANCE,
) -> None:
    """InputError that says what differs and by how much; one line in the log if nothing does.

    Both are [n_heads, ...]. Stress is compared where structures are periodic in all directions.
    """
    periodic = graph.pbc.all(1)
    differences = {}
    for name, unit in UNITS.items():
        found, expected = (of[name].detach().double() for of in (ours, theirs))
        if name == "stress":
            found, expected = found[:, periodic], expected[:, periodic]
        scale = max(1.0, float(expected.abs().max()))
        difference = float((found - expected).abs().max())
        differences[name] = f"{difference:.1e} {unit}"
        if not difference <= tolerance * scale:
            raise InputError(
                f"{what}: {name} differs by up to {difference:.3g} {unit} on "
                f"{graph.n_graphs} structures (the largest is {scale:.3g}, allowed are "
                f"{tolerance * scale:.1g}); nothing was written. The file may be damaged, or use "
                "a feature that neither its header nor its tensors show"
            )
    text = ", ".join(f"{name} {value}" for name, value in differences.items())
    LOGGER.info("%s: the same to %s (%d structures, float64)", what, text, graph.n_graphs)
