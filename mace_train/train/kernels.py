"""Compiles the kernels of a model before the first step, once per host and in parallel."""

import logging
import time

import torch

from mace_train.model.mace import MACE
from mace_train.ops.compiled import Request, prepare, required_by
from mace_train.world import World

LOGGER = logging.getLogger("mace_train")


def compile_kernels(model: MACE, world: World) -> None:
    """Local rank 0 compiles what training and validation need; the others then find it on disk."""
    start = time.perf_counter()
    requests = kernels_of_training(model)
    if world.local_rank == 0:
        prepare(requests)
    world.barrier()
    prepare(requests)
    if world.is_main and requests:
        seconds = time.perf_counter() - start
        LOGGER.info("kernels: %d ready after %.1f s", len(requests), seconds)


def kernels_of_training(model: MACE) -> set[Request]:
    """The kernels of energies, forces, and derivatives of both; none for the reference."""
    device = model.E0s.device
    pair = torch.arange(2, device=device)
    elements = torch.zeros_like(pair)

    def training() -> None:
        vectors = torch.zeros(2, 3, dtype=model.dtype, device=device)
        vectors[:, 1] = torch.tensor([1.0, -1.0])
        energies = model(vectors.requires_grad_(), elements, pair.flip(0), pair).sum()
        (forces,) = torch.autograd.grad(energies, vectors, create_graph=True)
        (energies + forces.square().sum()).backward()

    found = required_by(training)
    model.zero_grad(set_to_none=True)
    return found
