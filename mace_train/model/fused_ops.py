"""MACE's two products as compiled operators of ``mace_train.ops``: their tables and weights.

Weights stay in mace-torch's parametrisation; once per step a constant matrix projects them to the
independent paths of ``product_basis`` (and scales them as the program wants), under autograd.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mace_train.model.constant import ConstantTensor
from mace_train.model.coupling import clebsch_gordan, degree_slice
from mace_train.model.product_basis import ProductBasis
from mace_train.ops import convolution, symmetric_contraction
from mace_train.ops.codegen.contraction_program import Coupling, Level, Output
from mace_train.ops.codegen.convolution_program import ChannelwiseProduct, Path
from mace_train.ops.convolution import EdgeIndex
from mace_train.ops.symmetric_contraction import Chunks


def coupling_of(basis: ProductBasis) -> Coupling:
    """The contraction in terms of the kept paths: degree by degree, highest order first."""
    levels = [Level(level.left, level.right, level.matrix, level.sizes) for level in basis.levels]
    outputs = []
    n_weights = 0
    for output in basis.outputs:
        sizes = [size for of_order in output.sizes.values() for size in of_order]
        numbers = np.repeat(n_weights + np.arange(len(sizes)), sizes)
        n_weights += len(sizes) + 1
        components = range((basis.l_max + 1) ** 2)[degree_slice(output.degree)]
        weight_of_row = [int(number) for number in numbers]
        outputs.append(
            Output(output.rows, weight_of_row, output.matrix, list(components), n_weights - 1)
        )
    return Coupling((basis.l_max + 1) ** 2, n_weights, levels, outputs)


class FusedContraction:
    """The symmetric contraction by ``ops.symmetric_contraction``."""

    def __init__(self, basis: ProductBasis) -> None:
        self.key = symmetric_contraction.register(coupling_of(basis))
        scale = symmetric_contraction.kernels_of(self.key).weight_scale
        blocks = [
            matrix
            for output in basis.outputs
            for matrix in (*output.projections.values(), np.ones((1, 1)))
        ]
        # one product for all degrees and orders costs less than many small ones
        self._project = ConstantTensor(scale[:, None] * _block_diagonal(blocks))
        self._orders = [(*output.projections, 1) for output in basis.outputs]

    def __call__(
        self, x: Tensor, weights: Sequence[Mapping[int, Tensor]], chunks: Chunks
    ) -> Tensor:
        """Features as of ``SymmetricContraction``; weights of each degree by order."""
        stated = [
            of_degree[order]
            for of_degree, orders in zip(weights, self._orders, strict=True)
            for order in orders
        ]
        projected = torch.matmul(self._project.like(x), torch.cat(stated, dim=1))
        return symmetric_contraction.symmetric_contraction(x, projected, chunks, self.key)


def _block_diagonal(blocks: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """(scipy.linalg has it too, but takes long to import.)"""
    ends = np.cumsum([[0, 0], *(block.shape for block in blocks)], axis=0)
    matrix = np.zeros(ends[-1])
    for block, (row, column) in zip(blocks, ends, strict=False):
        matrix[row : row + len(block), column : column + block.shape[1]] = block
    return matrix


def product_of(
    paths: Sequence[tuple[int, int, int]], l_nodes: int, l_edges: int
) -> ChannelwiseProduct:
    """The convolution's product; rows of each output degree are (m3, path to that degree)."""
    n_paths_to = [sum(l3 == degree for _, _, l3 in paths) for degree in range(l_edges + 1)]
    number_of = [0] * (l_edges + 1)
    stated = []
    for weight, (l1, l2, l3) in enumerate(paths):
        rows = tuple(m3 * n_paths_to[l3] + number_of[l3] for m3 in range(2 * l3 + 1))
        table = clebsch_gordan(l3, l1, l2)
        stated.append(Path(l1 * l1, l2 * l2, weight, l3, rows, table))
        number_of[l3] += 1
    n_rows = tuple((2 * degree + 1) * n for degree, n in enumerate(n_paths_to))
    return ChannelwiseProduct(
        (l_nodes + 1) ** 2, (l_edges + 1) ** 2, len(paths), n_rows, tuple(stated)
    )


class FusedConvolution:
    """The convolution by ``ops.convolution``."""

    def __init__(self, paths: Sequence[tuple[int, int, int]], l_nodes: int, l_edges: int) -> None:
        self.key = convolution.register(product_of(paths, l_nodes, l_edges))

    def __call__(
        self, x: Tensor, harmonics: Tensor, weights: Tensor, index: EdgeIndex
    ) -> list[Tensor]:
        """Degrees [n_atoms, 2 l3 + 1, n_paths_to_l3 * n_channels] of the summed messages."""
        blocks = convolution.convolution(x, harmonics, weights, index, self.key)
        sizes = [2 * degree + 1 for degree in range(len(blocks))]
        return [
            block.view(x.shape[0], size, block.shape[1] // size * block.shape[2])
            for block, size in zip(blocks, sizes, strict=True)
        ]
