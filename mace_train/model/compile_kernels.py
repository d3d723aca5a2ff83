"""Compiles the kernels that training a model needs, all at once, before the first step.

Which ones depends on the model and on the gradients that a step asks for. So a step on three
atoms is taken with kernels that only note their names; then all that the cache on disk lacks are
compiled, as many at a time as there are cores.
"""

import torch
from torch import Tensor

from mace_train.model.mace import MACE
from mace_train.ops.backends import backend_of
from mace_train.ops.cpp import small_products
from mace_train.ops.dispatch import Request, compile_all, requests_of


def compile_kernels(model: MACE, *, show_progress: bool = False) -> int:
    """Compile for the model's present dtype and kernels; the number of kernels, 0 if none."""
    device = next(model.parameters()).device
    backend = backend_of(model.kernels, device)
    if not backend.fused:
        return 0
    requests = training_kernels(model)
    n_kernels = len(requests)
    if backend.has_small_products:
        small_products.functions(model.dtype)
        n_kernels += 1
    if not show_progress:
        compile_all(requests, lambda done, total: None)
        return n_kernels
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("compiling kernels", total=len(requests))
        compile_all(requests, lambda done, total: bar.update(task, completed=done))
    return n_kernels


def training_kernels(model: MACE) -> list[Request]:
    """The kernels of a step on energies and forces, which include those of a prediction."""

    def work() -> None:
        atoms = three_atoms(model)
        energy = model(**atoms).sum()
        (force,) = torch.autograd.grad(energy, atoms["vectors"], create_graph=True)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        torch.autograd.grad(force.sum() + energy, trained, allow_unused=True)

    with torch.enable_grad():
        return requests_of(work)


def three_atoms(model: MACE) -> dict[str, Tensor]:
    """What a model takes of a triangle, by name."""
    device = model.E0s.device
    receivers = torch.tensor([0, 0, 1, 1, 2, 2], device=device)
    senders = torch.tensor([1, 2, 0, 2, 0, 1], device=device)
    corners = torch.eye(3, dtype=model.dtype, device=device)
    zeros = torch.zeros(3, dtype=torch.int64, device=device)
    return {
        "vectors": (corners[receivers] - corners[senders]).requires_grad_(),
        "elements": zeros,
        "senders": senders,
        "receivers": receivers,
        "pairs": torch.tensor([0, 1, 0, 2, 1, 2], device=device),
        "first_of_pair": torch.tensor([0, 1, 3], device=device),
        "heads": zeros,
        "inputs": torch.zeros(3, len(model.inputs), dtype=model.dtype, device=device),
    }
