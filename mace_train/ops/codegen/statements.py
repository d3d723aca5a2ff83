"""Statements of a program in C-like languages: one per instruction, in scheduled order.

A node is a variable ``t17``; an input is loaded where it is read (``load(x + 3 * K)``), a value
that all channels share is read from an array ``u``, and what should pass through the caches only
once is loaded into a variable where it is first read. A finished output is passed to the
surrounding skeleton, which stores it or adds it to a sum.
"""

from collections.abc import Callable, Collection, Mapping

from mace_train.ops.codegen.instruction_order import ScheduledInstruction, schedule
from mace_train.ops.codegen.program import Node, Program, Segment, Term


def uniform_slots(program: Program) -> dict[int, int]:
    """Slots of the shared values that instructions per channel read."""
    is_uniform = program.graph.is_uniform
    read = {
        factor
        for number, node in program.sums()
        if not is_uniform[number]
        for term in node
        for factor in term.factors
        if is_uniform[factor]
    }
    read |= {number for number in program.outputs.values() if is_uniform[number]}
    return {number: slot for slot, number in enumerate(sorted(read))}


def uniform_lines(program: Program, slots: dict[int, int]) -> list[str]:
    """Shared values of one edge, from its uniform inputs."""
    names = Names(program, {}, "T")
    lines = [names.line(instruction) for instruction in schedule(program, uniform=True)]
    return lines + [f"u[{slot}] = {names.of(number)};" for number, slot in slots.items()]


class Names:
    """Names of nodes in the code, and statements that compute them."""

    def __init__(
        self,
        program: Program,
        shared: dict[int, int],
        kind: str,
        strides: Mapping[str, str] | None = None,
    ) -> None:
        self.program = program
        self.shared = shared
        self.kind = kind
        self.loaded: dict[int, str] = {}  # inputs that are in a variable already
        self.strides = strides or {}  # between segments, of operands for which it is not K

    def of(self, number: int) -> str:
        """An expression with the value of a node."""
        if number in self.shared:
            return f"u[{self.shared[number]}]"
        node = self.program.graph.nodes[number]
        if isinstance(node, Segment):
            uniform = self.program.graph.is_uniform[number]
            if uniform:
                return f"{node.operand}[{node.number}]"
            return self.loaded.get(number) or f"load({self._address(node)})"
        return f"t{number}"

    def load(self, number: int, function: str) -> str:
        """A statement that loads an input, which is in a variable from then on."""
        node = self.program.graph.nodes[number]
        assert isinstance(node, Segment)
        self.loaded[number] = f"in_{node.operand}_{node.number}"
        return f"const {self.kind} {self.loaded[number]} = {function}({self._address(node)});"

    def _address(self, segment: Segment) -> str:
        stride = self.strides.get(segment.operand, "K")
        return f"{segment.operand} + {segment.number} * {stride}"

    def term(self, term: Term) -> tuple[str, str]:
        """Sign and magnitude of a term."""
        sign = "-" if term.coefficient < 0 else "+"
        value = "*".join(self.of(factor) for factor in term.factors)
        if abs(term.coefficient) != 1.0:
            value = f"T({abs(term.coefficient)!r})*{value}"
        return sign, value

    def _is_shared(self, term: Term) -> bool:
        return all(self.program.graph.is_uniform[factor] for factor in term.factors)

    def line(self, instruction: ScheduledInstruction, into: str | None = None) -> str:
        """The statement of an instruction; ``into`` is a sum that exists already."""
        sign, value = self.term(instruction.term)
        if into is not None:
            return f"{into} {sign}= {value};"
        if instruction.is_first and self._is_shared(instruction.term) and self.kind == "V":
            return f"V t{instruction.target} = V{{}} {sign} {value};"  # from scalars alone
        if instruction.is_first:
            return f"{self.kind} t{instruction.target} = {sign if sign == '-' else ''}{value};"
        return f"t{instruction.target} {sign}= {value};"


class Body:
    """Statements per channel; ``put`` makes the one that stores a finished output."""

    def __init__(
        self,
        program: Program,
        put: Callable[[tuple[Segment, str]], str],
        shared: dict[int, int] | None = None,
        sums: dict[Segment, str] | None = None,
        strides: Mapping[str, str] | None = None,
        load_once: Collection[str] = (),
    ) -> None:
        self.program = program
        self.put = put
        self.names = Names(program, shared or {}, "V", strides)
        nodes = program.graph.nodes
        self.once = {i for i in program.live() if _operand(nodes[i]) in load_once}
        self.outputs: dict[int, list[Segment]] = {}
        for segment, number in program.outputs.items():
            self.outputs.setdefault(number, []).append(segment)
        read = {i for _, node in program.sums() for term in node for i in term.factors}
        # a node that is nothing but one sum is added to it term by term
        self.into = {
            number: (sums or {})[segments[0]]
            for number, segments in self.outputs.items()
            if len(segments) == 1 and segments[0] in (sums or {}) and number not in read
        }

    def lines(self) -> list[str]:
        """All statements in order."""
        lines = []
        scheduled = schedule(self.program, uniform=False)
        for instruction in scheduled:
            new = self.once.intersection(instruction.term.factors) - self.names.loaded.keys()
            lines += [self.names.load(number, "load_once") for number in sorted(new)]
            into = self.into.get(instruction.target)
            lines.append(self.names.line(instruction, into))
            if instruction.is_last and into is None:
                for segment in self.outputs.get(instruction.target, []):
                    lines.append(self.put((segment, f"t{instruction.target}")))
        done = {instruction.target for instruction in scheduled}
        for number in self.outputs.keys() - done:
            value = f"(V{{}} + {self.names.of(number)})"
            lines += [self.put((segment, value)) for segment in self.outputs[number]]
        return lines


def _operand(node: Node) -> str | None:
    return node.operand if isinstance(node, Segment) else None
