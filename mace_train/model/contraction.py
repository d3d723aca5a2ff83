"""Symmetric contraction: all products of up to nu atomic features, coupled to each degree.

    out[n, L m, k] = sum_{nu} sum_p W_nu^L[z_n, p, k] f_(nu, p)^(L m)(x[n, :, k])

(arXiv 2206.07697, eqs. 10, 11) with the paths f_p of ``product_basis``. Evaluated factored:
couplings F of orders below the correlation, free of weights, are shared by all L; weights multiply
them, and a constant matrix couples the last factor,

    T_L[m, i] = sum_r C_L[(m, i), r] w[z, r] F_r(x)
    out_L[m]  = sum_i T_L[m, i] x_i + w_1 x_L

Per atom and channel about 6 thousand multiplications (l_max 3, order 3, 0e + 1o) against 700
thousand for mace-torch's dense tensors.

Fused, all of it is one kernel of ``ops.symmetric_contraction``. Weights stay in mace-torch's
parametrisation; once per step a constant matrix projects them to the independent paths of
``product_basis`` (and scales them as the kernel wants), under autograd.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mace_train.irreps import FeatureIrreps
from mace_train.model.constant import ConstantTensor
from mace_train.model.coupling import degree_slice
from mace_train.model.product_basis import ProductBasis, paths, product_basis
from mace_train.ops import symmetric_contraction
from mace_train.ops.codegen.contraction_program import Coupling, Level, Output
from mace_train.ops.symmetric_contraction import Chunks


class ContractionWeights(nn.Module):
    """Weights [n_elements, n_paths, n_channels] of one output degree; ``weights`` descends."""

    def __init__(self, l_max: int, degree: int, correlation: int, shape: tuple[int, int]) -> None:
        super().__init__()
        n_elements, n_channels = shape
        counts = [len(paths(l_max, order, degree)) for order in range(correlation, 0, -1)]
        draws = [torch.randn(n_elements, n, n_channels) / n for n in counts]
        self.weights_max = nn.Parameter(draws[0])
        self.weights = nn.ParameterList(draws[1:])

    def of_order(self, order: int) -> Tensor:
        """Weights of the paths of one order."""
        n_lower = len(self.weights)
        return self.weights_max if order == n_lower + 1 else self.weights[n_lower - order]


class SymmetricContraction(nn.Module):
    """Contracts features up to l_max into degrees up to l_out."""

    def __init__(
        self, l_max: int, l_out: int, correlation: int, n_elements: int, n_channels: int
    ) -> None:
        super().__init__()
        shape = (n_elements, n_channels)
        degrees = range(l_out + 1)
        self.contractions = nn.ModuleList(
            ContractionWeights(l_max, degree, correlation, shape) for degree in degrees
        )
        basis = product_basis(l_max, l_out, correlation)
        self._irreps = (FeatureIrreps(n_channels, l_max), FeatureIrreps(n_channels, l_out))
        self._n_elements, self._correlation = n_elements, correlation
        self._prepare_fused(basis)
        self._prepare_reference(basis)

    def extra_repr(self) -> str:
        """Irreps, paths (mace-torch's, and those that are independent) and number of weights."""
        inputs, outputs = self._irreps
        stated = sum(w.shape[1] for w in self.parameters())
        n_weights = sum(w.numel() for w in self.parameters())
        return (
            f"({inputs})^1..{self._correlation} x {self._n_elements}x0e -> {outputs} | {stated} "
            f"paths, {self._n_independent} of them independent | {n_weights} weights"
        )

    def forward(self, x: Tensor, elements: Tensor, chunks: Chunks | None = None) -> Tensor:
        """Features [n_atoms, (l_out + 1)^2, n_channels].

        Takes x [n_atoms, (l_max + 1)^2, n_channels] and elements [n_atoms], int64 indices; with
        chunks of them the fused kernel computes, without the reference. Made for one element, all
        atoms are taken for it.
        """
        return self._reference(x, elements) if chunks is None else self._fused(x, chunks)

    def _prepare_fused(self, basis: ProductBasis) -> None:
        self.key = symmetric_contraction.register(coupling_of(basis))
        scale = symmetric_contraction.kernels_of(self.key).weight_scale
        blocks = [
            matrix
            for output in basis.outputs
            for matrix in (*output.projections.values(), np.ones((1, 1)))
        ]
        # one product for all degrees and orders costs less than many small ones
        self._project_all = ConstantTensor(scale[:, None] * _block_diagonal(blocks))
        self._n_independent = len(scale)

    def _fused(self, x: Tensor, chunks: Chunks) -> Tensor:
        stated = [
            module.of_order(order)
            for module in self.contractions
            if isinstance(module, ContractionWeights)
            for order in range(len(module.weights) + 1, 0, -1)
        ]
        projected = torch.matmul(self._project_all.like(x), torch.cat(stated, dim=1))
        return symmetric_contraction.symmetric_contraction(x, projected, chunks, self.key)

    def _prepare_reference(self, basis: ProductBasis) -> None:
        self._levels = [
            (ConstantTensor(level.left), ConstantTensor(level.right), ConstantTensor(level.matrix))
            for level in basis.levels
        ]
        self._rows = [ConstantTensor(output.rows) for output in basis.outputs]
        self._couple = [ConstantTensor(output.matrix) for output in basis.outputs]
        self._project = [
            {
                order: ConstantTensor(np.repeat(matrix, output.sizes[order], axis=0))
                for order, matrix in output.projections.items()
            }
            for output in basis.outputs
        ]

    def _reference(self, x: Tensor, elements: Tensor) -> Tensor:
        features = self._features(x)
        outputs = []
        row_weights = self._row_weights(elements)
        for degree, (rows, couple) in enumerate(zip(self._rows, self._couple, strict=True)):
            higher, first_order = torch.split(row_weights[degree], [rows.shape[0], 1], 1)
            result = x[:, degree_slice(degree)] * first_order
            if rows.shape[0] > 0:
                terms = features.index_select(1, rows.like(x)) * higher
                tables = _left_multiply(couple.like(x), terms)
                tables = tables.view(x.shape[0], 2 * degree + 1, *x.shape[1:])
                result = result + (tables * x.unsqueeze(1)).sum(2)
            outputs.append(result)
        return torch.cat(outputs, dim=1)

    def _features(self, x: Tensor) -> Tensor:
        """The components of x and the weight-free products of orders below the correlation."""
        features = x
        for left, right, matrix in self._levels:
            products = features.index_select(1, left.like(x)) * x.index_select(1, right.like(x))
            features = torch.cat([features, _left_multiply(matrix.like(x), products)], dim=1)
        return features

    def _row_weights(self, elements: Tensor) -> list[Tensor]:
        """Weights [n_atoms, n_rows + 1, n_channels] of every row, then of order one."""
        result = []
        rows = torch.zeros_like(elements) if self._n_elements == 1 else elements
        for module, project in zip(self.contractions, self._project, strict=True):
            assert isinstance(module, ContractionWeights)
            weights = [
                torch.matmul(matrix.like(module.weights_max), module.of_order(order))
                for order, matrix in project.items()
            ]
            of_element = torch.cat([*weights, module.of_order(1)], dim=1)
            result.append(of_element.index_select(0, rows))
        return result


def _left_multiply(matrix: Tensor, x: Tensor) -> Tensor:
    """Products matrix @ x[n] for every n, without copies of either."""
    return torch.bmm(matrix.expand(x.shape[0], -1, -1), x)


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


def _block_diagonal(blocks: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """(scipy.linalg has it too, but takes long to import.)"""
    ends = np.cumsum([[0, 0], *(block.shape for block in blocks)], axis=0)
    matrix = np.zeros(ends[-1])
    for block, (row, column) in zip(blocks, ends, strict=False):
        matrix[row : row + len(block), column : column + block.shape[1]] = block
    return matrix
