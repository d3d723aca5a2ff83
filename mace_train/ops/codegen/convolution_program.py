"""Channel-wise tensor products ("uvu"), weighted per path, as programs.

    out[p, m3] = R_p sum_(m1, m2) C_p[m3, m1, m2] x[m1] y[m2]

for paths p, each with rows of its own in the output (arXiv 2206.07697, eq. 8). With y shared by all
channels, the matrices M_p[m3, m1] = sum_m2 C_p y[m2] are uniform, and what remains per channel is

    w_m1 = R_p x[m1],    out[p, m3] = sum_m1 M_p[m3, m1] w_m1
"""

from dataclasses import dataclass

from mace_train.ops.codegen.program import ExpressionGraph, Float, Program, Segment, Term


@dataclass(frozen=True)
class Path:
    """One path: where its parts begin, and its coefficients."""

    x_first: int  # segment of x
    y_first: int  # segment of y
    weight: int  # segment of the weights
    block: int  # output tensor
    rows: tuple[int, ...]  # segments of that tensor, one for each m3
    table: Float  # [n_m3, n_m1, n_m2]


@dataclass(frozen=True)
class ChannelwiseProduct:
    """A weighted channel-wise tensor product with one or more output tensors."""

    n_x: int
    n_y: int
    n_weights: int
    n_rows: tuple[int, ...]  # segments of every output tensor
    paths: tuple[Path, ...]


def convolution_program(product: ChannelwiseProduct, *, uniform_y: bool = True) -> Program:
    """Inputs ``x``, ``y``, ``r``; outputs ``out0``, ``out1``, ... for the output tensors."""
    uniform = frozenset({"y", "vy"}) if uniform_y else frozenset[str]()
    graph = ExpressionGraph(uniform)
    outputs: dict[Segment, list[Term]] = {}
    for path in product.paths:
        weight = graph.input("r", path.weight)
        _, n_m1, n_m2 = path.table.shape
        y = [graph.input("y", path.y_first + m2) for m2 in range(n_m2)]
        weighted = [
            graph.product(weight, graph.input("x", path.x_first + m1)) for m1 in range(n_m1)
        ]
        for row, matrix in zip(path.rows, path.table, strict=True):
            terms = outputs.setdefault(Segment(f"out{path.block}", row), [])
            for m1 in range(n_m1):
                entry = graph.sum(Term(float(c), n) for c, n in zip(matrix[m1], y, strict=True))
                if entry is not None:
                    terms.append(Term(1.0, entry, weighted[m1]))
    numbers = {segment: graph.sum(terms) for segment, terms in outputs.items()}
    program = Program(graph, {s: i for s, i in numbers.items() if i is not None})
    return program.simplified(scale_products=True)
