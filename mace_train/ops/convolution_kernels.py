"""The kernels of a convolution, for every set of gradients that is asked for.

With F the convolution (trilinear in x, y, r) and g its cotangent, the backward pass takes gradients
of Phi = <g, F>, the double backward pass those of <vx, gx> + <vy, gy> + <vr, gr>, in two kernels:
the gradient with respect to g sums over the edges of a receiver, as F does; those with respect to
x, y and r belong to edges, as the gradients of Phi do. Gradients of x per edge are then summed over
the edges of a sender; those of r are summed over an edge and its reverse, which share a row of it.

On a GPU that last sum is made in one of two ways. Either a loop over the edges of receivers writes
a row for each edge and another kernel adds them up, or a loop over pairs writes the sum at once: it
moves less of r and of its gradients, and gathers what belongs to the second edge's receiver. Which
is faster has to be measured (``gradients_by_pair`` of ``cuda.tuning``; the default is the first).
"Pair" is defined in ``mace_train.data.graph``.
"""

from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import Tensor

from mace_train.ops.codegen.convolution_program import ChannelwiseProduct, convolution_program
from mace_train.ops.codegen.derivative import gradient
from mace_train.ops.codegen.kernel_spec import Kernel, Loop, Operand, Role, sum_kernel
from mace_train.ops.codegen.program import Program
from mace_train.ops.cuda import driver as cuda_driver
from mace_train.ops.cuda.tuning import choices_of
from mace_train.ops.dispatch import CompiledKernel

EDGE_OPERANDS = ("x", "y", "r")  # what has gradients per edge, in the order of all arguments
MOST_CHANNELS = 256  # of a loop over pairs, where a block has a thread for each


class ConvolutionKernels:
    """Kernels of one product; a set of operands is a string such as "xyr" or "yr"."""

    def __init__(self, product: ChannelwiseProduct, key: str) -> None:
        self.product = product
        self.key = key
        self._n = {"x": product.n_x, "y": product.n_y, "r": product.n_weights}
        self.forward = CompiledKernel(f"convolution {key} forward", self._forward_kernel)
        n_x, n_weights = product.n_x, product.n_weights
        self.sum_senders = CompiledKernel(f"sum {n_x}", lambda: sum_kernel(n_x))
        self.sum_pairs = CompiledKernel(f"sum {n_weights}", lambda: sum_kernel(n_weights))

    def __repr__(self) -> str:
        """Such as ConvolutionKernels(x[4] y[16] r[10] -> out0[4] out1[9] | 10 paths)."""
        inputs = " ".join(f"{name}[{n}]" for name, n in self._n.items())
        outputs = " ".join(f"out{block}[{n}]" for block, n in enumerate(self.product.n_rows))
        return f"ConvolutionKernels({inputs} -> {outputs} | {len(self.product.paths)} paths)"

    @property
    def n_out(self) -> int:
        """Rows of all output tensors."""
        return sum(self.product.n_rows)

    @cache  # noqa: B019 - kernels live as long as the program
    def backward(self, wanted: str, by_pair: bool = False) -> CompiledKernel:
        """Inputs x, y, r, g0, g1, ...; outputs the gradients of ``wanted``."""
        loop = Loop.PAIRS if by_pair else Loop.EDGES
        return CompiledKernel(
            f"convolution {self.key} backward {wanted}{' by pair' * by_pair}",
            lambda: self._kernel(loop, self.backward_program(wanted), "", "g", wanted),
        )

    @cache  # noqa: B019
    def double(self, cotangents: str, wanted: str, by_pair: bool = False) -> CompiledKernel:
        """Inputs x, y, r, g0, ..., and v of ``cotangents``; outputs the gradients of ``wanted``."""
        loop = Loop.PAIRS if by_pair else Loop.EDGES
        return CompiledKernel(
            f"convolution {self.key} double {cotangents} {wanted}{' by pair' * by_pair}",
            lambda: self._kernel(
                loop, self.double_program(cotangents, wanted), cotangents, "h", wanted
            ),
        )

    @cache  # noqa: B019
    def double_g(self, cotangents: str) -> CompiledKernel:
        """Inputs x, y, r and v of ``cotangents``; outputs the gradients of g0, g1, ..."""

        def build() -> Kernel:
            inputs = (*self._edge_inputs(""), *self._edge_inputs("v", cotangents))
            outputs = self._rows("hg")
            return Kernel(Loop.RECEIVERS, self.double_program(cotangents, "g"), inputs, outputs)

        return CompiledKernel(f"convolution {self.key} double {cotangents} g", build)

    @cached_property
    def program(self) -> Program:
        """The convolution, per edge."""
        return convolution_program(self.product)

    def backward_program(self, wanted: str) -> Program:
        """Gradients per edge."""
        return self._gradients.restricted(lambda s: s.operand[1:] in wanted).simplified(
            scale_products=True
        )

    def double_program(self, cotangents: str, wanted: str) -> Program:
        """Gradients of the gradients: those of g (``wanted`` is "g") or of operands per edge."""
        blocks = range(len(self.product.n_rows))
        names = {f"g{i}": f"hg{i}" for i in blocks} if wanted == "g" else {}
        names |= {name: f"h{name}" for name in wanted if name in EDGE_OPERANDS}
        return gradient(
            self._gradients, {f"g{name}": f"v{name}" for name in cotangents}, names
        ).simplified(scale_products=True)

    @cached_property
    def _gradients(self) -> Program:
        blocks = range(len(self.product.n_rows))
        cotangents = {f"out{i}": f"g{i}" for i in blocks}
        return gradient(self.program, cotangents, {name: f"g{name}" for name in EDGE_OPERANDS})

    def _forward_kernel(self) -> Kernel:
        return Kernel(Loop.RECEIVERS, self.program, self._edge_inputs(""), self._rows("out"))

    def _kernel(
        self, loop: Loop, program: Program, cotangents: str, prefix: str, wanted: str
    ) -> Kernel:
        inputs = (
            *self._edge_inputs(""),
            *self._rows("g"),
            *self._edge_inputs("v", cotangents),
        )
        roles = {"x": Role.EDGE, "y": Role.UNIFORM, "r": Role.PAIR}
        outputs = (Operand(f"{prefix}{name}", roles[name], self._n[name]) for name in wanted)
        return Kernel(loop, program, inputs, tuple(outputs))

    def _edge_inputs(self, prefix: str, names: str = "xyr") -> tuple[Operand, ...]:
        roles = {"x": Role.SENDER, "y": Role.UNIFORM, "r": Role.PAIR}
        return tuple(Operand(f"{prefix}{name}", roles[name], self._n[name]) for name in names)

    def _rows(self, prefix: str) -> tuple[Operand, ...]:
        n_rows = enumerate(self.product.n_rows)
        return tuple(Operand(f"{prefix}{block}", Role.ROW, n) for block, n in n_rows)


def loops_over_pairs(device: torch.device, n_channels: int) -> bool:
    """Whether a GPU computes gradients pair by pair, for tensors of so many channels."""
    return (
        n_channels <= MOST_CHANNELS
        and choices_of(cuda_driver.architecture(device)).gradients_by_pair
    )


@dataclass(frozen=True)
class PairOrdering:
    """Edges in the order of their pairs."""

    order: Tensor  # [n_edges] int64
    first: Tensor  # [n_pairs + 1] int64, into order

    @classmethod
    def of(cls, pairs: Tensor, first_of_pair: Tensor, is_second: Tensor) -> "PairOrdering":
        """The ordering for the pair of every edge; no synchronization with the device.

        Takes pairs [n_edges], first_of_pair [n_pairs], and is_second [n_edges] bool: whether the
        edge is the second of its pair.
        """
        edges, later = torch.arange(len(pairs), device=pairs.device), is_second.long()
        counts = torch.ones_like(first_of_pair).scatter_add(0, pairs, later)
        first = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
        return cls(edges.scatter(0, first.index_select(0, pairs) + later, edges), first)

    def index(self, first: Tensor, senders: Tensor) -> list[Tensor]:
        """The index of a loop over pairs.

        Takes first [n_atoms + 1], where the edges of every receiver begin, and senders [n_edges].
        """
        edges = torch.arange(len(senders), device=senders.device)
        receivers = torch.searchsorted(first[1:].contiguous(), edges, right=True)
        return [self.order, self.first, senders, receivers]

    def sums(self, kernel: CompiledKernel, of_edge: Tensor) -> Tensor:
        """[n_pairs, n_segments, n_channels] sums of rows per edge, which may end in unused rows."""
        n_pairs = len(self.first) - 1
        total = of_edge.new_empty(n_pairs, *of_edge.shape[1:])
        index = [self.order, self.first, self.first]
        kernel.run(n_pairs, index, [of_edge], [total], of_edge.shape[2])
        return total
