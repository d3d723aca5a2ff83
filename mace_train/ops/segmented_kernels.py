"""The kernels of any polynomial over rows: value, gradients, and gradients of those.

Public, for couplings of one's own (``segmented_polynomial``); MACE does not use it.

With F the polynomial and g the cotangents of its outputs, the backward pass takes gradients of
Phi = <g, F>, the double backward pass those of sum_i <v_i, dPhi/dx_i>. All run in the loop over
edges with one edge per row: operands are per row, picked by an index, or the same for all
channels; outputs are per row, or summed over channels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

from mace_train.ops.codegen.derivative import gradient
from mace_train.ops.codegen.kernel_spec import Kernel, Loop, Operand, Role, sum_kernel
from mace_train.ops.codegen.polynomial import Kind, Polynomial
from mace_train.ops.codegen.program import Program
from mace_train.ops.dispatch import CompiledKernel

_ROLES = {
    Kind.ROW: Role.EDGE,
    Kind.INDEXED: Role.SENDER,
    Kind.CONSTANT: Role.EDGE,
    Kind.UNIFORM: Role.UNIFORM,
}


@dataclass(frozen=True)
class Operation:
    """A polynomial and the shapes of its tensors.

    Operands without segments are left out. Every term must have a factor that varies with the
    channel.
    """

    polynomial: Polynomial
    n_segments: Mapping[str, int]  # of every operand and output
    summed: frozenset[str] = frozenset()  # outputs summed over channels

    def __post_init__(self) -> None:
        """Check that all terms lie inside the operands and outputs."""
        kinds = self.polynomial.operands
        for output, terms in self.polynomial.terms.items():
            for monomial in terms:
                for segment in (output, *monomial):
                    if not 0 <= segment.number < self.n_segments.get(segment.operand, 0):
                        raise ValueError(f"{segment} is not among n_segments={self.n_segments}")
                if all(kinds[s.operand] is Kind.UNIFORM for s in monomial):
                    raise ValueError(f"a term of {output} has no factor that varies with channels")

    @property
    def inputs(self) -> list[str]:
        """Operands, in the order of arguments."""
        return [name for name in self.polynomial.operands if self.n_segments[name]]

    @property
    def outputs(self) -> list[str]:
        """Outputs, in the order of results."""
        operands = self.polynomial.operands
        return [name for name, n in self.n_segments.items() if n and name not in operands]

    def kind(self, name: str) -> Kind:
        """How a tensor varies: an operand, or an output and its cotangent."""
        if name in self.polynomial.operands:
            return self.polynomial.operands[name]
        return Kind.UNIFORM if name in self.summed else Kind.ROW


class SegmentedKernels:
    """Kernels of one operation; sets of tensors are tuples of their names."""

    def __init__(self, operation: Operation, key: str) -> None:
        self.operation = operation
        self.key = key
        self.forward = CompiledKernel(f"polynomial {key} forward", self._forward_kernel)

    def __repr__(self) -> str:
        """Such as SegmentedKernels(x[3] w[1] -> out[3] | 6 terms)."""
        operation = self.operation
        inputs, outputs = (
            " ".join(f"{name}[{operation.n_segments[name]}]" for name in names)
            for names in (operation.inputs, operation.outputs)
        )
        return f"SegmentedKernels({inputs} -> {outputs} | {operation.polynomial.n_terms} terms)"

    @cache  # noqa: B019 - kernels live as long as the program
    def backward(self, wanted: tuple[str, ...]) -> CompiledKernel:
        """Inputs all operands, then g of all outputs; outputs the gradients of ``wanted``."""

        def build() -> Kernel:
            program = self._gradients.restricted(lambda s: s.operand[2:] in wanted).simplified()
            return self._kernel(program, (), "d_", wanted)

        return CompiledKernel(f"polynomial {self.key} backward {','.join(wanted)}", build)

    @cache  # noqa: B019
    def double(self, cotangents: tuple[str, ...], wanted: tuple[str, ...]) -> CompiledKernel:
        """Inputs as ``backward``, then v of ``cotangents``; outputs the gradients of ``wanted``.

        ``wanted`` may name outputs: the gradients of their cotangents.
        """
        named = f"{','.join(cotangents)} {','.join(wanted)}"

        def build() -> Kernel:
            program = gradient(
                self._gradients,
                {f"d_{name}": f"v_{name}" for name in cotangents},
                {self._argument(name): f"h_{name}" for name in wanted},
            )
            return self._kernel(program.simplified(), cotangents, "h_", wanted)

        return CompiledKernel(f"polynomial {self.key} double {named}", build)

    @cache  # noqa: B019
    def sum_rows(self, n_segments: int) -> CompiledKernel:
        """Sums over chunks of rows."""
        return CompiledKernel(f"sum {n_segments}", lambda: sum_kernel(n_segments))

    @cached_property
    def program(self) -> Program:
        """The operation, per row."""
        operation = self.operation
        extra = {f"g_{name}" for name in operation.summed}
        kinds = operation.polynomial.operands.items()
        extra |= {f"v_{name}" for name, kind in kinds if kind is Kind.UNIFORM}
        return operation.polynomial.program(frozenset(extra))

    @cached_property
    def _gradients(self) -> Program:
        cotangents = {name: f"g_{name}" for name in self.operation.outputs}
        return gradient(self.program, cotangents, {n: f"d_{n}" for n in self.operation.inputs})

    def _argument(self, name: str) -> str:
        return name if name in self.operation.polynomial.operands else f"g_{name}"

    def _forward_kernel(self) -> Kernel:
        inputs, outputs = self.operation.inputs, self.operation.outputs
        operands = self._operands("", inputs)
        return Kernel(Loop.EDGES, self.program, operands, self._operands("", outputs, False))

    def _kernel(
        self, program: Program, cotangents: Sequence[str], prefix: str, wanted: Sequence[str]
    ) -> Kernel:
        operation = self.operation
        inputs = (
            *self._operands("", operation.inputs),
            *self._operands("g_", operation.outputs),
            *self._operands("v_", cotangents),
        )
        return Kernel(Loop.EDGES, program, inputs, self._operands(prefix, wanted, False))

    def _operands(
        self, prefix: str, names: Sequence[str], is_input: bool = True
    ) -> tuple[Operand, ...]:
        """Inputs as their kind says; results per row, or summed over channels."""
        operands = []
        for name in names:
            role = _ROLES[self.operation.kind(name)]
            if role is Role.SENDER and not is_input:
                role = Role.EDGE
            operands.append(Operand(f"{prefix}{name}", role, self.operation.n_segments[name]))
        return tuple(operands)
