"""Couplings and products of MACE for the tests, and einsum versions of the convolution."""

import torch

from mace_train.model.contraction import coupling_of
from mace_train.model.convolution import product_of
from mace_train.model.coupling import convolution_paths
from mace_train.model.product_basis import product_basis
from mace_train.ops.codegen.contraction_program import Coupling
from mace_train.ops.codegen.convolution_program import ChannelwiseProduct


def mace_coupling(l_max: int, l_out: int, correlation: int) -> Coupling:
    return coupling_of(product_basis(l_max, l_out, correlation))


def mace_product(l_nodes: int, l_edges: int) -> ChannelwiseProduct:
    return product_of(convolution_paths(l_nodes, l_edges), l_nodes, l_edges)


def einsum_convolution(product, x, y, r, senders, receivers):
    """[n_atoms, rows of all outputs, n_channels], path by path; differentiable at will."""
    starts = [sum(product.n_rows[:block]) for block in range(len(product.n_rows))]
    out = x.new_zeros(len(x), sum(product.n_rows), x.shape[2])
    for path in product.paths:
        table = torch.as_tensor(path.table).to(x)
        _, n1, n2 = table.shape
        parts = (
            x[senders][:, path.x_first : path.x_first + n1],
            y[:, path.y_first : path.y_first + n2],
            r[:, path.weight],
        )
        messages = torch.einsum("abc,ebk,ec,ek->eak", table, *parts)
        summed = x.new_zeros(len(x), *messages.shape[1:]).index_add(0, receivers, messages)
        rows = torch.tensor([starts[path.block] + row for row in path.rows])
        out = out.index_add(1, rows, summed)
    return out


def wave(like, function):
    """Numbers without a pattern in the shape and dtype of a tensor."""
    exact = function(0.7 * torch.arange(like.numel(), dtype=torch.float64))
    return exact.to(like.dtype).view_as(like)
