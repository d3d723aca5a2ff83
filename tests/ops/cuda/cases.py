"""Operators with inputs for a GPU, and all their derivatives."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mace_train.model.contraction import SymmetricContraction
from mace_train.ops.convolution import EdgeIndex, convolution, register
from mace_train.ops.symmetric_contraction import Chunks
from tests.ops.tables import einsum_convolution, mace_product, wave

CPU = torch.device("cpu")
GPU = torch.device("cuda", 0) if torch.cuda.is_available() else CPU


@dataclass
class Case:
    """An operator, what it is compared with, and inputs."""

    on: Callable[[torch.device], Callable[..., Tensor]]  # index tensors are made here, once
    slow: Callable[..., Tensor]
    inputs: list[Tensor]


def contraction(degrees=(3, 1, 3), n_atoms=70, n_channels=48, dtype=torch.float64) -> Case:
    """The last of five elements is absent; inputs are x and all weights."""
    torch.manual_seed(0)
    module = SymmetricContraction(*degrees, 5, n_channels).to(dtype)
    elements = torch.randint(0, 4, (n_atoms,))
    x = torch.randn(n_atoms, (degrees[0] + 1) ** 2, n_channels, dtype=dtype)
    names = [name for name, _ in module.named_parameters()]

    def with_index(*index) -> Callable[..., Tensor]:
        def function(x, *weights):
            parameters = dict(zip(names, weights, strict=True))
            return torch.func.functional_call(module, parameters, (x, *index))

        return function

    inputs = [x, *[parameter.detach() for parameter in module.parameters()]]

    def on(device: torch.device) -> Callable[..., Tensor]:
        moved = elements.to(device)
        return with_index(moved, Chunks.of(moved, 5))

    return Case(on, with_index(elements), inputs)


def messages(
    l_nodes=1, n_edges=300, n_channels=48, dtype=torch.float64, n_atoms=23, l_edges=3
) -> Case:
    """The last atoms have no edges; inputs are x, y and r."""
    torch.manual_seed(0)
    product = mace_product(l_nodes, l_edges)
    key = register(product)
    senders = torch.randint(0, n_atoms, (n_edges,))
    receivers = torch.randint(0, n_atoms - 2, (n_edges,)).sort().values
    x = torch.randn(n_atoms, product.n_x, n_channels, dtype=dtype)
    y = torch.randn(n_edges, product.n_y, dtype=dtype)
    r = torch.randn(n_edges, product.n_weights, n_channels, dtype=dtype)

    def on(device):
        index = EdgeIndex.of(senders.to(device), receivers.to(device), n_atoms)
        return lambda x, y, r: torch.cat(convolution(x, y, r, index, key), dim=1)

    def slow(x, y, r):
        return einsum_convolution(product, x, y, r, senders, receivers)

    return Case(on, slow, [x, y, r])


def everything(function, inputs, differentiated) -> list[Tensor]:
    """Output, first derivatives, derivatives of a function of those of some inputs."""
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    out = function(*inputs)
    probe = wave(out.detach().cpu(), torch.cos).to(out.device).requires_grad_()
    chosen = [inputs[i] for i in differentiated]
    first = torch.autograd.grad((out * probe).sum(), chosen, create_graph=True)
    loss = sum((g * wave(g.detach().cpu(), torch.sin).to(g.device)).sum() for g in first)
    second = torch.autograd.grad(loss + out.sum(), [*inputs, probe], allow_unused=True)
    return [out, *first, *[torch.zeros((), device=GPU) if v is None else v for v in second]]


def on_gpu(tensors) -> list[Tensor]:
    """The tensors on the device of these tests."""
    return [tensor.to(GPU) for tensor in tensors]
