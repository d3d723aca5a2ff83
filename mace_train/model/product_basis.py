"""Paths of the symmetric contraction, and a minimal factored basis that evaluates them.

A path of order nu couples nu copies of the atomic features x one after the other,

    x_l1 (x) x_l2 -> k2,   k2 (x) x_l3 -> k3,   ...,   k_(nu-1) (x) x_l_nu -> L,

and carries one weight per element and channel. mace-torch lists all sequences of degrees whose
parity is natural at the end (arXiv 2206.07697, eq. 10; ``paths`` reproduces order and scale), but
the copies of x are equal, so far fewer are independent: for l_max = 3, order 3 and L = 1 only 12
of 51. We keep mace-torch's weights as the parameters and evaluate an independent subset B,

    sum_p w_p f_p(x) = sum_{b in B} (sum_p M[b, p] w_p) f_b(x),      f_p = sum_b M[b, p] f_b,

with M found once by least squares over the values of all paths at random points, to rounding.
Among dependent paths the cheapest to evaluate are kept (``_expense``), and paths with a common
beginning share it. Setting up costs well under a second up to order 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from mace_train.model.coupling import Float, clebsch_gordan, degree_slice

Path = tuple[tuple[int, int], ...]
"""((l1, l1), (l2, k2), ..., (l_nu, L)): degree of each copy of x, degree reached with it."""


@cache
def paths(l_max: int, order: int, l_out: int) -> tuple[Path, ...]:
    """All paths to degree l_out in the order of mace-torch's weights.

    From order 4 on mace-torch demands natural parity of every intermediate degree as well.
    """
    found: list[tuple[Path, int]] = [
        (((l, l),), (-1) ** l)
        for l in range(l_max + 1)  # noqa: E741
    ]
    for step in range(2, order + 1):
        reachable = l_out + (order - step) * l_max
        found = [
            ((*path, (l, k)), parity * (-1) ** l)
            for path, parity in found
            for l in range(l_max + 1)  # noqa: E741
            for k in range(abs(path[-1][1] - l), min(path[-1][1] + l, reachable) + 1)
            if order < 4 or parity * (-1) ** l == (-1) ** k
        ]
        found.sort(key=lambda item: (item[0][-1][1], item[1]))
    return tuple(p for p, parity in found if p[-1][1] == l_out and parity == (-1) ** l_out)


def evaluate(path: Path, x: Float, known: dict[Path, Float]) -> Float:
    """Values [n, 2 k + 1] of a path at x [n, (l_max + 1)^2]; known remembers shared beginnings."""
    if path not in known:
        degree, reached = path[-1]
        factor = x[:, degree_slice(degree)]
        if len(path) == 1:
            known[path] = factor
        else:
            beginning = evaluate(path[:-1], x, known)
            table = clebsch_gordan(reached, path[-2][1], degree)
            known[path] = np.einsum("mij,ni,nj->nm", table, beginning, factor, optimize=True)
    return known[path]


def reduced_basis(l_max: int, order: int, l_out: int) -> tuple[list[Path], Float]:
    """Independent paths, and the matrix [n_kept, n_paths] that writes every path in them."""
    every = paths(l_max, order, l_out)
    points = np.random.RandomState(0).standard_normal((len(every) + 16, (l_max + 1) ** 2))
    known: dict[Path, Float] = {}
    # equivariance makes one component decide linear dependence
    values = {p: evaluate(p, points, known)[:, l_out].copy() for p in every}
    kept: list[Path] = []
    orthonormal: Float = np.zeros((len(points), 0))
    for path in sorted(every, key=_expense):
        residual: Float = values[path].copy()
        for _ in range(2):  # twice is enough
            overlap: Float = orthonormal.T @ residual
            residual -= orthonormal @ overlap
        if np.linalg.norm(residual) > 1e-6:  # values are of order one
            kept.append(path)
            residual /= np.linalg.norm(residual)
            orthonormal = np.column_stack([orthonormal, residual])
    columns = np.stack([values[p] for p in kept], axis=1)
    wanted = np.stack([values[p] for p in every], axis=1)
    matrix: Float = np.asarray(np.linalg.lstsq(columns, wanted, rcond=None)[0], dtype=np.float64)
    assert np.abs(columns @ matrix - wanted).max() < 1e-9 * np.abs(wanted).max()
    return kept, np.where(np.abs(matrix) < 1e-10, 0.0, matrix)


def _expense(path: Path) -> tuple[int, ...]:
    """Sorts cheap paths first: small intermediate degrees, latest first, then equal first degrees.

    Large last degrees come next, since paths that share them and the degree before share the final
    coupling. By instruction counts of the compiled program this order is the best of those tried.
    """
    reached = [k for _, k in path[1:-1]]
    difference = abs(path[0][0] - path[1][0]) if reached else 0
    return (*reversed(reached), difference, *(-degree for degree, _ in reversed(path)))


@dataclass(frozen=True)
class Level:
    """Products of order k from order k - 1: ``matrix @ (previous[left] * x[right])``."""

    left: list[int]
    right: list[int]
    matrix: Float  # [n_rows, len(left)]
    sizes: list[int]  # rows of each path


@dataclass(frozen=True)
class Output:
    """Degree L: ``sum_i x_i (matrix @ (weights * features[rows]))_(m,i)`` plus w_1 x_L."""

    degree: int
    rows: list[int]  # of the concatenated features of all levels
    matrix: Float  # [(2 L + 1) * n_components, len(rows)]
    sizes: dict[int, list[int]]  # order, descending -> rows of each kept path
    projections: dict[int, Float]  # order -> [n_kept, n_paths]


@dataclass
class ProductBasis:
    """The factored contraction of x [(l_max + 1)^2] into degrees 0..l_out, orders 1..correlation.

    Features are x itself, then the rows of each level; ``first_row`` says where a path begins.
    """

    l_max: int
    l_out: int
    correlation: int
    levels: list[Level] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    first_row: dict[Path, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Choose the basis of every degree and order and lay out the levels."""
        bases = {
            (degree, order): reduced_basis(self.l_max, order, degree)
            for degree in range(self.l_out + 1)
            for order in range(2, self.correlation + 1)
        }
        self.first_row = {((l, l),): l * l for l in range(self.l_max + 1)}  # noqa: E741
        used = {p[:n] for kept, _ in bases.values() for p in kept for n in range(2, len(p))}
        n_rows = (self.l_max + 1) ** 2
        for order in range(2, self.correlation):
            at_order = sorted(p for p in used if len(p) == order)
            previous = n_rows
            for path in at_order:
                self.first_row[path] = n_rows
                n_rows += 2 * path[-1][1] + 1
            self.levels.append(self._level(at_order, previous, n_rows - previous))
        for degree in range(self.l_out + 1):
            orders = range(self.correlation, 1, -1)
            self.outputs.append(self._output(degree, {n: bases[degree, n] for n in orders}))

    def _level(self, at_order: Sequence[Path], first: int, n_rows: int) -> Level:
        columns: dict[tuple[int, int], int] = {}
        entries = []
        for path in at_order:
            degree, reached = path[-1]
            left, right = self.first_row[path[:-1]], degree * degree
            table = clebsch_gordan(reached, path[-2][1], degree)
            for m, i, j in np.argwhere(table != 0):
                pair = (left + int(i), right + int(j))
                if len(path) == 2:
                    pair = (min(pair), max(pair))
                column = columns.setdefault(pair, len(columns))
                entries.append((self.first_row[path] - first + m, column, table[m, i, j]))
        matrix = np.zeros((n_rows, len(columns)))
        for row, column, value in entries:
            matrix[row, column] += value
        sizes = [2 * path[-1][1] + 1 for path in at_order]
        return Level([i for i, _ in columns], [j for _, j in columns], matrix, sizes)

    def _output(self, degree: int, bases: dict[int, tuple[list[Path], Float]]) -> Output:
        rows: list[int] = []
        blocks: list[Float] = []
        sizes: dict[int, list[int]] = {}
        n_components = (self.l_max + 1) ** 2
        for order, (kept, _) in bases.items():
            sizes[order] = [2 * path[-2][1] + 1 for path in kept]
            for path in kept:
                size = 2 * path[-2][1] + 1
                start = self.first_row[path[:-1]]
                rows.extend(range(start, start + size))
                block = np.zeros((2 * degree + 1, n_components, size))
                table = clebsch_gordan(degree, path[-2][1], path[-1][0])
                block[:, degree_slice(path[-1][0])] = table.transpose(0, 2, 1)
                blocks.append(block.reshape(-1, size))
        empty = np.zeros(((2 * degree + 1) * n_components, 0))
        projections = {order: matrix for order, (_, matrix) in bases.items()}
        return Output(degree, rows, np.concatenate([empty, *blocks], axis=1), sizes, projections)


@cache
def product_basis(l_max: int, l_out: int, correlation: int) -> ProductBasis:
    """The basis for features up to l_max and outputs up to l_out; made once."""
    return ProductBasis(l_max, l_out, correlation)
